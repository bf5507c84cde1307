"""Decides which text and id the records of a jsonl file have; every record is accounted for."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from packtrain.config.expression import RowFilter
from packtrain.config.recipe import SourceConfig
from packtrain.prepare.sources.columns import ColumnSightings, list_names, parse_filter
from packtrain.prepare.sources.records import LargeRecord, read_records, scan_records
from packtrain.prepare.sources.slices import (
    BROKEN,
    NO_TEXT,
    NOT_UTF8,
    TOO_LARGE,
    FileScan,
    Limits,
    Part,
    Row,
    SourceFile,
    make_row,
    reject_row,
)

# Python takes up to 240 bytes for `{"":0}`, so the objects and arrays of a record are bounded too.
_MOST_NESTED = 2_000_000


def scan_jsonl(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a jsonl file, or a JSON array of objects, into parts of whole records. Reads the file once."""
    sightings = ColumnSightings(config)

    def see(record: bytes, row: int) -> None:
        if not sightings.done and not _is_too_nested(record):
            sightings.see_json(record, f"{file.name} row {row}")

    parts = scan_records(file, limits, config.max_document_bytes, None, see)
    return FileScan(parts, tuple(sightings.missing), tuple(sightings.others))


def read_jsonl(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a jsonl part. A blank line is not a row; a broken or textless one has its problem instead of a text."""
    row_filter = parse_filter(config)
    for number, record in read_records(part, config.max_document_bytes, None):
        if isinstance(record, LargeRecord):
            yield record.as_row(part.file, number)
        elif not record.isspace():
            row = _parse_record(part.file, number, record, config, row_filter)
            yield row if row.text is not None else row._replace(size=len(record))


def find_value(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column, None if there is none: of the key of that name, or else along its dots, as in `content.text`."""
    if column in record or "." not in column:
        return record.get(column)
    value: Any = record
    for key in column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _is_too_nested(record: bytes) -> bool:
    return len(record) > _MOST_NESTED and record.count(b"{") + record.count(b"[") > _MOST_NESTED


def _parse_record(file: str, number: int, record: bytes, config: SourceConfig, row_filter: RowFilter | None) -> Row:
    if _is_too_nested(record):
        return Row(file, number, None, None, TOO_LARGE, f"it has more than {_MOST_NESTED:,} objects and arrays")
    try:
        value = json.loads(record.decode("utf-8-sig" if number == 0 else "utf-8"))
    except UnicodeDecodeError as error:
        return Row(file, number, None, None, NOT_UTF8, str(error))
    except (ValueError, RecursionError) as error:
        return Row(file, number, None, None, BROKEN, f"{error}: {record[:80]!r}")
    if not isinstance(value, dict):
        return Row(file, number, None, None, BROKEN, f"a JSON {type(value).__name__}, not an object")
    name = None
    if config.id_column is not None and (found := find_value(value, config.id_column)) is not None:
        name = str(found)
    rejected = row_filter and reject_row(file, number, name, row_filter, lambda: value)
    if rejected:
        return rejected
    text = find_value(value, config.text_column)
    if not isinstance(text, str):
        return Row(file, number, name, None, NO_TEXT, _describe_missing_text(value, text, config.text_column))
    return make_row(file, number, name, text)


def _describe_missing_text(record: Mapping[str, Any], found: Any, column: str) -> str:
    keys = list_names(islice(record, 8))
    nested = [f"{key}.{column}" for key, value in record.items() if isinstance(value, dict) and column in value]
    hint = f"; did you mean source.text_column={list_names(nested[:1])}?" if nested else ""
    return f"'{column}' is {json.dumps(found)[:40]}; its keys are {keys}{hint}"
