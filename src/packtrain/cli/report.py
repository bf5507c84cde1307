"""`packtrain report`: one HTML page about a run, several runs, or a dataset."""

from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, is_dataset, is_ladder


def report(
    targets: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...|DATASET|LADDER", help="One or more runs, one dataset, or one ladder."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write. Default: report.html in the first folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page about a run, several runs, or a dataset.

    The page needs no other file. Several runs are compared on it.
    """
    from packtrain.api.training import report as write_report

    screen.route_logging()
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
