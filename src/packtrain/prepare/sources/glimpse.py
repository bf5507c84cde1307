"""Decides what a file is by its first bytes, and which of its columns hold text by its first records."""

import csv
import json
import re
from contextlib import suppress
from typing import Any

from packtrain.errors import SourceError
from packtrain.prepare.sources.columnar import list_text_columns
from packtrain.prepare.sources.delimited import find_delimiter
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.files import open_raw, open_stream, reading, strip_compression, strip_query

_HEAD_BYTES = 1 << 18
_MOST_ROWS = 100


def see_kind(file: SourceFile, kind: str | None) -> str:
    """The kind of a file by its first bytes; `kind` is that of its ending. Raises SourceError if it is not text."""
    with reading(file.name):
        with open_raw(file.url) as raw:
            is_parquet = raw.read(4) == b"PAR1"
        if is_parquet or kind == "parquet":
            return "parquet"
        with open_stream(file.url) as stream:
            head = stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
    if b"\0" in head:
        raise SourceError(f"{file.name} is not text, as it has NUL bytes; leave it out, or convert it to text")
    if kind != "csv" and _is_json(head):
        return "jsonl"
    return kind or "text"


def see_columns(file: SourceFile, kind: str) -> tuple[list[str], str | None]:
    """The columns or keys of a file that hold text, and the delimiter of a csv file, if it is not the usual one."""
    if kind == "csv":
        return _see_csv(file)
    return (list_text_columns(file) if kind == "parquet" else _see_jsonl(file)), None


def _see_jsonl(file: SourceFile) -> list[str]:
    """Keys whose values are texts, in each of the first records that has them; with dots, those one level down."""
    with reading(file.name), open_stream(file.url) as stream:
        records = _records(stream.read(_HEAD_BYTES))
    kinds: dict[str, bool] = {}
    for record in records:
        inside = {
            f"{k}.{name}": v for k, value in record.items() if isinstance(value, dict) for name, v in value.items()
        }
        for key, value in {**record, **inside}.items():
            if value is not None:
                kinds[key] = kinds.get(key, True) and isinstance(value, str)
    texts = [key for key, is_text in kinds.items() if is_text]
    return [key for key in texts if "." not in key] or texts


def _see_csv(file: SourceFile) -> tuple[list[str], str | None]:
    """The columns that hold more than numbers, and the delimiter, if it is not the usual one."""
    with reading(file.name), open_stream(file.url) as stream:
        lines = stream.read(_HEAD_BYTES).decode("utf-8-sig", "replace").splitlines(keepends=True)
    usual = "\t" if strip_compression(strip_query(file.url)).lower().endswith(".tsv") else ","
    chosen = find_delimiter(lines[0] if lines else "", usual)
    rows: list[list[str]] = []
    with suppress(csv.Error):
        rows.extend(row for _, row in zip(range(_MOST_ROWS), csv.reader(lines, delimiter=chosen), strict=False))
    header = rows[0] if rows else []
    columns = [[row[at] for row in rows[1:] if len(row) == len(header)] for at in range(len(header))]
    texts = [
        name for name, values in zip(header, columns, strict=True) if not all(map(_is_number, values)) or not values
    ]
    return texts, None if chosen == usual else chosen.replace("\t", "\\t")


def _is_json(head: bytes) -> bool:
    begin = head.lstrip()
    if re.match(rb"\[\s*\{\s*\"", begin):
        return True
    return bool(_records(begin)) and begin.startswith(b"{")


def _records(head: bytes) -> list[dict[str, Any]]:
    """The first objects of a jsonl file or a JSON array; none if its first line is something else."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        return _objects(text[1:])
    found = []
    for line in text.splitlines()[:_MOST_ROWS]:
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            break
        if isinstance(value, dict):
            found.append(value)
    return found


def _objects(text: str) -> list[dict[str, Any]]:
    decoder, at = json.JSONDecoder(), 0
    found: list[dict[str, Any]] = []
    with suppress(ValueError, RecursionError):
        while len(found) < _MOST_ROWS:
            at = text.index("{", at)
            value, at = decoder.raw_decode(text, at)
            found.append(value)
    return found


def _is_number(field: str) -> bool:
    return re.fullmatch(r"\s*[-+]?[\d.,]*(e[-+]?\d+)?\s*", field, re.IGNORECASE) is not None
