"""Decides what the documents of a source are, and in which order: plans any kind of source, and reads a slice of it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate

from packtrain.config.recipe import ID_KINDS, Recipe, SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources import columnar, delimited, embedded, function, hub, imported
from packtrain.prepare.sources.columns import refuse_unseen
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.row import Row
from packtrain.prepare.sources.slices import (
    FileScan,
    Limits,
    Slice,
    Slicing,
    SourceFile,
    first_rows,
    group_parts,
    limits,
)
from packtrain.storage.store import Store

Scanner = Callable[[SourceFile, SourceConfig, Limits], FileScan]

_SUFFIXES = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "text": (".txt", ".text", ".md", ".rst"),
}
# Opening a remote file is waiting, mostly.
_PLANNING_THREADS = 8


def plan(recipe: Recipe, store: Store) -> Slicing:
    """Cut a source into slices: a pure function of its content and the recipe, whatever the number of workers.

    `store` keeps what a function gives. Raises SourceError if the source is missing, empty, damaged, or lacks a column
    that is needed.
    """
    source = recipe.source
    files, revision = _files(source, store)
    limit = limits(recipe.prepare.slice_documents, source.max_documents)
    scans = _scan_all(files, reading_config(source), limit, _scanner(source))
    refuse_unseen(scans, _describe(source))
    parts = first_rows((part for scan in scans for part in scan.parts), source.max_documents)
    slices = group_parts(parts, limit)
    if not slices:
        raise SourceError(f"the source is empty: {_describe(source)} has {len(files)} files and no document in them")
    return Slicing(slices, revision)


def read(work: Slice, source: SourceConfig, want_ids: bool = False) -> Iterator[Row]:
    """Rows of a slice in source order; `source` as `reading_config` gives it."""
    if source.kind in ("hf", "parquet", "function"):
        for part in work.parts:
            yield from columnar.read_parquet(part, source, want_ids)
        return
    readers = {
        "jsonl": delimited.read_jsonl,
        "csv": delimited.read_csv,
        "text": delimited.read_text,
        "stdlib": embedded.read_stdlib,
        **dict.fromkeys(ID_KINDS, imported.read_ids),
    }
    for part in work.parts:
        yield from readers[source.kind](part, source)


def reading_config(source: SourceConfig) -> SourceConfig:
    """The source as its slices are read: a function's documents are in columns of our own naming."""
    return function.spooled_config(source) if source.kind == "function" else source


def _files(source: SourceConfig, store: Store) -> tuple[list[SourceFile], str | None]:
    if source.kind == "stdlib":
        return embedded.stdlib_files()
    if source.kind == "function":
        return function.spool(source, store), None
    if source.kind in ID_KINDS:
        return imported.token_files(source), None
    if source.kind == "hf":
        return hub.dataset_files(source)
    return list_files(source.path or "", _SUFFIXES[source.kind]), None


def _scanner(source: SourceConfig) -> Scanner:
    if source.kind == "text":
        return delimited.scan_whole if source.separator is None else delimited.scan_records
    scanners: dict[str, Scanner] = {
        "hf": columnar.scan_parquet,
        "parquet": columnar.scan_parquet,
        "function": columnar.scan_parquet,
        "jsonl": delimited.scan_records,
        "csv": delimited.scan_csv,
        "stdlib": embedded.scan_stdlib,
        **dict.fromkeys(ID_KINDS, imported.scan_ids),
    }
    return scanners[source.kind]


def _scan_all(files: list[SourceFile], source: SourceConfig, limit: Limits, scan: Scanner) -> list[FileScan]:
    starts = accumulate((file.size for file in files), initial=0)
    jobs = [(file, replace(limit, before=start)) for file, start in zip(files, starts, strict=False)]
    if limit.total_rows is None:
        with ThreadPoolExecutor(_PLANNING_THREADS) as threads:
            return list(threads.map(lambda job: scan(job[0], source, job[1]), jobs))
    scans: list[FileScan] = []
    left = limit.total_rows
    for file, own in jobs:
        if left <= 0:
            break
        scans.append(scan(file, source, replace(own, total_rows=left)))
        left -= sum(part.rows for part in scans[-1].parts)
    return scans


def _describe(source: SourceConfig) -> str:
    return source.path or source.function or source.repo or source.kind
