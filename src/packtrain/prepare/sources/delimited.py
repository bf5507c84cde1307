"""Decides how the records of csv and tsv files are cut and read; every record is accounted for."""

import csv
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import ColumnSightings, check_columns, parse_csv_values, parse_filter
from packtrain.prepare.sources.slices import (
    BROKEN,
    Cutter,
    FileScan,
    Limits,
    Part,
    Row,
    SourceFile,
    make_row,
    reject_row,
)
from packtrain.storage.files import open_stream, reading, skip_to, strip_compression

# The csv module's own limit of 131,072 characters is far below a long document.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def scan_csv(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a csv file into parts of whole records. A quoted field may hold line ends, so every record is parsed."""
    with reading(file.name), open_stream(file.url) as stream:
        lines = _Lines(stream)
        reader = _open_reader(lines, file.name)
        columns = _read_header(reader, file.name)
        check_columns(file.name, config, columns)
        sightings = ColumnSightings(config)
        lines.take_size()
        cutter = Cutter(file, limits, lines.position, repr(columns).encode())
        for fields in _read_records(reader, file.name):
            if not sightings.done and fields and len(fields) == len(columns):
                sightings.see_fields(columns, fields, f"{file.name} row {cutter.rows}")
            cutter.add(lines.take_size(), _encode(fields))
            if cutter.rows == limits.total_rows:
                break
    return FileScan(cutter.parts())


def read_csv(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a csv part. A record that cannot be parsed or has another number of fields is a broken row."""
    with reading(part.file), open_stream(part.url) as stream:
        columns = _read_header(_open_reader(_Lines(stream), part.file), part.file)
    check_columns(part.file, config, columns)
    digest = xxhash.xxh3_128(repr(columns).encode())
    text_at = columns.index(config.text_column)
    id_at = columns.index(config.id_column) if config.id_column else None
    row_filter = parse_filter(config)
    with reading(part.file), open_stream(part.url) as stream:
        skip_to(stream, part.url, part.start)
        reader = _open_reader(_Lines(stream, part.start), part.file)
        numbers = range(part.first_row, part.first_row + part.rows)
        for number, fields in zip(numbers, _read_records(reader, part.file), strict=False):
            digest.update(_encode(fields))
            if fields == []:
                continue
            if fields is None or len(fields) != len(columns):
                found = "bad quoting" if fields is None else f"{len(fields)} fields instead of {len(columns)}"
                yield Row(part.file, number, None, None, BROKEN, found)
                continue
            name = None if id_at is None else fields[id_at]
            rejected = row_filter and reject_row(
                part.file, number, name, row_filter, partial(parse_csv_values, row_filter, columns, fields)
            )
            yield rejected or make_row(part.file, number, name, fields[text_at])
    part.check_unchanged(digest.hexdigest())


class _Lines:
    """Lines of a stream for the csv module; counts the bytes of each record."""

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


def _open_reader(lines: _Lines, name: str) -> Any:
    delimiter = "\t" if strip_compression(name.lower()).endswith(".tsv") else ","
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _read_header(reader: Any, name: str) -> list[str]:
    try:
        columns: list[str] = next(reader, [])
        "".join(columns).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        raise SourceError(
            f"{name} does not begin with a line of column names in UTF-8 ({error}); write it as csv in UTF-8, one record per line"
        ) from None
    return columns


def _read_records(reader: Any, name: str) -> Iterator[list[str] | None]:
    """Yield the fields of each record; None for one that cannot be parsed. A blank line is a record without fields."""
    while True:
        line = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise SourceError(
                    f"{name}: a quoted field that opens at line {line + 1} is never closed; fix the file or fetch it again"
                ) from None
            yield None


def _encode(fields: list[str] | None) -> bytes:
    return repr(fields).encode("utf-8", "surrogateescape")
