"""Decides how ids in files become documents: by an id between documents, or by an index of their ends."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from packtrain.errors import SourceError
from packtrain.storage.files import filesystem, open_raw

EotPosition = Literal["end", "begin", "both"]
Ids = np.ndarray

MAX_DOCUMENT_TOKENS = 1 << 25
READ_IDS = 1 << 20
_READ_DOCUMENTS = 1 << 16


class Member(NamedTuple):
    """The ids of a stream that are in one file: where they begin, in bytes, and how many there are."""

    url: str
    offset: int
    tokens: int


class IdStream(ABC):
    """The ids of one or more files, one after the other, and the documents that they make up."""

    def __init__(self, name: str, members: Sequence[Member], dtype: str) -> None:
        self.name = name
        self.members = tuple(members)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.tokens = sum(member.tokens for member in members)

    def read(self, start: int, stop: int) -> Ids:
        """Ids at positions start to stop, in the width that they have on disk."""
        pieces = []
        for member in self.members:
            first, last = max(start, 0), min(stop, member.tokens)
            if first < last:
                pieces.append(read_array(member.url, member.offset, self.dtype, first, last))
            start, stop = start - member.tokens, stop - member.tokens
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def chunks(self, start: int = 0) -> Iterator[tuple[int, Ids]]:
        """All ids from a position on, a million at a time, with the position of the first."""
        for position in range(start, self.tokens, READ_IDS):
            yield position, self.read(position, min(position + READ_IDS, self.tokens))

    def documents(self, row: int, start: int) -> Iterator[Ids]:
        """Documents in order from number `row` on, whose first id is at `start`. Memory is bounded."""
        begun: list[Ids] = []
        for position, ids, ends in self.borders(row, start):
            first = 0
            for end in (ends - position).tolist():
                yield np.concatenate([*begun, ids[first:end]]) if begun else ids[first:end]
                begun, first = [], end
            if first < len(ids):
                begun.append(ids[first:])
            if sum(len(part) for part in begun) > MAX_DOCUMENT_TOKENS:
                raise SourceError(
                    f"{self.name} has a document of more than {MAX_DOCUMENT_TOKENS:,} ids; give the id that stands between "
                    "documents with --eot ID"
                )
        assert not begun, "a stream ends with a document"

    @abstractmethod
    def borders(self, row: int, start: int) -> Iterator[tuple[int, Ids, np.ndarray]]:
        """All ids from `start`, where document `row` begins, in chunks: position, ids, and the ends of documents in them."""


class Delimited(IdStream):
    """Documents with an id `eot` at the end, at the beginning, or at both. Without one the stream is a single document."""

    def __init__(
        self, name: str, members: Sequence[Member], dtype: str, eot: int | None, position: EotPosition
    ) -> None:
        super().__init__(name, members, dtype)
        self.eot, self.position = eot, position

    def borders(self, row: int, start: int) -> Iterator[tuple[int, Ids, np.ndarray]]:  # noqa: ARG002
        seen = 0
        for position, ids in self.chunks(start):
            found = np.flatnonzero(ids == self.eot) if self.eot is not None else np.empty(0, np.int64)
            if self.position == "end":
                ends = position + found + 1
            elif self.position == "begin":
                ends = position + found
                ends = ends[ends > start]
            else:
                # The second of each pair ends a document.
                ends = position + found[(seen + np.arange(len(found))) % 2 == 1] + 1
                seen += len(found)
            last = position + len(ids)
            if last == self.tokens and (not len(ends) or ends[-1] < last):
                ends = np.append(ends, last)
            yield position, ids, ends

    def guess_position(self, usual: EotPosition) -> EotPosition:
        """Where `eot` stands, judged by the first and last ids of the stream; `usual` if they do not show it."""
        if not self.tokens:
            return usual
        first, second = (int(i) for i in np.resize(self.read(0, min(2, self.tokens)), 2))
        last = int(self.read(self.tokens - 1, self.tokens)[0])
        if (first == self.eot) == (last == self.eot):
            return "both" if first == self.eot and second != self.eot and self._is_paired() else usual
        return "begin" if first == self.eot else "end"

    def _is_paired(self) -> bool:
        _, ids = next(self.chunks())
        found = np.flatnonzero(ids == self.eot)
        if len(found) < 3:
            return len(found) == 2 and len(ids) == self.tokens
        return bool((np.diff(found)[1::2] == 1).all())


class Indexed(IdStream):
    """Documents whose ends are in an index."""

    def __init__(self, name: str, members: Sequence[Member], dtype: str, num_documents: int) -> None:
        super().__init__(name, members, dtype)
        self.num_documents = num_documents

    @abstractmethod
    def ends(self, first: int, stop: int) -> np.ndarray:
        """Ends of the documents first to stop, as positions in the stream."""

    def borders(self, row: int, start: int) -> Iterator[tuple[int, Ids, np.ndarray]]:
        for first in range(row, self.num_documents, _READ_DOCUMENTS):
            ends = self.ends(first, min(first + _READ_DOCUMENTS, self.num_documents))
            while len(ends):
                # Whole documents of about a chunk, so that it contains their ends.
                count = max(1, int(np.searchsorted(ends, start + READ_IDS, side="right")))
                stop = int(ends[count - 1])
                yield start, self.read(start, stop), ends[:count]
                start, ends = stop, ends[count:]


def count_ids(url: str, name: str, offset: int, width: int) -> int:
    """Ids of `width` bytes in a file after `offset`. Raises SourceError if they do not fill it."""
    size = size_of(url) - offset
    if size < 0 or size % width:
        raise SourceError(
            f"{name} has {size + offset} bytes, which is not a whole number of ids of {width} bytes; it is cut short, or has "
            "another format"
        )
    return size // width


def no_magic(name: str, what: str, wanted: str) -> str:
    """The error for a file that does not begin as its format does."""
    return f"{name} is not {what}, because it does not begin with {wanted}; write its --format (nanogpt, llmc, megatron, datatrove)"


def read_array(url: str, offset: int, dtype: Any, first: int, stop: int) -> np.ndarray:
    """Entries first to stop of the array that begins at a byte of a file."""
    width = np.dtype(dtype).itemsize
    return np.frombuffer(read_bytes(url, offset + first * width, (stop - first) * width), dtype)


def read_bytes(url: str, start: int, count: int) -> bytes:
    """At most `count` bytes of a file."""
    with open_raw(url) as file:
        file.seek(start)
        return file.read(count)


def size_of(url: str) -> int:
    """Bytes of a file."""
    with open_raw(url) as file:
        return file.seek(0, 2)


def is_file(url: str) -> bool:
    """Whether there is a file at a path or URL: not a folder, and not a pipe, which would never end."""
    fs, path = filesystem(url)
    return bool(fs.isfile(path))


def file_exists(url: str) -> bool:
    """Whether a path or URL exists."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))
