"""Decides how a user's own Python function becomes a source: run once, its documents kept in parquet beside the work."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from packtrain.config.expression import MismatchError
from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import Sightings, filter_of, listed, missing_column
from packtrain.prepare.sources.slices import SourceFile
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

_FILE_ROWS = 65_536
_GROUP_ROWS = 1_024
# `kept`: whether source.filter lets the document through.
_SCHEMA = pa.schema([("text", pa.binary()), ("id", pa.string()), ("kept", pa.bool_())])
_LISTING = "documents.json"
_END = object()


class _Document(NamedTuple):
    text: bytes | None
    id: str | None
    kept: bool = True


def spool(config: SourceConfig, store: Store) -> list[SourceFile]:
    """Run the function and keep what it gives in the work folder, as parquet files with the columns text and id.

    A spool that is complete is used again, as long as the file with the function is unchanged. Raises SourceError if the
    function cannot be loaded, raises, or gives something else than strings or {"text": ..., "id": ...}.
    """
    path, name = _parse(config.function or "")
    settings = f"\0{name}\0{config.max_documents}\0{config.filter}"
    key = xxhash.xxh3_128(path.read_bytes() + settings.encode()).hexdigest()
    folder = f"{WORK_FOLDER}/function-{key}"
    listing = f"{folder}/{_LISTING}"
    with store.one_at_a_time("function"):
        if not store.exists(listing):
            documents = islice(_documents(path, name, config), config.max_documents)
            store.write(listing, json.dumps(dict(_write(store, folder, documents))).encode())
    sizes: dict[str, int] = json.loads(store.read(listing))
    return [
        SourceFile(f"{path.name}:{name}/{file}", store.url(f"{folder}/{file}"), size) for file, size in sizes.items()
    ]


def spooled_config(config: SourceConfig) -> SourceConfig:
    """How the kept documents are read."""
    kept = None if config.filter is None else "kept"
    return config.model_copy(update={"text_column": "text", "id_column": "id", "filter": kept})


def _parse(target: str) -> tuple[Path, str]:
    file, colon, name = target.rpartition(":")
    path = Path(file).expanduser()
    if not colon or not name.isidentifier() or path.suffix != ".py":
        raise SourceError(f"source.function={target} is not of the form my_file.py:documents")
    if not path.is_file():
        raise SourceError(f"source.function={target}: the file {path} does not exist")
    return path, name


def _documents(path: Path, name: str, config: SourceConfig) -> Iterator[_Document]:
    target = f"{path.name}:{name}"
    sightings = Sightings(config)
    chosen = filter_of(config)
    count = 0
    try:
        for value in _values(path, name):
            document = _document(value, target, count)
            row = value if isinstance(value, dict) else {"text": value}
            if not sightings.done:
                sightings.see(row, f"source.function={target}, document {count}")
            yield document if chosen is None or chosen.keeps(row) else document._replace(kept=False)
            count += 1
    except SourceError:
        raise
    except MismatchError as error:
        raise SourceError(
            f"source.function={target}, document {count}: {error}; give every document the same kind"
        ) from None
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise SourceError(
            f"source.function={target} raised {type(error).__name__}: {error} (after {count} documents); mend it and run again"
        ) from error
    if sightings.missing and count:
        raise SourceError(
            missing_column(f"source.function={target}", "filter", min(sightings.missing), [*sightings.others])
        )


def _values(path: Path, name: str) -> Iterator[Any]:
    """What the function gives. What it prints goes to standard error, as it is not the result of a command."""
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
    # The file may import its neighbours, as a script would.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent.resolve()))
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))) or "none"
        raise SourceError(f"{path} has no function '{name}'; its functions are {there}")
    return function


def _document(value: Any, target: str, count: int) -> _Document:
    key = None
    if isinstance(value, dict):
        if "text" not in value:
            keys = listed(map(str, value))
            raise SourceError(
                f"source.function={target} gave a record without 'text' as document {count}; its keys are {keys}"
            )
        key = None if value.get("id") is None else str(value["id"]).encode("utf-8", "replace").decode()
        value = value["text"]
    elif not isinstance(value, str):
        raise SourceError(
            f'source.function={target} gave {type(value).__name__} as document {count}; it must yield strings or {{"text": ..., '
            '"id": ...}'
        )
    # Half of a surrogate pair is kept as it is, to be counted as not UTF-8 by the reader.
    return _Document(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else None, key)


def _write(store: Store, folder: str, documents: Iterable[_Document]) -> Iterator[tuple[str, int]]:
    iterator = iter(documents)
    number = 0
    first = list(islice(iterator, _GROUP_ROWS))
    while first:
        name = f"{number:05d}.parquet"
        scratch = store.scratch(f"{folder}/{name}")
        with pq.ParquetWriter(scratch, _SCHEMA, compression="zstd") as writer:
            rows = 0
            while first:
                writer.write_table(pa.table(list(zip(*first, strict=True)), schema=_SCHEMA))
                rows += len(first)
                first = list(islice(iterator, min(_GROUP_ROWS, _FILE_ROWS - rows))) if rows < _FILE_ROWS else []
        size = scratch.stat().st_size
        store.put(scratch, f"{folder}/{name}")
        yield name, size
        number += 1
        first = list(islice(iterator, _GROUP_ROWS))
