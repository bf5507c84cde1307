"""Decides what a row of a source is, and why a row may have no text."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from packtrain.config.expression import MismatchError, RowFilter
from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import Part

BROKEN, NO_TEXT, NOT_UTF8 = "broken_row", "no_text", "not_utf8"
# Readable, but rejected by source.filter.
FILTERED = "filter"


class Row(NamedTuple):
    """A row of a source: its text, or why it has none and what was found instead; or the token ids of another program."""

    file: str
    row: int
    id: str | None
    text: str | None
    problem: str | None = None
    detail: str = ""
    ids: Any = None
    """From a source of ids: integers of any width."""


def make_row(file: str, number: int, name: str | None, text: str) -> Row:
    """A row with this text, unless UTF-8 cannot encode it (half of a surrogate pair, undecodable bytes)."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Row(file, number, name, None, NOT_UTF8, str(error))
    return Row(file, number, name, text)


def decode_row(file: str, number: int, data: bytes) -> Row:
    """A row with the text of these bytes, unless they are not UTF-8. Row 0 may begin with a byte-order mark."""
    try:
        return Row(file, number, None, data.decode("utf-8-sig" if number == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        return Row(file, number, None, None, NOT_UTF8, str(error))


def reject_row(
    file: str, number: int, name: str | None, row_filter: RowFilter, values: Callable[[], Mapping[str, Any]]
) -> Row | None:
    """The row without its text, if the filter rejects it; None if it passes."""
    try:
        if row_filter.keeps(values()):
            return None
    except MismatchError as error:
        return Row(file, number, name, None, BROKEN, str(error))
    return Row(file, number, name, None, FILTERED)


def check_unchanged(part: Part, fingerprint: str) -> None:
    """Raise SourceError unless a part, read to its end, still has the content that was planned, if that is known."""
    if part.fingerprint and fingerprint != part.fingerprint:
        raise SourceError(f"the source file {part.file} changed while it was prepared; run the same command again")
