"""`packtrain report`: one HTML page on a run, or on several compared."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli.options import AsJson


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `packtrain train` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write. Default: report.html in the first run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page; give several runs to compare them."""
    from packtrain.cli import screen
    from packtrain.report.page import write_report

    path = write_report(runs, out)
    if as_json:
        screen.print_json({"report": str(path), "runs": [str(run) for run in runs]})
    else:
        screen.console.print(f"report written to {path}", soft_wrap=True)
