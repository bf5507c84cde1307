"""Decides how the command line looks: results on standard output; progress, warnings and errors on standard error."""

import contextlib
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from packtrain.data.tokens.visible import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


# Wider than any line.
_PIPE_WIDTH = 10_000


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

        def on_broken_pipe(self) -> None:
            """Whatever read this has ended, as `head` and `tee` do. What was said matters less than what is being done."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2 if self.stderr else 1)
            if not self.stderr:
                raise SystemExit(0)

    return PrintableConsole(stderr=stderr, highlight=False)


def escape(text: str) -> str:
    """Text that the console shows as it is, brackets included; it shows hidden characters by their escapes in any case."""
    from rich.markup import escape

    return escape(text)


def line(text: str, rest: str, *, is_dim: bool) -> None:
    """One line on standard output, its `rest` dim on a terminal. Without rich, which takes a fifth of the time of `config`."""
    is_styled = is_dim and (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")) and os.environ.get("TERM") != "dumb"
    rest = printable(rest)
    print(printable(text) + (f"\x1b[2m{rest}\x1b[0m" if is_styled else rest))


def note(text: str) -> None:
    _open_console(stderr=True).print(f"[dim]{escape(text)}[/dim]")


def warn(text: str) -> None:
    _open_console(stderr=True).print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)


def error(text: str) -> None:
    """An error, always on one line, even if it names a file with a line break in its name."""
    one_line = printable(text).replace("\n", "\\n")
    _open_console(stderr=True).print(f"[bold red]error:[/bold red] {escape(one_line)}", soft_wrap=True)


def stopped(text: str, command: str | None) -> None:
    """What to say of a run or a command that was asked to stop: that is no error."""
    console = _open_console(stderr=True)
    if command is None:
        console.print(escape(printable(text).replace("\n", "\\n")), soft_wrap=True)
    else:
        console.print(f"{escape(printable(text))}; continue with:\n\n  {escape(command)}", soft_wrap=True)


def tell(text: str, *, is_log: bool) -> None:
    """A line about a run, above the bar. A log (`is_log`) gets the time too, and its lines are never wrapped."""
    at = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  " if is_log else ""
    _open_console(stderr=True).print(f"{at}{text}", soft_wrap=is_log, markup=False)


def facts(lines: list[tuple[str, str]], *, on_stdout: bool = False) -> None:
    """Names and what they say, below each other on standard error, or on standard output."""
    console = _open_console(stderr=not on_stdout)
    width = max(len(name) for name, _ in lines)
    if not console.is_terminal:
        for name, text in lines:
            console.print(f"{name:<{width}}  {text}", soft_wrap=True, markup=False)
        return
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in lines:
        grid.add_row(name, escape(text))
    console.print(grid)


def is_watched() -> bool:
    """Whether standard error is a terminal that can show a bar; else it is a log."""
    console = _open_console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


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


def print_table(shown: "Table") -> None:
    """A table on standard output; whatever reads a pipe gets whole lines, however long they are."""
    console = _open_console(stderr=False)
    console.print(shown, width=None if console.is_terminal else _PIPE_WIDTH, crop=False)


def is_narrower(width: int) -> bool:
    """Whether standard output is a terminal with fewer columns than that."""
    console = _open_console(stderr=False)
    return console.is_terminal and console.width < width


@contextlib.contextmanager
def progress(description: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Shows a progress bar during the block; the callback takes (done, total)."""
    with bar(unit) as shown:
        task = shown.add_task(escape(printable(description)), total=None)
        # If the command is refused before it starts, the bar disappears and only the error stays.
        shown.live.transient = True

        def on_progress(done: int, total: int) -> None:
            shown.live.transient = False
            shown.update(task, completed=done, total=total)

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


def bar(last: str, width: int = 24) -> Any:
    """A bar over counted things on standard error, to be used as a context; `last` is the column in front of the time left."""
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
