"""Decides what a source is cut into: rows, parts of consecutive rows in a file, and slices of bounded size."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import xxhash

from packtrain.config.expression import MismatchError, RowFilter
from packtrain.data.format.manifest import SplitName
from packtrain.errors import SourceError

BROKEN, NO_TEXT, NOT_UTF8, TOO_LARGE = "broken_row", "no_text", "not_utf8", "too_large"
# Readable, but rejected by source.filter.
FILTERED = "filter"

# A small source is cut finer than `slice_documents`, so that it also keeps several workers busy.
_SLICES_OF_SMALL_SOURCE = 64
# A part of a quarter of a slice or more starts a slice of its own, so that cuts soon fall where they did before a change.
_LARGE = 4


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
    size: int = 0
    """If it has no text: its bytes in the source, as far as they are known."""
    is_null: bool = False
    """Whether its column of text is there and says that the row has none, so that nothing is unreadable."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: its name in the dataset, where to open it, and its size in bytes."""

    name: str
    url: str
    size: int
    side: SplitName | None = None
    """The side that the dataset's own splits put it on; None if they do not decide."""


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of one file; in a file that is read as a stream, its decompressed bytes `start` to `stop`."""

    file: str
    url: str
    first_row: int
    rows: int
    size: int
    fingerprint: str
    """A hash that changes when these rows do; empty if it is not known for exactly these rows."""
    start: int = 0
    stop: int = 0
    side: SplitName | None = None
    """That of its file."""

    def check_unchanged(self, fingerprint: str) -> None:
        """Raise SourceError unless these rows still have the content that was planned, if that is known."""
        if self.fingerprint and fingerprint != self.fingerprint:
            raise SourceError(f"the source file {self.file} changed while it was prepared; run the same command again")


@dataclass(frozen=True, slots=True)
class Slice:
    """What one worker does at a time, and what becomes the shard with this number."""

    number: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """A hash of its rows, the names of its files and their sides, but not of its number or of where its files are."""
        digest = xxhash.xxh3_128()
        for part in self.parts:
            digest.update(f"{part.file}\0{part.first_row}\0{part.rows}\0{part.start}\0{part.fingerprint}\0".encode())
            if part.side is not None:
                digest.update(part.side.encode())
        return digest.hexdigest()

    def describe(self) -> str:
        first, last = self.parts[0], self.parts[-1]
        end = last.first_row + last.rows - 1
        if first.file == last.file:
            return f"slice {self.name} ({first.file}, rows {first.first_row} to {end})"
        return f"slice {self.name} ({first.file} row {first.first_row} to {last.file} row {end})"


@dataclass(frozen=True, slots=True)
class Limits:
    """The most rows of a slice, the most rows of the source, and how many bytes of the source come before."""

    rows: int
    total_rows: int | None
    before: int = 0

    def size(self, position: int) -> int:
        """The most bytes of a slice that begins `position` bytes further on.

        It grows with what comes before, by powers of two, and does not depend on what follows. So a source that grows at
        its end keeps its cuts, and a change in the middle moves few of the cuts after it.
        """
        share = (self.before + position) // _SLICES_OF_SMALL_SOURCE
        return max(1 << 20, 1 << max(0, share.bit_length() - 1))


@dataclass(frozen=True, slots=True)
class FileScan:
    """What planning found in a file: its parts in order.

    If columns become known only row by row: those of the filter that no row has, and some that rows have.
    """

    parts: tuple[Part, ...]
    lacks: tuple[str, ...] = ()
    has: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Slicing:
    """All slices of a source, and its revision if it has one."""

    slices: tuple[Slice, ...]
    revision: str | None

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)

    @property
    def fingerprint(self) -> str:
        """A hash of the source's content and of how it is cut."""
        return xxhash.xxh3_128_hexdigest("".join(s.fingerprint for s in self.slices).encode())


