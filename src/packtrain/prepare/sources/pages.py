"""Decides how many rows of a parquet file are decoded at a time, from the headers of its pages, before any is decompressed.

The format: `parquet.thrift` of apache/parquet-format, in Thrift's compact protocol.
"""

import struct
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import list_names

_MOST_ROWS = 256
# A page takes about three times its size. With these a worker stays below 1 GB.
_MOST_PAGE_BYTES = 256 << 20
_LARGE_PAGE_BYTES = 128 << 20
_BATCH_BYTES = 64 << 20
# The usual dictionary has a few MB: for it, batches are larger, as small ones take time.
_SHARED_BATCH_BYTES, _SMALL_DICTIONARY_BYTES = 192 << 20, 48 << 20
# Looking through a remote chunk fetches it a second time.
_LARGE_REMOTE_CHUNK_BYTES = 128 << 20
_DELTA_BYTE_ARRAY = 7
_MOST_HEADER_BYTES = 16 << 20
_MOST_DEPTH = 32


class BatchPlan(NamedTuple):
    """How many rows to decode at a time, and how many bytes the columns of a row group have in the file, at most."""

    rows: int
    group_bytes: int


class _Chunk(NamedTuple):
    """The pages of a column in a row group: the column's name, the bytes where they begin and end, values, size decompressed."""

    column: str
    start: int
    stop: int
    values: int
    size: int


class _Page(NamedTuple):
    """A page: its size decompressed, its number of values, and whether a stored byte can stand for many."""

    size: int
    values: int
    is_shared: bool


def plan_batches(
    name: str, raw: BinaryIO, footer: bytes, groups: Collection[int], columns: Collection[str], *, is_local: bool
) -> BatchPlan:
    """Find how to decode columns of a file's row groups in bounded memory, although one large value may stand for many rows.

    Raises SourceError for a page that is too large in any case, and ArrowInvalid for headers that cannot be read.
    """
    rows, group_bytes = _MOST_ROWS, 0
    try:
        for number in groups:
            chunks = _read_footer(footer)[number]
            wanted = [c for c in chunks if any(f"{c.column}.".startswith(f"{column}.") for column in columns)]
            rows = min([rows, *(_rows_at_a_time(name, raw, chunk, is_local) for chunk in wanted)])
            group_bytes = max(group_bytes, sum(chunk.stop - chunk.start for chunk in wanted))
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, OverflowError, struct.error):
        raise pa.ArrowInvalid("its footer or the header of a page is damaged") from None
    return BatchPlan(rows, group_bytes)


def _rows_at_a_time(name: str, raw: BinaryIO, chunk: _Chunk, is_local: bool) -> int:
    pages = _read_pages(raw, chunk)
    if not is_local and chunk.size <= _LARGE_REMOTE_CHUNK_BYTES:
        # The first page is the dictionary, if there is one.
        pages = islice(pages, 1 if chunk.size * _MOST_ROWS > _BATCH_BYTES else 0)
    rows = _MOST_ROWS
    for page in pages:
        limit = _LARGE_PAGE_BYTES if page.is_shared else _MOST_PAGE_BYTES
        if page.size > limit:
            raise SourceError(
                f"{name}: a page of the column {list_names([chunk.column])} has {page.size >> 20} MB decompressed, and at most "
                f"{limit >> 20} MB are read at once: it holds a very large record, or many in one piece; write the file again "
                "with smaller pages and records, or leave it out of source.path"
            )
        # If each page has few bytes for a row, so has any run of rows, but for the pages in which it begins and ends.
        row_bytes = page.size if page.is_shared else page.size // max(1, page.values)
        most = _SHARED_BATCH_BYTES if page.is_shared and page.size <= _SMALL_DICTIONARY_BYTES else _BATCH_BYTES
        rows = min(rows, most // max(1, row_bytes) if page.size <= _LARGE_PAGE_BYTES else 1)
    return max(1, rows)


@lru_cache(maxsize=4)
def _read_footer(footer: bytes) -> list[list[_Chunk]]:
    """The chunks of each row group. Parsed here, as asking pyarrow 26 for a damaged one kills the process."""
    groups = _Thrift(footer).read_struct()[4]
    return [[_read_chunk(column[3]) for column in group[1] if 3 in column] for group in groups]


def _read_chunk(column: dict[int, Any]) -> _Chunk:
    start = column[9]
    if 0 < column.get(11, 0) < start:
        start = column[11]
    return _Chunk(b".".join(column[3]).decode("utf-8", "replace"), start, start + column[7], column[5], column[6])


def _read_pages(raw: BinaryIO, chunk: _Chunk) -> Iterator[_Page]:
    at, seen = chunk.start, 0
    while at < chunk.stop and seen < chunk.values:
        header, length = _read_header(raw, at)
        size, stored = header[2], header[3]
        if size < 0 or stored < 0:
            raise ValueError("a page of less than no bytes")
        data = header.get(5) or header.get(8)
        is_dictionary = data is None
        values = 0 if data is None else data[1]
        encoding = None if data is None else data[2 if 5 in header else 4]
        yield _Page(size, values, is_dictionary or encoding == _DELTA_BYTE_ARRAY)
        at, seen = at + length + stored, seen + values


def _read_header(raw: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """The header of the page at a byte, and its length, which only parsing it tells."""
    length = 256
    while True:
        raw.seek(at)
        data = raw.read(length)
        thrift = _Thrift(data)
        try:
            return thrift.read_struct(), thrift.at
        except IndexError:
            if len(data) < length or length >= _MOST_HEADER_BYTES:
                raise
            length *= 16


class _Thrift:
    """Reads structs as dicts from a field's number to its value. Raises IndexError if the data end too early."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (byte := self._byte()) != 0:
            number = number + (byte >> 4) if byte >> 4 else self._integer()
            kind = byte & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MOST_DEPTH:
            raise ValueError("too deep")
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:
            return self._take(self._varint())
        if kind == 12:
            return self.read_struct(depth + 1)
        if kind in (9, 10):
            byte = self._byte()
            count = byte >> 4 if byte >> 4 < 15 else self._varint()
            return [self._value(byte & 15, depth + 1) for _ in range(count)]
        if kind == 11:
            count = self._varint()
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)]
        # Truth values in lists, bytes, floats and UUIDs: none of them matters here.
        return self._take({1: 1, 2: 1, 3: 1, 7: 8, 13: 16}[kind])

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _take(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.data):
            raise IndexError("the data end too early")
        return self.data[self.at - count : self.at]
