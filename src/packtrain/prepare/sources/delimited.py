"""Decides how records are found and read in jsonl, csv and plain text files, without ever losing one in silence."""

import csv
import json
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

import xxhash

from packtrain.config.expression import RowFilter
from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import Sightings, check_columns, csv_values, filter_of, listed
from packtrain.prepare.sources.row import BROKEN, NO_TEXT, NOT_UTF8, Row, _left_out, check_unchanged, checked_row
from packtrain.prepare.sources.slices import Cutter, FileScan, Limits, Part, SourceFile
from packtrain.storage.files import open_stream, reading, skip_to, strip_compression

_CHUNK = 1 << 20

# The csv module's own limit of 131,072 characters is far below a long document.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def scan_records(file: SourceFile, config: SourceConfig, limit: Limits) -> FileScan:
    """Parts of a jsonl file, or of a text file with a separator: whole records each. Reads the file once."""
    cutter = Cutter(file, limit)
    sightings = Sightings(config)
    with reading(file.name), open_stream(file.url) as stream:
        for record in _records(stream, _separator(config)):
            if not sightings.done:
                sightings.look(record, f"{file.name} row {cutter.rows}")
            cutter.add(len(record), record)
            if cutter.rows == limit.total_rows:
                break
    return FileScan(cutter.parts(), tuple(sightings.missing), tuple(sightings.others))


def scan_whole(file: SourceFile, _config: SourceConfig, _limit: Limits) -> FileScan:
    """The single part of a text file that is one document."""
    digest = xxhash.xxh3_128()
    size = 0
    with reading(file.name), open_stream(file.url) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileScan((Part(file.name, file.url, 0, 1, size, digest.hexdigest(), 0, size),))


def scan_csv(file: SourceFile, config: SourceConfig, limit: Limits) -> FileScan:
    """Parts of a csv file, whole records each. A quoted field may hold line ends, so every record is parsed."""
    with reading(file.name), open_stream(file.url) as stream:
        lines = _Lines(stream)
        reader = csv.reader(lines, delimiter=_delimiter(file.name), strict=True)
        columns = _header(reader, file.name)
        check_columns(file.name, config, columns)
        sightings = Sightings(config)
        lines.take_size()
        cutter = Cutter(file, limit, lines.position, repr(columns).encode())
        for fields in _csv_rows(reader, file.name):
            if not sightings.done and fields and len(fields) == len(columns):
                sightings.see_fields(columns, fields, f"{file.name} row {cutter.rows}")
            cutter.add(lines.take_size(), _csv_content(fields))
            if cutter.rows == limit.total_rows:
                break
    return FileScan(cutter.parts())


