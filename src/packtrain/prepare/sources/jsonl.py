"""Decides how the records of a jsonl file, or of any file with a separator, are cut and read; every record is accounted for."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

import xxhash

from packtrain.config.expression import RowFilter
from packtrain.config.recipe import SourceConfig
from packtrain.prepare.sources.columns import ColumnSightings, list_names, parse_filter
from packtrain.prepare.sources.slices import (
    BROKEN,
    NO_TEXT,
    NOT_UTF8,
    Cutter,
    FileScan,
    Limits,
    Part,
    Row,
    SourceFile,
    make_row,
    reject_row,
)
from packtrain.storage.files import open_stream, reading, skip_to


def scan_jsonl(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a jsonl file into parts of whole lines. Reads the file once."""
    cutter = Cutter(file, limits)
    sightings = ColumnSightings(config)
    for line in scan_records(file, cutter, limits, b"\n"):
        if not sightings.done:
            sightings.see_json(line, f"{file.name} row {cutter.rows}")
    return FileScan(cutter.parts(), tuple(sightings.missing), tuple(sightings.others))


def read_jsonl(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a jsonl part. A blank line is not a row; a broken or textless one has its problem instead of a text."""
    row_filter = parse_filter(config)
    for number, line in read_records(part, b"\n"):
        if not line.isspace():
            yield _parse_line(part.file, number, line, config, row_filter)


def scan_records(file: SourceFile, cutter: Cutter, limits: Limits, separator: bytes) -> Iterator[bytes]:
    """Yield each record of a file, then hand it to the cutter; stops at the limit of rows."""
    with reading(file.name), open_stream(file.url) as stream:
        for record in _split(stream, separator):
            yield record
            cutter.add(len(record), record)
            if cutter.rows == limits.total_rows:
                break


def read_records(part: Part, separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and content of each record of a part. Raises SourceError if they are not those that were planned."""
    digest = xxhash.xxh3_128()
    with reading(part.file), open_stream(part.url) as stream:
        skip_to(stream, part.url, part.start)
        for number, record in zip(range(part.rows), _split(stream, separator), strict=False):
            digest.update(record)
            yield part.first_row + number, record
    part.check_unchanged(digest.hexdigest())


def _parse_line(file: str, number: int, line: bytes, config: SourceConfig, row_filter: RowFilter | None) -> Row:
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
    rejected = row_filter and reject_row(file, number, name, row_filter, lambda: value)
    if rejected:
        return rejected
    text = value.get(config.text_column)
    if not isinstance(text, str):
        keys = list_names(islice(value, 8))
        found = f"'{config.text_column}' is {json.dumps(text)[:40]}; its keys are {keys}"
        return Row(file, number, name, None, NO_TEXT, found)
    return make_row(file, number, name, text)


def _split(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Yield records with the separator that ends each; the last may have none."""
    if separator == b"\n":
        yield from stream
        return
    buffer = bytearray()
    searched = 0
    while chunk := stream.read(1 << 20):
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
