"""`packtrain report`: one HTML page about a run, several runs, or a dataset."""

from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, is_dataset
from packtrain.errors import ConfigError


def report(
    targets: Annotated[list[Path], typer.Argument(metavar="RUN...|DATASET", help="One or more runs, or one dataset.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write. Default: report.html in the first folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page about a run, several runs, or a dataset.

    The page needs no other file. Several runs are compared on it.
    """
    screen.route_logging()
    if any(is_dataset(target) for target in targets):
        from packtrain.report.dataset_page import write_dataset_report

        if len(targets) > 1:
            raise ConfigError(
                "a report is about runs or about one dataset; give only runs or one dataset, or compare two with `packtrain diff`"
            )
        path = write_dataset_report(targets[0], out)
        facts: dict[str, Any] = {"report": str(path), "dataset": str(targets[0])}
    else:
        from packtrain.report.page import write_report

        path = write_report(targets, out)
        facts = {"report": str(path), "runs": [str(run) for run in targets]}
    if as_json:
        screen.print_json(facts)
    else:
        screen.console.print(f"report written to {path}", soft_wrap=True, markup=False)
