"""Decides which columns a source must have, and how `source.filter` reads its own from each kind of source."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from packtrain.config.expression import Kind, MismatchError, RowFilter, row_filter
from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import FileScan

_MOST_LISTED = 30


def filter_of(config: SourceConfig) -> RowFilter | None:
    """The source's filter, parsed, if it has one."""
    return None if config.filter is None else row_filter(config.filter)


def check_columns(file: str, config: SourceConfig, columns: Sequence[str]) -> None:
    """Raise SourceError unless each column that a setting of `source` names is there, once."""
    named = [("text_column", config.text_column), ("id_column", config.id_column)]
    chosen = filter_of(config)
    named += [("filter", column) for column in (chosen.columns if chosen else ())]
    for key, wanted in named:
        if wanted is not None and wanted not in columns:
            raise SourceError(missing_column(file, key, wanted, columns))
        if wanted is not None and columns.count(wanted) > 1:
            raise SourceError(
                f"{file} has more than one column '{wanted}' (source.{key}); its columns are {listed(columns)}: give each a "
                "name of its own"
            )


def listed(names: Iterable[str]) -> str:
    """Names for a sentence: a name may hold a line end or what UTF-8 cannot say, or be as long as a book."""
    shown = [name[:40] if name[:40].isprintable() else ascii(name[:40]) for name in islice(names, _MOST_LISTED)]
    return ", ".join(shown) or "none"


def missing_column(file: str, key: str, wanted: str, columns: Sequence[str]) -> str:
    """The sentence for a column that is not there; `key` is the setting of `source` that names it."""
    near = difflib.get_close_matches(wanted, columns, n=1)
    advice = f"did you mean '{near[0]}'?" if near else f"write source.{key}=ONE_OF_THEM"
    return f"{file} has no column '{wanted}' (source.{key}); its columns are {listed(columns)}: {advice}"


def check_kinds(schema: pa.Schema, name: str, config: SourceConfig) -> None:
    """Raise SourceError if a parquet file holds another kind of value in a column than the filter compares it with."""
    chosen = filter_of(config)
    for column, wanted in chosen.columns.items() if chosen else ():
        kind = schema.field(column).type
        if wanted is not None and not pa.types.is_null(kind) and _kind_of(kind) != wanted:
            raise SourceError(
                f"{name}: column '{column}' holds {kind}, which source.filter={config.filter} compares with a {wanted}; "
                f"compare it with what it holds, or ask whether it is null"
            )


def column_values(column: Any) -> list[Any]:
    """Values of an arrow column as the filter compares them; text that is not UTF-8 with its faults replaced."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column_values(column.dictionary_decode())
    if _kind_of(kind) == "text":
        return [None if v is None else v.decode("utf-8", "replace") for v in column.cast(pa.large_binary()).to_pylist()]
    if _kind_of(kind) is None:
        # All that can be asked of it is whether it is there.
        return [True if valid else None for valid in column.is_valid().to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def csv_values(chosen: RowFilter, columns: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    """What the filter needs of a csv record, as the kinds that it expects; an empty field is missing.

    Raises MismatchError for a field that cannot be read so.
    """
    return {column: _csv_value(fields[columns.index(column)], kind) for column, kind in chosen.columns.items()}


def _csv_value(field: str, kind: Kind | None) -> Any:
    if field == "":
        return None
    try:
        if kind == "number":
            return int(field) if field.lstrip("+-").isdecimal() else float(field)
        if kind == "truth value":
            return {"true": True, "false": False}[field.lower()]
    except (ValueError, KeyError):
        raise MismatchError(f"'{field[:40]}' is no {kind}, with which source.filter compares it") from None
    return field


class Sightings:
    """Which columns of the filter occur in rows whose columns are known only by reading them; filled on the way."""

    def __init__(self, config: SourceConfig) -> None:
        self._filter = filter_of(config)
        columns = self._filter.columns if self._filter else {}
        self.missing = set(columns)
        self.others: dict[str, None] = {}
        self._unchecked = {column for column, kind in columns.items() if kind is not None}

    @property
    def done(self) -> bool:
        """Whether no further row can tell anything."""
        return not self.missing and not self._unchecked

    def look(self, record: bytes, where: str) -> None:
        """Look at a line of jsonl; a broken one tells nothing. Raises SourceError as `see` does."""
        try:
            value = json.loads(record)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            self.see(value, where)

    def see_fields(self, columns: Sequence[str], fields: Sequence[str], where: str) -> None:
        """Look at a csv record. Raises SourceError as `see` does."""
        if self._filter is not None:
            try:
                self.see(csv_values(self._filter, columns, fields), where)
            except MismatchError as error:
                raise SourceError(f"{where}: {error}; compare it with what it holds") from None

    def see(self, row: Mapping[str, Any], where: str) -> None:
        """Look at a row. Raises SourceError if the first value of a column is of another kind than the filter expects."""
        self.missing -= row.keys()
        if len(self.others) < _MOST_LISTED:
            self.others.update(dict.fromkeys(list(row)[:_MOST_LISTED]))
        found = {column for column in self._unchecked if row.get(column) is not None}
        self._unchecked -= found
        if found and self._filter is not None:
            try:
                self._filter.keeps({column: row[column] for column in found})
            except MismatchError as error:
                raise SourceError(f"{where}: {error}; compare it with what it holds") from None


def refuse_unseen(scans: Sequence[FileScan], name: str) -> None:
    """Raise SourceError for a column of the filter that no file has in any row."""
    lacking = set.intersection(*(set(scan.lacks) for scan in scans)) if scans else set()
    if lacking:
        there = list(dict.fromkeys(column for scan in scans for column in scan.has))
        raise SourceError(missing_column(name, "filter", min(lacking), there))


def _kind_of(kind: pa.DataType) -> Kind | None:
    is_a = pa.types
    if is_a.is_dictionary(kind):
        return _kind_of(kind.value_type)
    if is_a.is_integer(kind) or is_a.is_floating(kind) or is_a.is_decimal(kind):
        return "number"
    if is_a.is_boolean(kind):
        return "truth value"
    return "text" if is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind) else None
