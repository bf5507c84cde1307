"""Decides how the command line looks: results on standard output; progress, warnings and errors on standard error."""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from packtrain.data.tokens.visible import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def __getattr__(name: str) -> Any:
    """`screen.console`, made when it is first used: importing rich would take a third of the time of `--help`."""
    if name == "console":
        return _open_console(stderr=False)
    raise AttributeError(f"module {__name__} has no attribute {name}")


@functools.cache
def _open_console(*, stderr: bool) -> "Console":
    from rich.console import Console

    class PrintableConsole(Console):
        """Every string that is printed, in a table or by itself, comes through here."""

        def render_str(self, text: str, **options: Any) -> "Text":
            return super().render_str(printable(text), **options)

    return PrintableConsole(stderr=stderr, highlight=False)


def escape(text: str) -> str:
    """Text that the console shows as it is, brackets included; it shows hidden characters by their escapes in any case."""
    from rich.markup import escape

    return escape(text)


def note(text: str) -> None:
    _open_console(stderr=True).print(f"[dim]{escape(text)}[/dim]")


def warn(text: str) -> None:
    _open_console(stderr=True).print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def error(text: str) -> None:
    """An error, always on one line, even if it names a file with a line break in its name."""
    one_line = printable(text).replace("\n", "\\n")
    _open_console(stderr=True).print(f"[bold red]error:[/bold red] {escape(one_line)}", soft_wrap=True)


def heading(text: str) -> None:
    _open_console(stderr=False).print(f"\n[bold]{escape(text)}[/bold]")


def print_json(value: Any) -> None:
    """One JSON object on standard output, and nothing else."""
    print(json.dumps(value, indent=2, default=str))


def table(*columns: str, title: str | None = None) -> "Table":
    """A plain table. The first column is aligned left and the others, which are numbers, right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", title_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    return made


@contextlib.contextmanager
def progress(description: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar during the block; the callback takes (done, total)."""
    with _bar(unit) as bar:
        task = bar.add_task(escape(printable(description)), total=None)
        # If the command is refused before it starts, the bar disappears and only the error stays.
        bar.live.transient = True

        def on_progress(done: int, total: int) -> None:
            bar.live.transient = False
            bar.update(task, completed=done, total=total)

        yield on_progress


def route_logging() -> None:
    """Shows the warnings of packtrain's modules in the form of the command line's own."""
    log = logging.getLogger("packtrain")
    # The other ranks would repeat it.
    log.setLevel(logging.INFO if is_main_rank() else logging.ERROR)
    if not log.handlers:
        log.addHandler(_Warnings())
        log.propagate = False


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        (warn if record.levelno >= logging.WARNING else note)(record.getMessage())


def _bar(last: str, width: int = 24) -> Any:
    # The slowest part of rich to import; `--help` does not need it.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=width),
        MofNCompleteColumn(),
        TextColumn(last),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=_open_console(stderr=True),
        disable=not is_main_rank(),
    )


def is_main_rank() -> bool:
    """Whether this process prints for the whole run; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def training_progress() -> Iterator[tuple[Callable[[int, int], None], Callable[[dict[str, Any]], None]]]:
    """A progress bar over optimizer steps: callbacks for (first step, number of steps) and for each record."""
    # Narrow, so that the figures fit in 80 columns.
    with _bar("{task.fields[figures]}", width=8) as bar:
        task = bar.add_task("train", total=None, figures="")
        shown: dict[str, str] = {}
        bar.live.transient = True

        def on_start(step: int, num_steps: int) -> None:
            bar.live.transient = False
            bar.update(task, completed=step, total=num_steps)

        def on_step(record: dict[str, Any]) -> None:
            shown.update(_figures(record))
            bar.update(task, completed=record["step"], figures=" ".join(f"{k} {v}" for k, v in shown.items()))

        yield on_start, on_step


def _figures(record: dict[str, Any]) -> dict[str, str]:
    if "val_loss" in record:
        return {"bpb": f"{record['val_bpb']:.3f}"}
    mfu = f"{record['mfu']:.0%}" if "mfu" in record else "n/a"
    return {"loss": f"{record['loss']:.3f}", "tok/s": f"{record['tokens_per_s']:,.0f}", "MFU": mfu}