def read_jsonl(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Rows of a jsonl part. A blank line is no row; a broken or textless one has its problem in place of a text."""
    chosen = filter_of(config)
    for number, line in _part_records(part, b"\n"):
        if line.isspace():
            continue
        yield _json_row(part.file, number, line, config, chosen)


def read_text(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Rows of a part of a plain text file: its documents between separators, or the whole file."""
    if config.separator is None:
        with reading(part.file), open_stream(part.url) as stream:
            data = stream.read()
        check_unchanged(part, xxhash.xxh3_128_hexdigest(data))
        yield _text_row(part.file, 0, data)
        return
    separator = config.separator.encode()
    for number, record in _part_records(part, separator):
        yield _text_row(part.file, number, record.removesuffix(separator))


def read_csv(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Rows of a csv part. A record that cannot be parsed, or has another number of fields, is a broken row."""
    with reading(part.file), open_stream(part.url) as stream:
        columns = _header(csv.reader(_Lines(stream), delimiter=_delimiter(part.file), strict=True), part.file)
    check_columns(part.file, config, columns)
    digest = xxhash.xxh3_128(repr(columns).encode())
    text_at = columns.index(config.text_column)
    id_at = columns.index(config.id_column) if config.id_column else None
    chosen = filter_of(config)
    with reading(part.file), open_stream(part.url) as stream:
        skip_to(stream, part.url, part.start)
        reader = csv.reader(_Lines(stream, part.start), delimiter=_delimiter(part.file), strict=True)
        numbers = range(part.first_row, part.first_row + part.rows)
        for number, fields in zip(numbers, _csv_rows(reader, part.file), strict=False):
            digest.update(_csv_content(fields))
            if fields == []:
                continue
            if fields is None or len(fields) != len(columns):
                seen = "bad quoting" if fields is None else f"{len(fields)} fields instead of {len(columns)}"
                yield Row(part.file, number, None, None, BROKEN, seen)
                continue
            name = None if id_at is None else fields[id_at]
            left_out = chosen and _left_out(
                part.file, number, name, chosen, partial(csv_values, chosen, columns, fields)
            )
            yield left_out or checked_row(part.file, number, name, fields[text_at])
    check_unchanged(part, digest.hexdigest())


def _header(reader: Any, name: str) -> list[str]:
    try:
        columns: list[str] = next(reader, [])
        "".join(columns).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        raise SourceError(
            f"{name} does not begin with a line of column names in UTF-8 ({error}); write it as csv in UTF-8, a record a line"
        ) from None
    return columns


def _json_row(file: str, number: int, line: bytes, config: SourceConfig, chosen: RowFilter | None) -> Row:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        return Row(file, number, None, None, NOT_UTF8, str(error))
    except (ValueError, RecursionError) as error:
        return Row(file, number, None, None, BROKEN, f"{error}: {line[:80]!r}")
    if not isinstance(value, dict):
        return Row(file, number, None, None, BROKEN, f"a JSON {type(value).__name__}, not an object")
    name = None
    if config.id_column is not None and value.get(config.id_column) is not None:
        name = str(value[config.id_column])
    left_out = chosen and _left_out(file, number, name, chosen, lambda: value)
    if left_out:
        return left_out
    text = value.get(config.text_column)
    if not isinstance(text, str):
        keys = listed(islice(value, 8))
        seen = f"'{config.text_column}' is {json.dumps(text)[:40]}; its keys are {keys}"
        return Row(file, number, name, None, NO_TEXT, seen)
    return checked_row(file, number, name, text)


def _text_row(file: str, number: int, data: bytes) -> Row:
    try:
        return Row(file, number, None, data.decode("utf-8-sig" if number == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        return Row(file, number, None, None, NOT_UTF8, str(error))


def _separator(config: SourceConfig) -> bytes:
    return b"\n" if config.separator is None else config.separator.encode()


def _delimiter(name: str) -> str:
    return "\t" if strip_compression(name.lower()).endswith(".tsv") else ","


def _part_records(part: Part, separator: bytes) -> Iterator[tuple[int, bytes]]:
    digest = xxhash.xxh3_128()
    with reading(part.file), open_stream(part.url) as stream:
        skip_to(stream, part.url, part.start)
        for number, record in zip(range(part.rows), _records(stream, separator), strict=False):
            digest.update(record)
            yield part.first_row + number, record
    check_unchanged(part, digest.hexdigest())


def _records(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Records with the separator that ends each; the last may have none."""
    if separator == b"\n":
        yield from stream
        return
    buffer = bytearray()
    searched = 0
    while chunk := stream.read(_CHUNK):
        buffer += chunk
        start = 0
        while (at := buffer.find(separator, searched)) >= 0:
            searched = at + len(separator)
            yield bytes(buffer[start:searched])
            start = searched
        del buffer[:start]
        searched = max(0, len(buffer) - len(separator) + 1)
    if buffer:
        yield bytes(buffer)


class _Lines:
    """Lines of a stream for the csv module, counting the bytes of each record that it takes."""

    def __init__(self, stream: BinaryIO, position: int = 0) -> None:
        self._stream = stream
        self.position = position
        self._taken = position

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        encoding = "utf-8-sig" if self.position == 0 else "utf-8"
        self.position += len(line)
        return line.decode(encoding, "surrogateescape")

    def take_size(self) -> int:
        """Bytes read since the last call."""
        size, self._taken = self.position - self._taken, self.position
        return size


def _csv_content(fields: list[str] | None) -> bytes:
    return repr(fields).encode("utf-8", "surrogateescape")


def _csv_rows(reader: Any, name: str) -> Iterator[list[str] | None]:
    """Records of a csv file; None for one that cannot be parsed. A blank line is a record without fields."""
    while True:
        line = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise SourceError(
                    f"{name}: a quoted field that opens at line {line + 1} is never closed; mend the file or fetch it again"
                ) from None
            yield None
