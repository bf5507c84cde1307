"""Decides how a source is cut: runs of rows of its files, gathered in source order into slices of bounded size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

# A small source is cut finer than `slice_documents` asks, so that it, too, keeps several workers busy.
_SLICES_OF_SMALL_SOURCE = 64
_LEAST_SLICE_BYTES = 1 << 20


class Row(NamedTuple):
    """A row of a source: a text, or the reason why it has none and what was seen instead."""

    file: str
    row: int
    id: str | None
    text: str | None
    problem: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source: its name in the dataset, where to open it, and its bytes."""

    name: str
    url: str
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first_row` to `first_row + rows` of one file; where it is read as a stream, decompressed bytes start to stop."""

    file: str
    url: str
    first_row: int
    rows: int
    size: int
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """What one worker does in one go, and what becomes the shard of this number."""

    number: int
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    def describe(self) -> str:
        """The rows it covers, in words."""
        first, last = self.parts[0], self.parts[-1]
        end = last.first_row + last.rows - 1
        if first.file == last.file:
            return f"slice {self.name} ({first.file}, rows {first.first_row} to {end})"
        return f"slice {self.name} ({first.file} row {first.first_row} to {last.file} row {end})"


@dataclass(frozen=True, slots=True)
class Limits:
    """Most rows and bytes of a slice, and most rows that are read of the whole source."""

    rows: int
    size: int
    total_rows: int | None


@dataclass(frozen=True, slots=True)
class FileScan:
    """What planning found in a file: its parts in order, and a hash of its content.

    Where columns are known only by reading the rows: those of the filter that none has, and some that there are.
    """

    parts: tuple[Part, ...]
    fingerprint: str
    lacks: tuple[str, ...] = ()
    has: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All slices of a source, a hash of the source's content, and its revision where it has one."""

    slices: tuple[Slice, ...]
    fingerprint: str
    revision: str | None

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)


def limits(slice_documents: int, max_documents: int | None, source_bytes: int) -> Limits:
    """How finely to cut a source. Depends on the source and the recipe only, never on the number of workers."""
    rows = slice_documents
    if max_documents is not None:
        rows = min(rows, max(1024, max_documents // _SLICES_OF_SMALL_SOURCE))
    return Limits(rows, max(_LEAST_SLICE_BYTES, source_bytes // _SLICES_OF_SMALL_SOURCE), max_documents)


def gather(parts: Iterable[Part], limit: Limits) -> tuple[Slice, ...]:
    """Join parts, in order, into slices within the limits; a part that exceeds them alone is a slice alone."""
    groups: list[list[Part]] = []
    rows = size = 0
    for part in parts:
        if not groups or rows + part.rows > limit.rows or size + part.size > limit.size:
            groups.append([])
            rows = size = 0
        groups[-1].append(part)
        rows, size = rows + part.rows, size + part.size
    return tuple(Slice(number, tuple(group)) for number, group in enumerate(groups))


def first_rows(parts: Iterable[Part], most: int | None) -> Iterator[Part]:
    """The parts up to `most` rows in all; a part's readers stop at its count of rows, so the last may be cut."""
    left = most
    for part in parts:
        if left is None:
            yield part
            continue
        if left <= 0:
            return
        take = min(left, part.rows)
        left -= take
        yield Part(part.file, part.url, part.first_row, take, part.size, part.start, part.stop)


class Cutter:
    """Cuts the records of one stream into parts: `add` each record's bytes in turn, then take `parts`."""

    def __init__(self, file: SourceFile, limit: Limits, offset: int = 0) -> None:
        self._file, self._limit = file, limit
        self._position = offset
        self._rows = self._size = 0
        self._cuts = [(0, offset)]

    def add(self, size: int) -> None:
        if self._rows - self._cuts[-1][0] >= self._limit.rows or self._size >= self._limit.size:
            self._cuts.append((self._rows, self._position))
            self._size = 0
        self._rows, self._position, self._size = self._rows + 1, self._position + size, self._size + size

    @property
    def rows(self) -> int:
        return self._rows

    def parts(self) -> tuple[Part, ...]:
        ends = [*self._cuts, (self._rows, self._position)]
        return tuple(
            Part(self._file.name, self._file.url, row, end_row - row, stop - start, start, stop)
            for (row, start), (end_row, stop) in pairwise(ends)
            if end_row > row
        )
