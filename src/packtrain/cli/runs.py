"""`packtrain runs`: the runs below a folder, and how far each is."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.following import show_next, write_command
from packtrain.cli.options import AsJson

if TYPE_CHECKING:
    from packtrain.runs.status import RunStatus

# Narrower than this, a screen has no room for all columns.
_FULL_WIDTH = 70


def runs(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Where to look. Default: runs, or else this folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder and below it.

    Shows for each whether it is being trained now, how it ended, its step, loss, bits per byte and speed.
    """
    from packtrain.runs.listing import list_runs

    if folder is None:
        folder = Path("runs") if Path("runs").is_dir() else Path()
    problems: list[str] = []
    found = list_runs(folder, problems)
    if as_json:
        listed = [describe(run) for run in found]
        screen.print_json({"folder": str(folder), "runs": listed, "problems": problems})
        return
    if found:
        _show(found, folder)
    else:
        screen.console.print(
            f"No run in {folder} or below it; `packtrain train PRESET data.dataset=FOLDER --run runs/NAME` starts one.",
            soft_wrap=True,
            markup=False,
        )
    for problem in problems:
        screen.warn(problem)


def describe(run: "RunStatus") -> dict[str, Any]:
    """A status as JSON has it, with its age in seconds."""
    tree = dataclasses.asdict(run)
    return tree | {"folder": str(run.folder), "age_s": None if run.seen is None else max(0.0, time.time() - run.seen)}


def _show(found: "list[RunStatus]", folder: Path) -> None:
    is_narrow = screen.is_narrower(_FULL_WIDTH)
    names = ["run", "state", "step", "bits", "age"]
    if not is_narrow:
        names[3:4] = ["loss", "bits/byte", "tokens/s"]
    table = screen.table(*names)
    # What is left of a narrow screen is for the names.
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "left"
    for column in table.columns[1:]:
        column.no_wrap = True
    for run in found:
        cells = {
            "run": _name(run.folder, folder),
            "state": run.state,
            "step": _steps(run),
            "loss": _decimal(run.loss),
            "bits/byte": _decimal(run.val_bpb),
            "bits": "–" if run.val_bpb is None else f"{run.val_bpb:.2f}",
            "tokens/s": "–" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            "age": "–" if run.seen is None else age(time.time() - run.seen),
        }
        table.add_row(*(screen.escape(cells[name]) for name in names))
    screen.print_table(table)
    told = [
        (run, sentence)
        for run in found
        for sentence in (
            *([f"{run.state}: {run.reason}"] if run.reason and run.state != "stopped" else []),
            *run.problems,
        )
    ]
    if told:
        screen.console.print()
    for run, sentence in told:
        screen.console.print(f"{_name(run.folder, folder)}: {sentence}", soft_wrap=True, markup=False)
    show_next(write_command("inspect", found[0].folder))


def age(seconds: float) -> str:
    """How long ago something was, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _name(run: Path, folder: Path) -> str:
    """A run's folder, below the folder that was asked about."""
    return str(run) if run == folder else str(run.relative_to(folder))


def _steps(run: "RunStatus") -> str:
    if run.step is None:
        return "–"
    return f"{run.step:,}" if run.steps is None else f"{run.step:,}/{run.steps:,}"


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
