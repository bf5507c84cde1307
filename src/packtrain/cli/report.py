"""`packtrain report`: one HTML page about runs, a dataset or a ladder, as a file, or served while the runs train."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, is_dataset, is_ladder
from packtrain.errors import ConfigError


def report(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...|DATASET|LADDER", help="One or more runs, one dataset, or one ladder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write. Default: report.html in the first folder."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine and follow the runs, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", help="Port of --watch. Default: a free one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page about a run, several runs, or a dataset.

    The page needs no other file. Several runs are compared on it.
    """
    from packtrain.api.training import report as write_report

    screen.route_logging()
    if watch:
        _watch(targets, out, port, as_json)
        return
    if port is not None:
        raise ConfigError(f"--port {port} has no effect without --watch; add --watch, or leave --port out")
    path = write_report(*targets, out=out)
    facts: dict[str, Any] = {"report": str(path)}
    if is_dataset(targets[0]):
        facts["dataset"] = str(targets[0])
    elif is_ladder(targets[0]):
        facts["ladder"] = str(targets[0])
    else:
        facts["runs"] = [str(run) for run in targets]
    if as_json:
        screen.print_json(facts)
    else:
        screen.console.print(f"report written to {path}", soft_wrap=True, markup=False)


def _watch(targets: list[Path], out: Path | None, port: int | None, as_json: bool) -> None:
    """Serves the page until the process is asked to stop."""
    from packtrain.report.watch import lower_priority, open_server

    if out is not None:
        raise ConfigError(f"--watch writes no file; leave out --out {out}, or leave out --watch to write it")
    if any(is_dataset(target) or is_ladder(target) for target in targets):
        raise ConfigError(
            "--watch follows runs, and a prepared dataset does not change; give runs, or leave out --watch to write the page of "
            "a dataset or a ladder"
        )
    with open_server(targets, port or 0) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        try:
            if as_json:
                screen.print_json({"address": address, "runs": [str(run) for run in targets]})
            else:
                shown = f"following {', '.join(map(str, targets))} at {address}"
                screen.console.print(shown, soft_wrap=True, markup=False)
                screen.note("Ctrl-C ends it; the run is not touched. `packtrain report` without --watch writes a file.")
            # Into a pipe too: whoever started this waits for the address.
            sys.stdout.flush()
            lower_priority()
            server.serve_forever()
        except KeyboardInterrupt:
            screen.note("stopped following")
