"""Decides what a row of a source is, and why a row may have no text."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from packtrain.config.expression import MismatchError, RowFilter
from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import Part


class Row(NamedTuple):
    """A row of a source: a text, or the reason why it has none and what was seen instead; or the ids another program made."""

    file: str
    row: int
    id: str | None
    text: str | None
    problem: str | None = None
    detail: str = ""
    ids: Any = None
    """Integers of any width, of a source of ids."""


BROKEN, NO_TEXT, NOT_UTF8 = "broken_row", "no_text", "not_utf8"


# Not unreadable, but let through by source.filter neither.
FILTERED = "filter"


def checked_row(file: str, number: int, name: str | None, text: str) -> Row:
    """A row with its text, unless the text holds what no UTF-8 file can (half of a surrogate pair, undecodable bytes)."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Row(file, number, name, None, NOT_UTF8, str(error))
    return Row(file, number, name, text)


def _left_out(
    file: str, number: int, name: str | None, chosen: RowFilter, values: Callable[[], Mapping[str, Any]]
) -> Row | None:
    """The row without its text, if the filter does not let it through."""
    try:
        return None if chosen.keeps(values()) else Row(file, number, name, None, FILTERED)
    except MismatchError as error:
        return Row(file, number, name, None, BROKEN, str(error))


def check_unchanged(part: Part, fingerprint: str) -> None:
    """Raise SourceError unless what was read of a part, to its end, is what it was planned for, if that is known."""
    if part.fingerprint and fingerprint != part.fingerprint:
        raise SourceError(f"the source file {part.file} changed while it was prepared; run the same command again")
