"""`packtrain diff`: how two prepared datasets or two runs differ, and which change explains it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson

if TYPE_CHECKING:
    from packtrain.data.diff import Difference, Found

_KINDS = {
    "same": "the same in both",
    "only_a": "only in A",
    "only_b": "only in B",
    "moved": "in both, on different sides",
    "retokenized": "in both, with different ids",
}


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A dataset that `packtrain prepare` wrote, or a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    as_json: AsJson = False,
) -> None:
    """Compare two datasets or two runs, and explain how they differ.

    Documents are compared by content: which are in both, on which side, with which ids. Runs are compared by settings, data,
    machine and results. The exit code is 0 whether they differ or not; `--json` says it under `equal`.
    """
    from packtrain.api.data import diff as find_difference
    from packtrain.data.diff import Difference

    screen.route_logging()
    found = find_difference(a, b)
    if isinstance(found, Difference):
        _show_datasets(a, b, found, as_json)
    elif as_json:
        screen.print_json(found.as_tree())
    else:
        from packtrain.cli.run_diff_view import show_difference

        show_difference(a, b, found)


def _show_datasets(a: Path, b: Path, found: Difference, as_json: bool) -> None:
    from packtrain.data.format.shards import open_dataset

    if as_json:
        hashes = {key: open_dataset(folder).manifest.hash for key, folder in (("a", a), ("b", b))}
        screen.print_json({"equal": found.is_equal, "hashes": hashes, **asdict(found)})
    else:
        _show(a, b, found)


def _show(a: Path, b: Path, found: Difference) -> None:
    table = screen.table("", "documents", "tokens in A", "tokens in B", title=screen.escape(f"A: {a}\nB: {b}"))
    for key, name in _KINDS.items():
        kind: Found = getattr(found, key)
        table.add_row(name, f"{kind.documents:,}", f"{kind.tokens[0]:,}", f"{kind.tokens[1]:,}")
    screen.console.print(table)
    for key, name in _KINDS.items():
        samples = getattr(found, key).samples
        if samples:
            screen.console.print(f"\n[bold]{name}[/bold], for example")
        for sample in samples:
            screen.console.print(
                "  " + "  ->  ".join(_place(place) for place in sample.values()), soft_wrap=True, markup=False
            )
    if found.settings:
        settings = screen.table("made with", "A", "B")
        for key, values in found.settings.items():
            settings.add_row(screen.escape(key), *(_value(value) for value in values))
        screen.console.print()
        screen.console.print(settings)
    if found.reasons:
        screen.console.print("\n[bold]what explains it[/bold]")
    for reason in found.reasons:
        screen.console.print(reason, soft_wrap=True, markup=False)
    if found.is_equal:
        screen.console.print("\nThe same documents with the same ids on the same sides.")
    elif not found.settings:
        screen.console.print(
            "\nBoth name the same recipe, source and tokenizer, so one was changed later; `packtrain verify` says which."
        )


def _place(place: dict[str, Any]) -> str:
    name = f"  id {place['id']}" if place["id"] else ""
    # On one line: a line break in a name would pass for the end of the line.
    label = f"{place['document']} ({place['tokens']:,} tokens)  {place['file']}:{place['row']}{name}"
    return label.replace("\n", "\\n")


def _value(value: Any) -> str:
    return "–" if value is None else screen.escape(str(value))
