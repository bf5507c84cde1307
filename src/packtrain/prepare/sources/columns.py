"""Decides which columns a source must have, and how each kind of source gives `source.filter` its values."""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from packtrain.config.expression import Kind, MismatchError, RowFilter, row_filter
from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import FileScan

_MOST_LISTED = 30


def parse_filter(config: SourceConfig) -> RowFilter | None:
    """The source's filter, if it has one."""
    return None if config.filter is None else row_filter(config.filter)


def check_columns(file: str, config: SourceConfig, columns: Sequence[str]) -> None:
    """Raise SourceError unless each column that a setting of `source` names exists exactly once."""
    named = [("text_column", config.text_column), ("id_column", config.id_column)]
    chosen = parse_filter(config)
    named += [("filter", column) for column in (chosen.columns if chosen else ())]
    for key, wanted in named:
        if wanted is not None and wanted not in columns:
            raise SourceError(describe_missing_column(file, key, wanted, columns))
        if wanted is not None and columns.count(wanted) > 1:
            raise SourceError(
                f"{file} has more than one column '{wanted}' (source.{key}); its columns are {list_names(columns)}: give each "
                "column its own name"
            )


def list_names(names: Iterable[str]) -> str:
    """Names for a sentence, cut short; a name may be very long, or hold line ends or what UTF-8 cannot encode."""
    shown = [name[:40] if name[:40].isprintable() else ascii(name[:40]) for name in islice(names, _MOST_LISTED)]
    return ", ".join(shown) or "none"


def describe_missing_column(file: str, key: str, wanted: str, columns: Sequence[str]) -> str:
    """The sentence for a missing column; `key` is the setting of `source` that names it."""
    inside = [column for column in columns if column.endswith(f".{wanted.rpartition('.')[2]}")]
    near = [
        *difflib.get_close_matches(wanted, columns, n=1, cutoff=0.8),
        *inside,
        *difflib.get_close_matches(wanted, columns, n=1),
    ]
    advice = f"did you mean '{near[0]}'?" if near else f"write source.{key}=ONE_OF_THEM"
    return f"{file} has no column '{wanted}' (source.{key}); its columns are {list_names(columns)}: {advice}"


def list_columns(schema: pa.Schema) -> list[str]:
    """The columns of a parquet file, then the fields of its structs as `column.field`, unless a column has that name."""
    tops = list(schema.names)
    return tops + [name for field in schema for name in _list_fields(field) if name not in tops]


def kind_of_column(schema: pa.Schema, name: str) -> pa.DataType:
    """The type of a column, or of a field of a struct, that is in `list_columns`."""
    fields: Any = schema
    kind = pa.null()
    for step in _find_path(schema, name):
        kind = plain_kind(fields.field(step).type)
        fields = kind
    return kind


def take_column(batch: Any, name: str) -> Any:
    """A column of a batch, or a field of its structs, which is null where its struct is."""
    column, *fields = _find_path(batch.schema, name)
    values = batch.column(column)
    for field in fields:
        struct = plain_values(values)
        values = struct.flatten()[struct.type.get_field_index(field)]
    return values


