"""Decides how the records of csv and tsv files are cut and read; every record is accounted for."""

import csv
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

import xxhash

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import ColumnSightings, check_columns, parse_csv_values, parse_filter
from packtrain.prepare.sources.csv_lines import CsvLines, LargeLineError
from packtrain.prepare.sources.records import LargeRecord
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
from packtrain.storage.files import open_stream, reading, skip_to, strip_compression, strip_query

# CsvLines bounds a record. The csv module's own limit of 131,072 characters is far below a long document.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

_DELIMITERS = (",", ";", "\t", "|")


def scan_csv(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a csv file into parts of whole records. A quoted field may hold line ends, so every record is parsed."""
    with reading(file.name), open_stream(file.url) as stream:
        lines = _open_lines(stream, config, file.name)
        reader = _open_reader(lines, config, file.url)
        columns = _read_header(reader, file.name)
        if columns is None:
            return FileScan(())
        _check_header(columns, reader.dialect.delimiter, config, file.name)
        sightings = ColumnSightings(config)
        lines.take_size()
        head = repr(columns).encode()
        cutter = Cutter(file, limits, lines.position, head, is_compressed=not stream.seekable())
        lines.skips_blanks = True
        is_doubtful = config.quoting is None and reader.dialect.delimiter == "\t"
        for fields in _read_records(reader, file.name):
            cutter.skip(*lines.take_blanks())
            if is_doubtful:
                _refuse_doubtful(lines.record, len(columns), file.name, reader.line_num)
            if not sightings.done and isinstance(fields, list) and len(fields) == len(columns):
                sightings.see_fields(columns, fields, f"{file.name} row {cutter.rows}")
            cutter.add(lines.take_size(), _encode(fields))
            if limits.total_rows is not None and cutter.rows >= limits.total_rows:
                break
    return FileScan(cutter.parts())


def read_csv(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a csv part. A record that cannot be parsed or has another number of fields is a broken row."""
    with reading(part.file), open_stream(part.url) as stream:
        columns = _read_header(_open_reader(_open_lines(stream, config, part.file), config, part.url), part.file) or []
    check_columns(part.file, config, columns)
    digest = xxhash.xxh3_128(repr(columns).encode())
    text_at = columns.index(config.text_column)
    id_at = columns.index(config.id_column) if config.id_column else None
    row_filter = parse_filter(config)
    with reading(part.file), open_stream(part.url) as stream:
        skip_to(stream, part.start)
        lines = _open_lines(stream, config, part.file, part.start)
        reader = _open_reader(lines, config, part.url)
        numbers = range(part.first_row, part.first_row + part.rows)
        for number, fields in zip(numbers, _read_records(reader, part.file), strict=False):
            size = lines.take_size()
            digest.update(_encode(fields))
            if fields == []:
                continue
            if isinstance(fields, LargeRecord):
                yield fields.as_row(part.file, number)
                continue
            if fields is None or len(fields) != len(columns):
                found = "bad quoting" if fields is None else f"{len(fields)} fields instead of {len(columns)}"
                yield Row(part.file, number, None, None, BROKEN, found, size=size)
                continue
            name = None if id_at is None else fields[id_at]
            rejected = row_filter and reject_row(
                part.file, number, name, row_filter, partial(parse_csv_values, row_filter, columns, fields)
            )
            row = rejected or make_row(part.file, number, name, fields[text_at])
            yield row if row.text is not None else row._replace(size=size)
    part.check_unchanged(digest.hexdigest())


def find_delimiter(header: str, usual: str) -> str:
    """The delimiter of a line of column names: the usual one if it is there, else the one that cuts it most often."""
    if usual in header:
        return usual
    found = max(_DELIMITERS, key=header.count)
    return found if found in header else usual


def _open_lines(stream: BinaryIO, config: SourceConfig, name: str, position: int = 0) -> CsvLines:
    most = config.max_document_bytes
    return CsvLines(stream, name, most, position, has_quotes=config.quoting != "none")


def _open_reader(lines: CsvLines, config: SourceConfig, url: str) -> Any:
    is_tsv = strip_compression(strip_query(url)).lower().endswith(".tsv")
    delimiter = config.delimiter or ("\t" if is_tsv else ",")
    if config.quoting == "none":
        return csv.reader(lines, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _read_header(reader: Any, name: str) -> list[str] | None:
    """The names of the columns; None for a file without a byte."""
    try:
        columns: list[str] | None = next(reader, None)
        "".join(columns or []).encode()
    except (csv.Error, UnicodeEncodeError, LargeLineError) as error:
        raise SourceError(
            f"{name} does not begin with a line of column names in UTF-8 ({error}); write it as csv in UTF-8, one record per line"
        ) from None
    return columns


def _check_header(columns: Sequence[str], delimiter: str, config: SourceConfig, name: str) -> None:
    """Raise SourceError unless the columns that settings name are there, with the delimiter that would give them if one does."""
    if config.text_column not in columns:
        line = delimiter.join(columns)
        for other in _DELIMITERS:
            names = [column.strip('" ') for column in line.split(other)]
            if other != delimiter and config.text_column in names:
                shown = other.replace("\t", "\\t")
                raise SourceError(
                    f"{name} has no column '{config.text_column}' if its fields are separated by {delimiter!r}, but has it with "
                    f"another delimiter; write source.delimiter='{shown}'"
                )
    if len(columns) <= 2 and columns[:1] and columns[0].startswith("sep="):
        raise SourceError(
            f"{name} begins with the line {columns[0]!r}, as Excel writes it, and not with column names; remove that line, and "
            "write source.delimiter=... if it is not a comma"
        )
    check_columns(name, config, columns)


def _refuse_doubtful(record: Sequence[str], num_columns: int, name: str, line: int) -> None:
    """Raise SourceError if a record is several lines, each of which would be a whole record if quotes meant nothing."""
    if len(record) > 1 and all(text.count("\t") == num_columns - 1 for text in record):
        raise SourceError(
            f"{name}: the {len(record)} lines up to line {line} are one record if double quotes enclose fields, and {len(record)} "
            "records if they mean nothing, as in many tsv files; write source.quoting=none, or source.quoting=minimal"
        )


def _read_records(reader: Any, name: str) -> Iterator[list[str] | LargeRecord | None]:
    """Yield the fields of each record; None for one that cannot be parsed. A blank line is a record without fields."""
    while True:
        line = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except LargeLineError as error:
            yield error.record
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise SourceError(
                    f"{name}: a quoted field that opens at line {line + 1} is never closed; fix the file or fetch it again, or "
                    "write source.quoting=none if double quotes enclose no fields"
                ) from None
            yield None


def _encode(fields: list[str] | LargeRecord | None) -> bytes:
    if isinstance(fields, LargeRecord):
        return fields.digest
    return repr(fields).encode("utf-8", "surrogateescape")