def choose_limits(slice_documents: int, max_documents: int | None) -> Limits:
    """How finely to cut a source. Depends only on the recipe, never on the number of workers."""
    rows = slice_documents
    if max_documents is not None:
        rows = min(rows, max(1024, max_documents // _SLICES_OF_SMALL_SOURCE))
    return Limits(rows, max_documents)


def group_parts(parts: Iterable[Part], limits: Limits) -> tuple[Slice, ...]:
    """Join parts, in order, into slices within the limits; a part that exceeds them becomes a slice of its own."""
    groups: list[list[Part]] = []
    rows = size = position = most = 0
    for part in parts:
        is_full = not groups or rows + part.rows > limits.rows or size + part.size > most
        is_large = part.first_row == 0 and (part.rows * _LARGE >= limits.rows or part.size * _LARGE >= most)
        if is_full or is_large:
            groups.append([])
            rows = size = 0
            most = limits.size(position)
        groups[-1].append(part)
        rows, size, position = rows + part.rows, size + part.size, position + part.size
    return tuple(Slice(number, tuple(group)) for number, group in enumerate(groups))


def take_rows(parts: Iterable[Part], most: int | None) -> Iterator[Part]:
    """Yield the first parts, up to `most` rows in all; the last may be cut, as readers stop at a part's number of rows."""
    left = most
    for part in parts:
        if left is None:
            yield part
            continue
        if left <= 0:
            return
        take = min(left, part.rows)
        left -= take
        yield replace(part, rows=take)


def make_row(file: str, number: int, name: str | None, text: str) -> Row:
    """A row with this text, unless UTF-8 cannot encode it (half of a surrogate pair, undecodable bytes)."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Row(file, number, name, None, NOT_UTF8, str(error), size=len(text))
    return Row(file, number, name, text)


def decode_row(file: str, number: int, data: bytes) -> Row:
    """A row with the text of these bytes, unless they are not UTF-8. Row 0 may begin with a byte-order mark."""
    try:
        return Row(file, number, None, data.decode("utf-8-sig" if number == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        return Row(file, number, None, None, NOT_UTF8, str(error), size=len(data))


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


class Cutter:
    """Cuts the records of one stream into parts: `add` each record in turn, then take `parts`.

    `head` is what the meaning of every record depends on besides its own content.
    """

    def __init__(
        self, file: SourceFile, limits: Limits, offset: int = 0, head: bytes = b"", *, is_compressed: bool
    ) -> None:
        self._file, self._limits, self._head = file, limits, head
        self._is_compressed = is_compressed
        self._position = self._start = offset
        self.rows = self._first_row = 0
        self._most = self._most_bytes()
        self._digest = xxhash.xxh3_128(head)
        self._parts: list[Part] = []

    def add(self, size: int, content: bytes) -> None:
        if self.rows - self._first_row >= self._limits.rows or self._position - self._start >= self._most:
            self._cut()
        self._digest.update(content)
        self.rows, self._position = self.rows + 1, self._position + size

    def skip(self, rows: int, size: int) -> None:
        """Leave records out that are blank, between two parts."""
        if not size:
            return
        if self.rows > self._first_row:
            self._cut()
        self.rows, self._position = self.rows + rows, self._position + size
        self._first_row, self._start, self._most = self.rows, self._position, self._most_bytes()

    def parts(self) -> tuple[Part, ...]:
        if self.rows > self._first_row:
            self._cut()
        return tuple(self._parts)

    def _most_bytes(self) -> int:
        # A compressed file is read from its beginning for each part: small parts would make that most of the work.
        return 1 << 62 if self._is_compressed else self._limits.size(self._position)

    def _cut(self) -> None:
        rows, size = self.rows - self._first_row, self._position - self._start
        fingerprint = self._digest.hexdigest()
        name, url = self._file.name, self._file.url
        self._parts.append(Part(name, url, self._first_row, rows, size, fingerprint, self._start, self._position))
        self._first_row, self._start = self.rows, self._position
        self._most = self._most_bytes()
        self._digest = xxhash.xxh3_128(self._head)
