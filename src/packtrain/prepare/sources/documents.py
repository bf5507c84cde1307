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
from packtrain.prepare.sources.sides import check_held_out, find_hub_sides
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
    find: Callable[[Recipe, Store], tuple[list[SourceFile], str | None]] | None = None
    """Gives the files and their revision. None: the files that `source.path` means."""

    def find_files(self, recipe: Recipe, store: Store) -> tuple[list[SourceFile], str | None]:
        """The files of a source in order, and their revision if they have one. `store` keeps what a function yields."""
        if self.find is not None:
            return self.find(recipe, store)
        return list_files(recipe.source.path or "", self.suffixes), None


def _find_on_hub(recipe: Recipe, _store: Store) -> tuple[list[SourceFile], str | None]:
    if recipe.split.by == "hub":
        return find_hub_sides(recipe.source, recipe.split)
    return hub.find_dataset_files(recipe.source)


def _find_ids(recipe: Recipe, _store: Store) -> tuple[list[SourceFile], str | None]:
    return imported.token_files(recipe.source, recipe.split.validation_files), None


def _find_spool(recipe: Recipe, store: Store) -> tuple[list[SourceFile], str | None]:
    return function.find_spool(read_with_values(recipe), store)


_IDS = SourceKind(imported.scan_ids, imported.read_ids, find=_find_ids)
# config/recipe.py has the same names, with the settings that each needs.
SOURCE_KINDS = {
    "hf": SourceKind(columnar.scan_parquet, columnar.read_parquet, (".parquet",), find=_find_on_hub),
    "parquet": SourceKind(columnar.scan_parquet, columnar.read_parquet, (".parquet",)),
    "jsonl": SourceKind(jsonl.scan_jsonl, jsonl.read_jsonl, (".jsonl", ".ndjson", ".json")),
    "csv": SourceKind(delimited.scan_csv, delimited.read_csv, (".csv", ".tsv")),
    "text": SourceKind(text.scan_text, text.read_text, (".txt", ".text", ".md", ".rst")),
    "function": SourceKind(function.scan_spool, function.read_spool, find=_find_spool),
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
    files, revision = kind.find_files(recipe, store)
    if recipe.split.by == "files" and recipe.split.validation_fraction:
        check_held_out(files, recipe.split)
    limits = choose_limits(recipe.prepare.slice_documents, source.max_documents)
    scans = _scan_files(files, source, limits, kind)
    refuse_unseen(scans, _describe(source))
    found = (replace(p, side=file.side) for file, scan in zip(files, scans, strict=False) for p in scan.parts)
    parts = take_rows(found, source.max_documents)
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


def read_with_values(recipe: Recipe) -> SourceConfig:
    """The source as it is read to learn the side of each row: with split.column, that column takes the place of the id."""
    if recipe.split.by != "column":
        return recipe.source
    return recipe.source.model_copy(update={"id_column": recipe.split.column})


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
