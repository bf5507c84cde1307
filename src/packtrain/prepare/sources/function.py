"""Decides how a user's own Python function becomes a source: it runs once, and its documents are spooled to parquet files."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from packtrain.config.expression import MismatchError
from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.columnar import read_parquet, scan_parquet
from packtrain.prepare.sources.columns import ColumnSightings, describe_missing_column, list_names, parse_filter
from packtrain.prepare.sources.slices import FileScan, Limits, Part, Row, SourceFile
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

_GROUP_ROWS = 1_024
_FILE_GROUPS = 64
# `kept`: whether the document passes source.filter.
_SCHEMA = pa.schema([("text", pa.binary()), ("id", pa.string()), ("kept", pa.bool_())])
# With split.by=column: what the document says of its side.
_VALUE = pa.field("value", pa.string())
_END = object()


class _Document(NamedTuple):
    text: bytes | None
    id: str | None
    kept: bool = True
    value: str | None = None


def find_spool(config: SourceConfig, store: Store) -> tuple[list[SourceFile], None]:
    """Run the function and write what it yields to the work folder, as parquet files with the columns text and id.

    With `config.id_column`, which for a function is only set to learn the sides, they also have that value of each document.
    A complete spool is used again while the file with the function is unchanged. Raises SourceError if the function cannot
    be loaded, raises, or yields anything but strings or {"text": ..., "id": ...}.
    """
    path, name = _parse(config.function or "")
    settings = f"\0{name}\0{config.max_documents}\0{config.filter}" + (
        f"\0{config.id_column}" if config.id_column else ""
    )
    key = xxhash.xxh3_128(path.read_bytes() + settings.encode()).hexdigest()
    folder = f"{WORK_FOLDER}/function-{key}"
    listing = f"{folder}/documents.json"
    with store.one_at_a_time("function"):
        if not store.exists(listing):
            documents = islice(_documents(path, name, config), config.max_documents)
            schema = _SCHEMA if config.id_column is None else _SCHEMA.append(_VALUE)
            store.write(listing, json.dumps(dict(_write(store, folder, documents, schema))).encode())
    sizes: dict[str, int] = json.loads(store.read(listing))
    target = f"{path.name}:{name}"
    return [SourceFile(f"{target}/{file}", store.url(f"{folder}/{file}"), size) for file, size in sizes.items()], None


def scan_spool(file: SourceFile, config: SourceConfig, limits: Limits) -> FileScan:
    """Cut a file of the spool into parts."""
    return scan_parquet(file, _describe_spool(config), limits)


def read_spool(part: Part, config: SourceConfig) -> Iterator[Row]:
    """Yield the rows of a part of the spool."""
    return read_parquet(part, _describe_spool(config))


def _describe_spool(config: SourceConfig) -> SourceConfig:
    """The settings that the spool is read with."""
    kept = None if config.filter is None else "kept"
    label = "id" if config.id_column is None else _VALUE.name
    return config.model_copy(update={"text_column": "text", "id_column": label, "filter": kept})


def _parse(target: str) -> tuple[Path, str]:
    file, colon, name = target.rpartition(":")
    path = Path(file).expanduser()
    if not colon or not name.isidentifier() or path.suffix != ".py":
        raise SourceError(
            f"source.function={target} is not of the form my_file.py:documents; write the file and the name of the function"
        )
    if not path.is_file():
        raise SourceError(f"source.function={target}: the file {path} does not exist")
    return path, name


def _documents(path: Path, name: str, config: SourceConfig) -> Iterator[_Document]:
    target = f"{path.name}:{name}"
    sightings = ColumnSightings(config)
    chosen = parse_filter(config)
    count = 0
    try:
        for value in _values(path, name):
            document = _document(value, target, count)
            row = value if isinstance(value, dict) else {"text": value}
            if row.get(config.id_column) is not None:
                document = document._replace(value=_as_label(row[config.id_column]))
            if not sightings.done:
                sightings.see(row, f"source.function={target}, document {count}")
            yield document if chosen is None or chosen.keeps(row) else document._replace(kept=False)
            count += 1
    except SourceError:
        raise
    except MismatchError as error:
        raise SourceError(
            f"source.function={target}, document {count}: {error}; give every document a value of the same kind"
        ) from None
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise SourceError(
            f"source.function={target} raised {type(error).__name__}: {error} (after {count} documents); fix it and run again"
        ) from error
    if sightings.missing and count:
        raise SourceError(
            describe_missing_column(f"source.function={target}", "filter", min(sightings.missing), [*sightings.others])
        )


def _values(path: Path, name: str) -> Iterator[Any]:
    """Yield what the function yields. What it prints goes to standard error: it is not the output of our command."""
    with redirect_stdout(sys.stderr):
        values = iter(_load(path, name)())
    while True:
        with redirect_stdout(sys.stderr):
            value = next(values, _END)
        if value is _END:
            return
        yield value


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"packtrain_source_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The file may import modules beside it, as a script may.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))) or "none"
        raise SourceError(
            f"{path} has no function '{name}'; its functions are {there}; write source.function={path}:ONE_OF_THEM"
        )
    return function


def _document(value: Any, target: str, count: int) -> _Document:
    key = None
    if isinstance(value, dict):
        if "text" not in value:
            keys = list_names(map(str, value))
            raise SourceError(
                f"source.function={target} yielded a record without 'text' as document {count}; its keys are {keys}: rename one to 'text'"
            )
        key = None if value.get("id") is None else _as_label(value["id"])
        value = value["text"]
    elif not isinstance(value, str):
        raise SourceError(
            f'source.function={target} yielded {type(value).__name__} as document {count}; it must yield strings or {{"text": ..., '
            '"id": ...}'
        )
    # Half of a surrogate pair stays: the reader counts it as not UTF-8.
    return _Document(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None, key)


def _as_label(value: Any) -> str:
    """A value as text; what UTF-8 cannot encode is replaced."""
    return str(value).encode("utf-8", "replace").decode()


def _write(store: Store, folder: str, documents: Iterable[_Document], schema: pa.Schema) -> Iterator[tuple[str, int]]:
    iterator = iter(documents)
    groups = iter(lambda: list(islice(iterator, _GROUP_ROWS)), [])
    for number, first in enumerate(groups):
        name = f"{number:05d}.parquet"
        scratch = store.scratch(f"{folder}/{name}")
        with pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
            for group in chain([first], islice(groups, _FILE_GROUPS - 1)):
                columns = dict(zip(_Document._fields, zip(*group, strict=True), strict=True))
                writer.write_table(pa.table([columns[name] for name in schema.names], schema=schema))
        size = scratch.stat().st_size
        store.put(scratch, f"{folder}/{name}")
        yield name, size
