"""Decides how a stream is cut into records of bounded size: at a separator, or into the objects of a JSON array."""

import io
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, cast

import xxhash

from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import TOO_LARGE, Cutter, Limits, Part, Row, SourceFile
from packtrain.storage.files import open_stream, reading, skip_to

CHUNK = 1 << 20

# What begins a file that is one array of objects. Anything else is read as lines.
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[[ \t\r\n]*(?=\{)")
_BEFORE_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*(?:\[|\Z)")
_COMMA = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*")
_END = re.compile(rb"[ \t\r\n]*\][ \t\r\n]*")
_BEHIND_OBJECT = b" \t\r\n,]"
# The most bytes before the first object of an array, and between two.
_MOST_BETWEEN = 1 << 16
_IN_STRING = re.compile(rb"(?:[^\"\\]++|\\.)*+", re.DOTALL)
# Whole strings are passed over at once, as there may be millions of short ones.
_OUTSIDE_STRING = re.compile(rb"(?:[^\"{}\[\]]++|\"(?:[^\"\\]++|\\.)*+\")*+", re.DOTALL)


class LargeRecord(NamedTuple):
    """What is known of a record that is larger than source.max_document_mb allows."""

    size: int
    digest: bytes

    def as_row(self, file: str, number: int) -> Row:
        return Row(file, number, None, None, TOO_LARGE, f"it has {self.size:,} bytes", size=self.size)


class BlankRun(NamedTuple):
    """A megabyte or so that holds nothing but blank records."""

    rows: int
    size: int


class Separator:
    """What ends a record. A line end in it stands for CRLF as well, unless `is_exact`."""

    def __init__(self, text: str, *, is_exact: bool = False) -> None:
        literal = re.escape(text.encode())
        self._plain = re.compile(literal)
        # Ten times as slow, as it begins with something optional.
        self._any_line_end = self._plain if is_exact else re.compile(literal.replace(b"\\\n", rb"\r?\n"))
        self.most_bytes = 2 * len(text.encode())

    def in_data(self, data: bytes) -> re.Pattern[bytes]:
        """The pattern to look for in these bytes."""
        return self._any_line_end if b"\r" in data else self._plain


LINE_END = Separator("\n", is_exact=True)


def scan_records(
    file: SourceFile,
    limits: Limits,
    most: int,
    separator: Separator | None,
    see: Callable[[bytes, int], None] = lambda _record, _row: None,
) -> tuple[Part, ...]:
    """Cut a file into parts of whole records of up to `most` bytes; `see` gets each, and its number. Reads the file once.

    Without a separator, the records are lines, or the objects of an array if the file is one.
    """
    with reading(file.name), open_stream(file.url) as stream:
        start = _find_array(stream, file.url) if separator is None else None
        cutter = Cutter(file, limits, start or 0, is_compressed=not stream.seekable())
        for record in _open_records(stream, start, separator, most, file.name, joins_blanks=True):
            if isinstance(record, bytes):
                see(record if start is None else record.rstrip(_BEHIND_OBJECT), cutter.rows)
                cutter.add(len(record), record)
            elif isinstance(record, LargeRecord):
                cutter.add(record.size, record.digest)
            else:
                cutter.skip(record.rows, record.size)
            if limits.total_rows is not None and cutter.rows >= limits.total_rows:
                break
    return cutter.parts()


def read_records(part: Part, most: int, separator: Separator | None) -> Iterator[tuple[int, bytes | LargeRecord]]:
    """Yield the number and content of each record of a part. Raises SourceError if they are not those that were planned."""
    digest = xxhash.xxh3_128()
    with reading(part.file), open_stream(part.url) as stream:
        is_array = separator is None and _find_array(stream, part.url) is not None
        records = _open_records(stream, part.start, None if is_array else separator or LINE_END, most, part.file)
        for number, record in zip(range(part.rows), records, strict=False):
            assert not isinstance(record, BlankRun)
            digest.update(record if isinstance(record, bytes) else record.digest)
            if is_array and isinstance(record, bytes):
                record = record.rstrip(_BEHIND_OBJECT)
            yield part.first_row + number, record
    part.check_unchanged(digest.hexdigest())


def _open_records(
    stream: BinaryIO,
    start: int | None,
    separator: Separator | None,
    most: int,
    name: str,
    *,
    joins_blanks: bool = False,
) -> Iterator[bytes | LargeRecord | BlankRun]:
    """The records from the byte `start` on. Without a separator, they are those of an array, or lines if `start` is None."""
    if start:
        skip_to(stream, start)
    if start is not None and separator is None:
        return split_array(stream, most, name)
    return split_records(stream, separator or LINE_END, most, joins_blanks=joins_blanks)


def split_records(
    stream: BinaryIO, separator: Separator, most: int, *, joins_blanks: bool = False
) -> Iterator[bytes | LargeRecord | BlankRun]:
    """Yield records with the separator that ends each; the last may have none. Holds one record and a megabyte.

    `joins_blanks`: if a megabyte holds nothing but blank records, they are yielded as one BlankRun.
    """
    overlap = separator.most_bytes
    large = GrowingRecord(most)
    rest = b""
    while chunk := stream.read(CHUNK):
        data, searched, start = rest + chunk, max(0, len(rest) - overlap), 0
        if joins_blanks and len(chunk) == CHUNK and not large.size and (run := _find_blanks(data, separator)):
            yield run
            rest = data[run.size :]
            continue
        for match in separator.in_data(data).finditer(data, searched):
            record, start = data[start : match.end()], match.end()
            if large.size or len(record) > most:
                large.add(record)
                yield large.end()
                large = GrowingRecord(most)
            else:
                yield record
        rest = data[start:]
        # What grows in pieces is copied once, and searched once.
        if len(rest) > CHUNK:
            large.add(rest[:-overlap])
            rest = rest[-overlap:]
    if large.size or len(rest) > most:
        large.add(rest)
        yield large.end()
    elif rest:
        yield rest


def _find_blanks(data: bytes, separator: Separator) -> BlankRun | None:
    """The records of `data`, if there is nothing but blank ones."""
    if separator is LINE_END:
        # In plain C, as there may be gigabytes of them.
        return BlankRun(data.count(b"\n"), data.rfind(b"\n") + 1) if data.isspace() and b"\n" in data else None
    pattern = separator.in_data(data[:CHUNK])
    if not (pattern.match(data) or data.isspace()):
        return None
    *records, rest = separator.in_data(data).split(data)
    # The rest is blank too, or part of a separator.
    is_blank = records and len(rest) <= separator.most_bytes and not b"".join(records).strip()
    return BlankRun(len(records), len(data) - len(rest)) if is_blank else None


class GrowingRecord:
    """A record that arrives in pieces; held only while it is not too large."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pieces: list[bytes] = []
        self._digest = xxhash.xxh3_128()
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._digest.update(piece)
        if self.size <= self._most:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def digest(self) -> bytes:
        return self._digest.digest()

    def end(self) -> bytes | LargeRecord:
        """The record, now that all of it was added."""
        return LargeRecord(self.size, self.digest()) if self.size > self._most else b"".join(self._pieces)


def _find_array(stream: BinaryIO, url: str) -> int | None:
    """Where the first object of a file begins, if the file is an array of objects. The stream, newly opened, is not advanced."""
    if not _BEFORE_ARRAY.match(cast(io.BufferedReader, stream).peek(CHUNK)):
        return None
    with open_stream(url) as again:
        found = _ARRAY.match(again.read(_MOST_BETWEEN))
    return None if found is None else found.end()


def split_array(stream: BinaryIO, most: int, name: str) -> Iterator[bytes | LargeRecord]:
    """Yield the objects of an array, each with what is between it and the next, from the beginning of one to the end.

    Only brackets and strings are looked at, so an object may still be broken. Raises SourceError if anything but commas is
    between them, or if the array does not end.
    """
    record = GrowingRecord(most)
    depth, in_string, between, left = 0, False, b"", b""
    while chunk := stream.read(CHUNK):
        chunk, at = left + chunk, 0
        while at < len(chunk):
            start = at
            if depth == 0:
                at = end if (end := chunk.find(b"{", start)) >= 0 else len(chunk)
                between += chunk[start:at]
                if len(between) > _MOST_BETWEEN:
                    raise _not_an_array(name, between)
                if at == len(chunk):
                    break
                if record.size and not _COMMA.fullmatch(between):
                    raise _not_an_array(name, between)
                if record.size:
                    record.add(between)
                    yield record.end()
                record = GrowingRecord(most)
                between, depth, start, at = b"", 1, at, at + 1
            elif in_string:
                at = _IN_STRING.match(chunk, start).end()  # type: ignore[union-attr]
                if at < len(chunk) and chunk[at] == 0x5C:
                    # Half of an escape sequence waits for the other half.
                    record.add(chunk[start:at])
                    break
                in_string, at = at == len(chunk), min(at + 1, len(chunk))
            else:
                at = _OUTSIDE_STRING.match(chunk, start).end()  # type: ignore[union-attr]
                token, at = chunk[at : at + 1], min(at + 1, len(chunk))
                in_string = token == b'"'
                depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
            record.add(chunk[start:at])
        left = chunk[at:]
    if depth or left or not _END.fullmatch(between):
        raise _not_an_array(name, between)
    record.add(between)
    yield record.end()


def _not_an_array(name: str, between: bytes) -> SourceError:
    found = f"has {between[:40]!r} between or behind its objects" if between.strip() else "ends within its array"
    return SourceError(
        f"{name} begins as a JSON array of objects, but {found}; fix it, or write one object per line "
        "(jq -c '.[]' OLD > NEW), or leave it out of source.path"
    )
