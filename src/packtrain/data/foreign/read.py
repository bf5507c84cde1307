"""Decides how files of ids of other programs are read: their headers, their width, and where one document ends.

nanoGPT: `data/*/prepare.py`; llm.c: `dev/data/data_common.py`; Megatron-LM: `megatron/core/datasets/indexed_dataset.py`;
datatrove: `pipeline/tokens/tokenizer.py`. All integers are little-endian.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from packtrain.errors import SourceError
from packtrain.storage.files import filesystem, open_raw

TokenFormat = Literal["nanogpt", "llmc", "megatron", "datatrove"]
EotPosition = Literal["end", "begin", "both"]
Ids = npt.NDArray[Any]

LLMC_HEADER_BYTES = 1024
LLMC_HEADERS = {"u2": (20240520, 1), "u4": (20240801, 7)}
"""By width of an id, the magic number and version that an llm.c file begins with; then comes the number of ids."""
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_HEADER = np.dtype([("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("documents", "<u8")])
MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""By code, the integer types that an .idx file may name; 6 and 7 are floats."""

MAX_DOCUMENT_TOKENS = 1 << 25
_READ_IDS = 1 << 20
_READ_DOCUMENTS = 1 << 16


class Member(NamedTuple):
    """Ids of a stream that lie in one file: where they begin in it, in bytes, and how many there are."""

    url: str
    offset: int
    tokens: int


class IdStream(ABC):
    """Ids of one or more files, one after the other, and the documents that they make up."""

    def __init__(self, name: str, members: Sequence[Member], dtype: str) -> None:
        self.name = name
        self.members = tuple(members)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.tokens = sum(member.tokens for member in members)

    def read(self, start: int, stop: int) -> Ids:
        """Ids at positions start to stop, in the width they have on disk."""
        pieces = []
        for member in self.members:
            first, last = max(start, 0), min(stop, member.tokens)
            if first < last:
                pieces.append(_read(member, self.dtype, first, last))
            start, stop = start - member.tokens, stop - member.tokens
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def chunks(self, start: int = 0) -> Iterator[tuple[int, Ids]]:
        """All ids from a position on, a million at a time, with the position of the first."""
        for position in range(start, self.tokens, _READ_IDS):
            yield position, self.read(position, min(position + _READ_IDS, self.tokens))

    def documents(self, row: int, start: int) -> Iterator[Ids]:
        """Documents in order from the one of number `row`, whose first id is at `start`; of bounded memory."""
        held: list[Ids] = []
        for position, ids, ends in self.borders(row, start):
            first = 0
            for end in (ends - position).tolist():
                yield np.concatenate([*held, ids[first:end]]) if held else ids[first:end]
                held, first = [], end
            if first < len(ids):
                held.append(ids[first:])
            if sum(len(part) for part in held) > MAX_DOCUMENT_TOKENS:
                raise SourceError(
                    f"{self.name} has a document of more than {MAX_DOCUMENT_TOKENS:,} ids; give the id that stands between "
                    "documents with --eot ID"
                )
        assert not held, "a stream ends with a document"

    @abstractmethod
    def borders(self, row: int, start: int) -> Iterator[tuple[int, Ids, npt.NDArray[np.int64]]]:
        """All ids from `start`, where document `row` begins: position of a chunk, its ids, and the ends of documents in it."""


