"""Decides what the documents of a source are, and in which order: the table of source kinds, and how each is planned and read."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

from packtrain.config.recipe import Recipe, SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources import columnar, delimited, embedded, function, hub, imported, jsonl, text
from packtrain.prepare.sources.columns import refuse_unseen
from packtrain.prepare.sources.listing import list_files
from packtrain.prepare.sources.slices import (
    FileScan,
    Limits,
    Part,
    Row,
    Slice,
    Slicing,
    SourceFile,
    choose_limits,
    group_parts,
    take_rows,
)
from packtrain.storage.store import Store


@dataclass(frozen=True)
class SourceKind:
    """How one kind of source is found, cut and read."""

    scan: Callable[[SourceFile, SourceConfig, Limits], FileScan]
    """Cuts a file into parts."""
    read: Callable[[Part, SourceConfig], Iterator[Row]]
    """Yields the rows of a part, with ids only if `source.id_column` is set."""
    suffixes: tuple[str, ...] = ()
    """The files it takes from a folder."""
    find: Callable[[SourceConfig, Store], tuple[list[SourceFile], str | None]] | None = None
    """Gives the files and their revision. None: the files that `source.path` means."""

    def find_files(self, source: SourceConfig, store: Store) -> tuple[list[SourceFile], str | None]:
        """The files of a source in order, and their revision if they have one. `store` keeps what a function yields."""
        if self.find is not None:
            return self.find(source, store)
        return list_files(source.path or "", self.suffixes), None


_IDS = SourceKind(imported.scan_ids, imported.read_ids, find=lambda source, _: (imported.token_files(source), None))
# config/recipe.py has the same names, with the settings that each needs.
SOURCE_KINDS = {
    "hf": SourceKind(
        columnar.scan_parquet,
        columnar.read_parquet,
        (".parquet",),
        find=lambda source, _: hub.find_dataset_files(source),
    ),
    "parquet": SourceKind(columnar.scan_parquet, columnar.read_parquet, (".parquet",)),
    "jsonl": SourceKind(jsonl.scan_jsonl, jsonl.read_jsonl, (".jsonl", ".ndjson", ".json")),
    "csv": SourceKind(delimited.scan_csv, delimited.read_csv, (".csv", ".tsv")),
    "text": SourceKind(text.scan_text, text.read_text, (".txt", ".text", ".md", ".rst")),
    "function": SourceKind(function.scan_spool, function.read_spool, find=function.find_spool),
    "stdlib": SourceKind(embedded.scan_stdlib, embedded.read_stdlib, find=lambda *_: embedded.find_stdlib_files()),
    "nanogpt": _IDS,
    "llmc": _IDS,
    "megatron": _IDS,
    "datatrove": _IDS,
}


def plan_slices(recipe: Recipe, store: Store) -> Slicing:
    """Cut a source into slices: a pure function of its content and the recipe, for any number of workers.

    `store` keeps what a function yields. Raises SourceError if the source is missing, empty or damaged, or lacks a column
    that is needed.
    """
    source = recipe.source
    kind = SOURCE_KINDS[source.kind]
    files, revision = kind.find_files(source, store)
    limits = choose_limits(recipe.prepare.slice_documents, source.max_documents)
    scans = _scan_files(files, source, limits, kind)
    refuse_unseen(scans, _describe(source))
    parts = take_rows((part for scan in scans for part in scan.parts), source.max_documents)
    slices = group_parts(parts, limits)
    if not slices:
        raise SourceError(f"the source is empty: {_describe(source)} has {len(files)} files and no document in them")
    return Slicing(slices, revision)


def read_rows(piece: Slice, source: SourceConfig, want_ids: bool = False) -> Iterator[Row]:
    """Yield the rows of a slice in source order. Without `want_ids`, a column of ids is not read."""
    if not want_ids:
        source = source.model_copy(update={"id_column": None})
    for part in piece.parts:
        yield from SOURCE_KINDS[source.kind].read(part, source)


def _scan_files(files: list[SourceFile], source: SourceConfig, limits: Limits, kind: SourceKind) -> list[FileScan]:
    starts = accumulate((file.size for file in files), initial=0)
    jobs = [(file, replace(limits, before=start)) for file, start in zip(files, starts, strict=False)]
    if limits.total_rows is None:
        # Opening a remote file is mostly waiting.
        with ThreadPoolExecutor(max_workers=8) as threads:
            return list(threads.map(lambda job: kind.scan(job[0], source, job[1]), jobs))
    scans: list[FileScan] = []
    left = limits.total_rows
    for file, own in jobs:
        if left <= 0:
            break
        scans.append(kind.scan(file, source, replace(own, total_rows=left)))
        left -= sum(part.rows for part in scans[-1].parts)
    return scans


def _describe(source: SourceConfig) -> str:
    return source.path or source.function or source.repo or source.kind