def plain_kind(kind: pa.DataType) -> pa.DataType:
    """How values of a type are stored: an extension type (JSON, UUID) is only a name for another."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def plain_values(values: Any) -> Any:
    """An arrow column as it is stored."""
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def check_kinds(schema: pa.Schema, name: str, config: SourceConfig) -> None:
    """Raise SourceError if the filter compares a column of a parquet file with another kind of value than it holds."""
    chosen = parse_filter(config)
    for column, wanted in chosen.columns.items() if chosen else ():
        kind = kind_of_column(schema, column)
        if wanted is not None and not pa.types.is_null(kind) and _kind_of(kind) != wanted:
            raise SourceError(
                f"{name}: column '{column}' holds {kind}, which source.filter={config.filter} compares with a {wanted}; "
                f"compare it with a value of the same kind, or test whether it is null"
            )


def read_column_values(column: Any) -> list[Any]:
    """Values of an arrow column as the filter compares them; bytes that are not UTF-8 are replaced."""
    column = plain_values(column)
    kind = column.type
    if pa.types.is_dictionary(kind):
        return read_column_values(column.dictionary_decode())
    if _kind_of(kind) == "text":
        return [None if v is None else v.decode("utf-8", "replace") for v in column.cast(pa.large_binary()).to_pylist()]
    if _kind_of(kind) is None:
        # A filter can only test whether such a value is null.
        return [True if valid else None for valid in column.is_valid().to_pylist()]
    values: list[Any] = column.to_pylist()
    return values


def parse_csv_values(chosen: RowFilter, columns: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    """The fields of a csv record that the filter needs, as the kinds that it expects; an empty field is missing.

    Raises MismatchError for a field that is not of that kind.
    """
    return {column: _parse_csv_value(fields[columns.index(column)], kind) for column, kind in chosen.columns.items()}


def _parse_csv_value(field: str, kind: Kind | None) -> Any:
    if field == "":
        return None
    try:
        if kind == "number":
            return int(field) if field.lstrip("+-").isdecimal() else float(field)
        if kind == "truth value":
            return {"true": True, "false": False}[field.lower()]
    except (ValueError, KeyError):
        raise MismatchError(f"'{field[:40]}' is not a {kind}, but source.filter compares it with one") from None
    return field


class ColumnSightings:
    """Which columns of the filter have been seen, for sources whose columns become known only row by row."""

    def __init__(self, config: SourceConfig) -> None:
        self._filter = parse_filter(config)
        columns = self._filter.columns if self._filter else {}
        self.missing = set(columns)
        self.others: dict[str, None] = {}
        self._unchecked = {column for column, kind in columns.items() if kind is not None}

    @property
    def done(self) -> bool:
        """Whether further rows have nothing to add."""
        return not self.missing and not self._unchecked

    def see_json(self, record: bytes, where: str) -> None:
        """Look at a line of jsonl; a broken one adds nothing. Raises SourceError as `see` does."""
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
                self.see(parse_csv_values(self._filter, columns, fields), where)
            except MismatchError as error:
                raise SourceError(f"{where}: {error}; compare it with a value of the same kind") from None

    def see(self, row: Mapping[str, Any], where: str) -> None:
        """Look at a row. Raises SourceError if the first value of a column is not of the kind that the filter expects."""
        self.missing -= row.keys()
        if len(self.others) < _MOST_LISTED:
            self.others.update(dict.fromkeys(list(row)[:_MOST_LISTED]))
        found = {column for column in self._unchecked if row.get(column) is not None}
        self._unchecked -= found
        if found and self._filter is not None:
            try:
                self._filter.keeps({column: row[column] for column in found})
            except MismatchError as error:
                raise SourceError(f"{where}: {error}; compare it with a value of the same kind") from None


def refuse_unseen(scans: Sequence[FileScan], name: str) -> None:
    """Raise SourceError for a column of the filter that no row of any file has."""
    missing = set.intersection(*(set(scan.lacks) for scan in scans)) if scans else set()
    if missing:
        there = list(dict.fromkeys(column for scan in scans for column in scan.has))
        raise SourceError(describe_missing_column(name, "filter", min(missing), there))


def _find_path(fields: Iterable[pa.Field], name: str) -> tuple[str, ...]:
    """The column of exactly this name; otherwise the column, and the fields of structs in it, that the dots stand between."""
    every = list(fields)
    if name in (field.name for field in every):
        return (name,)
    for field in every:
        kind = plain_kind(field.type)
        if name.startswith(f"{field.name}.") and pa.types.is_struct(kind):
            inside = _find_path(kind, name.removeprefix(f"{field.name}."))
            if inside:
                return (field.name, *inside)
    return ()


def _list_fields(field: pa.Field) -> Iterator[str]:
    kind = plain_kind(field.type)
    for inner in kind if pa.types.is_struct(kind) else ():
        yield f"{field.name}.{inner.name}"
        yield from (f"{field.name}.{name}" for name in _list_fields(inner))


def _kind_of(kind: pa.DataType) -> Kind | None:
    is_a = pa.types
    if is_a.is_dictionary(kind):
        return _kind_of(kind.value_type)
    if is_a.is_integer(kind) or is_a.is_floating(kind) or is_a.is_decimal(kind):
        return "number"
    if is_a.is_boolean(kind):
        return "truth value"
    return "text" if is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind) else None