class Delimited(IdStream):
    """Documents with an id `eot` at their end, at their beginning, or at both; without one each stream is a document."""

    def __init__(
        self, name: str, members: Sequence[Member], dtype: str, eot: int | None, position: EotPosition
    ) -> None:
        super().__init__(name, members, dtype)
        self.eot, self.position = eot, position

    def borders(self, row: int, start: int) -> Iterator[tuple[int, Ids, npt.NDArray[np.int64]]]:  # noqa: ARG002
        seen = 0
        for position, ids in self.chunks(start):
            found = np.flatnonzero(ids == self.eot) if self.eot is not None else np.empty(0, np.int64)
            if self.position == "end":
                ends = position + found + 1
            elif self.position == "begin":
                ends = position + found
                ends = ends[ends > start]
            else:
                # Of each pair the second ends a document.
                ends = position + found[(seen + np.arange(len(found))) % 2 == 1] + 1
                seen += len(found)
            last = position + len(ids)
            if last == self.tokens and (not len(ends) or ends[-1] < last):
                ends = np.append(ends, last)
            yield position, ids, ends

    def guessed_position(self, usual: EotPosition) -> EotPosition:
        """Where `eot` stands, by the first and last id of the stream; `usual` where these do not tell."""
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
    """Documents whose ends an index of the format names."""

    def __init__(self, name: str, members: Sequence[Member], dtype: str, num_documents: int) -> None:
        super().__init__(name, members, dtype)
        self.num_documents = num_documents

    @abstractmethod
    def ends(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Ends of the documents first to stop, positions in the stream."""

    def borders(self, row: int, start: int) -> Iterator[tuple[int, Ids, npt.NDArray[np.int64]]]:
        for first in range(row, self.num_documents, _READ_DOCUMENTS):
            ends = self.ends(first, min(first + _READ_DOCUMENTS, self.num_documents))
            while len(ends):
                # Whole documents of about a chunk, so that their ends are in it.
                count = max(1, int(np.searchsorted(ends, start + _READ_IDS, side="right")))
                stop = int(ends[count - 1])
                yield start, self.read(start, stop), ends[:count]
                start, ends = stop, ends[count:]


class Megatron(Indexed):
    """A .bin beside its .idx: a document is one or more sequences."""

    def __init__(self, idx_url: str, name: str) -> None:
        self._url, self.name = idx_url, name
        size = _size(idx_url)
        head = len(MEGATRON_MAGIC) + MEGATRON_HEADER.itemsize
        begins = _bytes(idx_url, 0, head)
        if not begins.startswith(MEGATRON_MAGIC):
            raise SourceError(_no_magic(name, "a Megatron index", "MMIDIDX"))
        if len(begins) < head:
            raise SourceError(
                f"{name} is cut short: it has {size} bytes, and a Megatron index has {head} before its first entry"
            )
        header = np.frombuffer(begins, MEGATRON_HEADER, offset=len(MEGATRON_MAGIC))[0]
        self._sequences, documents = int(header["sequences"]), int(header["documents"])
        dtype = MEGATRON_DTYPES.get(int(header["code"]))
        if int(header["version"]) != 1 or dtype is None:
            raise SourceError(
                f"{name} has version {header['version']} and id type {header['code']}; this reads version 1 with integer ids "
                f"(types {', '.join(map(str, MEGATRON_DTYPES))})"
            )
        self._lengths_at = head
        self._pointers_at = head + 4 * self._sequences
        self._documents_at = self._pointers_at + 8 * self._sequences
        wanted = self._documents_at + 8 * documents
        if size != wanted:
            raise SourceError(
                f"{name} has {size} bytes, but {self._sequences} sequences and {documents} document borders take {wanted}; it is "
                "cut short, or of images and text, which cannot be imported"
            )
        self._width = np.dtype(dtype).itemsize
        bin_url = idx_url.removesuffix(".idx") + ".bin"
        self._tokens = _whole_ids(bin_url, name.removesuffix(".idx") + ".bin", 0, self._width)
        super().__init__(name, [Member(bin_url, 0, self._tokens)], dtype, max(0, documents - 1))
        self._check()

    def ends(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        return self._starts(self._array(self._documents_at, "<i8", first + 1, stop + 1))

    def _starts(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Position of the first id of each sequence; the end of the stream for the one behind the last."""
        if not len(sequences):
            return sequences
        low, high = int(sequences[0]), min(int(sequences[-1]) + 1, self._sequences)
        starts = self._array(self._pointers_at, "<i8", low, high) // self._width
        return np.append(starts, self.tokens)[np.minimum(sequences - low, len(starts))]

    def _check(self) -> None:
        """Sequences lie one after the other to the end of the .bin, and documents are made of them in order."""
        position = 0
        for first in range(0, self._sequences, _READ_IDS):
            stop = min(first + _READ_IDS, self._sequences)
            lengths = self._array(self._lengths_at, "<i4", first, stop).astype(np.int64)
            pointers = self._array(self._pointers_at, "<i8", first, stop)
            starts = position + np.concatenate([[0], np.cumsum(lengths)])
            wrong = np.flatnonzero((pointers != starts[:-1] * self._width) | (lengths < 0))
            if len(wrong):
                raise SourceError(
                    f"{self.name}: sequence {first + int(wrong[0])} does not begin where the one before it ends; such an index "
                    "cannot be imported: write it again with Megatron's tools"
                )
            position = int(starts[-1])
        if position != self.tokens:
            raise SourceError(
                f"{self.name} accounts for {position} ids, its .bin holds {self.tokens}; they do not belong together, or one is "
                "cut short"
            )
        before = 0
        for first in range(0, self.num_documents + 1, _READ_IDS):
            borders = self._array(self._documents_at, "<i8", first, min(first + _READ_IDS, self.num_documents + 1))
            steps = np.diff(borders, prepend=before)
            if (steps < 0).any() or (first == 0 and borders[0] != 0) or int(borders[-1]) > self._sequences:
                raise SourceError(
                    f"{self.name}: a border of documents lies before the one before it or beyond the {self._sequences} sequences; "
                    "the index is damaged"
                )
            before = int(borders[-1])
        if before != self._sequences:
            raise SourceError(
                f"{self.name} has {self._sequences} sequences, but its documents end at number {before}; the index is damaged"
            )

    def _array(self, offset: int, dtype: str, first: int, stop: int) -> npt.NDArray[Any]:
        width = np.dtype(dtype).itemsize
        return np.frombuffer(_bytes(self._url, offset + first * width, (stop - first) * width), dtype)


class Datatrove(Indexed):
    """A .ds beside its .ds.index of document ends."""

    def __init__(self, url: str, name: str, width: int | None) -> None:
        self._url = url
        index_bytes, size = _size(url + ".index"), _size(url)
        if index_bytes % 8:
            raise SourceError(
                f"{name}.index has {index_bytes} bytes, which is no whole number of document ends of 8; it is cut short"
            )
        super().__init__(name, [], "<u2", index_bytes // 8)
        last = int(self.ends(self.num_documents - 1, self.num_documents)[0]) if self.num_documents else 0
        widths = [w for w in (2, 4) if w == (width or w) and last * w == size]
        if not widths or (width is None and not last):
            raise SourceError(
                f"{name} has {size} bytes, its index ends at {last} ids"
                + (f" of {width} bytes" if width else ", of 2 or 4 bytes each")
                + "; they do not belong together, or one is cut short"
            )
        super().__init__(name, [Member(url, 0, last)], f"<u{widths[0]}", self.num_documents)
        self._check(name)

    def ends(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        return np.frombuffer(_bytes(self._url + ".index", 8 * first, 8 * (stop - first)), "<i8")

    def _check(self, name: str) -> None:
        before = 0
        for first in range(0, self.num_documents, _READ_IDS):
            ends = self.ends(first, min(first + _READ_IDS, self.num_documents))
            if (np.diff(ends, prepend=before) < 0).any():
                raise SourceError(f"{name}.index names a document that ends before the one before it; it is damaged")
            before = int(ends[-1])


def open_ids(kind: TokenFormat, url: str, name: str, eot: int | None, position: EotPosition) -> IdStream:
    """A stream of one format; `url` has a file a line where several make up one stream.

    Raises SourceError for a file that is cut short, of another format, or whose index does not fit it.
    """
    urls = url.split("\n")
    if kind == "megatron":
        return Megatron(url, name)
    if kind == "datatrove":
        width = _datatrove_width(url, name)
        if _exists(url + ".index"):
            return Datatrove(url, name, width)
        if width is None:
            raise SourceError(
                f"{name} has neither {name}.index nor {name}.metadata beside it, which say how wide its ids are; put one there"
            )
        return Delimited(name, [Member(url, 0, _whole_ids(url, name, 0, width))], f"<u{width}", eot, position)
    if kind == "nanogpt":
        if _size(url) >= 4 and int.from_bytes(_bytes(url, 0, 4), "little") in {
            magic for magic, _ in LLMC_HEADERS.values()
        }:
            raise SourceError(f"{name} begins with the header of an llm.c file, not with ids; write --format llmc")
        return Delimited(name, [Member(url, 0, _whole_ids(url, name, 0, 2))], "<u2", eot, position)
    opened = [_llmc_member(u, name if len(urls) == 1 else u.rpartition("/")[2]) for u in urls]
    if len({dtype for _, dtype in opened}) > 1:
        raise SourceError(
            f"{name}: its files have ids of different widths, so they are not of one dataset; name one with a pattern"
        )
    return Delimited(name, [member for member, _ in opened], f"<{opened[0][1]}", eot, position)


def _llmc_member(url: str, name: str) -> tuple[Member, str]:
    header = np.frombuffer(_bytes(url, 0, LLMC_HEADER_BYTES).ljust(12, b"\0")[:12], "<i4")
    dtype = next((d for d, known in LLMC_HEADERS.items() if known == (int(header[0]), int(header[1]))), None)
    if dtype is None:
        known = " or ".join(f"{magic} version {version}" for magic, version in LLMC_HEADERS.values())
        raise SourceError(_no_magic(name, "an llm.c data file", known))
    tokens = _whole_ids(url, name, LLMC_HEADER_BYTES, np.dtype(dtype).itemsize)
    if tokens != int(header[2]):
        raise SourceError(
            f"{name} holds {tokens} ids, its header says {int(header[2])}; it is cut short or was joined with another"
        )
    return Member(url, LLMC_HEADER_BYTES, tokens), dtype


def _datatrove_width(url: str, name: str) -> int | None:
    """Bytes of an id as the .metadata file says, whose first line is TOKENIZER|BYTES; None without one."""
    if not _exists(url + ".metadata"):
        return None
    first = _bytes(url + ".metadata", 0, 4096).decode("utf-8", "replace").partition("\n")[0]
    width = first.rpartition("|")[2]
    if width not in ("2", "4"):
        raise SourceError(
            f"{name}.metadata does not say in its first line whether ids have 2 or 4 bytes (TOKENIZER|2); mend or remove it"
        )
    return int(width)


def _whole_ids(url: str, name: str, offset: int, width: int) -> int:
    size = _size(url) - offset
    if size < 0 or size % width:
        raise SourceError(
            f"{name} has {size + offset} bytes, which is no whole number of ids of {width} bytes; it is cut short, or of another format"
        )
    return size // width


def _no_magic(name: str, what: str, wanted: str) -> str:
    return f"{name} is not {what}, as it does not begin with {wanted}; write the --format that it has (nanogpt, llmc, megatron, datatrove)"


def _read(member: Member, dtype: np.dtype[Any], first: int, last: int) -> Ids:
    width = dtype.itemsize
    return np.frombuffer(_bytes(member.url, member.offset + first * width, (last - first) * width), dtype)


def _bytes(url: str, start: int, count: int) -> bytes:
    with open_raw(url) as file:
        file.seek(start)
        return file.read(count)


def _size(url: str) -> int:
    with open_raw(url) as file:
        return file.seek(0, 2)


def _exists(url: str) -> bool:
    fs, path = filesystem(url)
    return bool(fs.exists(path))
