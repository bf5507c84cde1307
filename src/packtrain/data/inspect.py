"""Decides how a row is traced back to its documents, and a document forward to the steps that train on it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from packtrain.data.layout import Layout
from packtrain.data.loader import read_rows
from packtrain.data.order import invert, order_key
from packtrain.data.pack import IGNORE_INDEX, Plan
from packtrain.data.shards import DocumentSource, Split
from packtrain.data.sources import Sources
from packtrain.data.tokenizer import Tokenizer

_HASH = re.compile(r"[0-9a-f]{32}")
_ROW = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Stretch:
    """The part of a document that a row has as targets."""

    document: int
    """Number in the split."""
    source: DocumentSource
    offset: int
    """First position in the row."""
    start: int
    """First token, counted in the document."""
    length: int
    document_tokens: int
    text: str
    """The targets decoded, control tokens included."""


@dataclass(frozen=True)
class RowView:
    """A row as a step sees it."""

    row: int
    """Number in the plan; of a mixture, among the rows of all its datasets."""
    dataset: str | None
    """Name of the row's dataset, of a mixture only."""
    num_targets: int
    num_padded: int
    stretches: list[Stretch]
    inputs: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Visit:
    """One time that a run trains on a part of a document."""

    epoch: int
    step: int
    """Optimizer update, counted from 1."""
    row_of_step: int
    """Which of the step's rows, counted from 0."""
    row: int
    """Number in the plan; of a mixture, among the rows of all its datasets."""
    start: int
    """First token, counted in the document."""
    length: int


def describe_mixed_rows(
    sources: Sources, layout: Layout, tokenizer: Tokenizer, rows: Sequence[int], *, document_mask: bool = False
) -> list[RowView]:
    """The given rows of a run's layout, decoded, with the source of each stretch."""
    parts, within = layout.locate(np.asarray(rows, dtype=np.int64))
    views: dict[int, RowView] = {}
    for part in np.unique(parts).tolist():
        source, chosen = sources.parts[part], np.flatnonzero(parts == part)
        split, plan = source.dataset.split("train"), layout.parts[part]
        found = describe_rows(split, plan, tokenizer, within[chosen].tolist(), document_mask=document_mask)
        for place, view in zip(chosen.tolist(), found, strict=True):
            name = source.name if len(sources.parts) > 1 else None
            views[place] = replace(view, row=int(rows[place]), dataset=name)
    return [views[place] for place in range(len(rows))]


def describe_rows(
    split: Split, plan: Plan, tokenizer: Tokenizer, rows: Sequence[int], *, document_mask: bool = False
) -> list[RowView]:
    """The given rows of one dataset's plan, decoded, with the source of each stretch."""
    read = read_rows(plan, np.asarray(rows, dtype=np.int64), document_mask=document_mask)
    inputs, targets = read.inputs_BT.tolist(), read.targets_BT.tolist()
    fragments = [plan.sources(row) for row in rows]
    sources = document_sources(split, {fragment.document for of_row in fragments for fragment in of_row})
    views = []
    for row, of_row, row_inputs, row_targets in zip(rows, fragments, inputs, targets, strict=True):
        stretches = [
            Stretch(
                document=fragment.document,
                source=sources[fragment.document],
                offset=fragment.offset,
                start=fragment.start,
                length=fragment.length,
                document_tokens=plan.document_tokens(fragment.document),
                text=tokenizer.decode(
                    row_targets[fragment.offset : fragment.offset + fragment.length], skip_special=False
                ),
            )
            for fragment in of_row
        ]
        num_padded = row_targets.count(IGNORE_INDEX)
        views.append(RowView(row, None, plan.seq_len - num_padded, num_padded, stretches, row_inputs, row_targets))
    return views


def document_sources(split: Split, documents: Iterable[int]) -> dict[int, DocumentSource]:
    """File, row, id and content hash of each document; opens each shard once."""
    first_of_shard = _first_documents(split)
    wanted = np.array(sorted(documents), dtype=np.int64)
    shards = np.searchsorted(first_of_shard, wanted, side="right") - 1
    found: dict[int, DocumentSource] = {}
    for shard in np.unique(shards).tolist():
        numbers = wanted[shards == shard]
        table = split.sources_of_shard(shard).take(pa.array(numbers - first_of_shard[shard]))
        for number, row in zip(numbers.tolist(), table.to_pylist(), strict=True):
            found[number] = DocumentSource(row["file"], row["row"], row["id"], row["hash"].hex())
    return found


def find_documents(split: Split, name: str) -> list[int]:
    """Numbers of the documents that `name` names: an id, a content hash, a source file, or FILE:ROW."""
    file, _, row = name.rpartition(":")
    found: list[int] = []
    for shard, first in enumerate(_first_documents(split).tolist()):
        table = split.sources_of_shard(shard)
        files = table["file"].cast(pa.string())
        matches = pc.or_(pc.fill_null(pc.equal(table["id"], name), False), pc.equal(files, name))
        if _HASH.fullmatch(name):
            matches = pc.or_(matches, pc.equal(table["hash"], pa.scalar(bytes.fromhex(name), pa.binary(16))))
        if _ROW.fullmatch(row):
            matches = pc.or_(matches, pc.and_(pc.equal(files, file), pc.equal(table["row"], int(row))))
        found += (first + np.flatnonzero(matches.to_numpy())).tolist()
    return found


def visits(
    layout: Layout, document: int, *, part: int = 0, seed: int, rows_per_step: int, num_epochs: int = 1
) -> list[Visit]:
    """When a run trains on a document of a part, in the order of time, in that part's first `num_epochs` epochs."""
    plan = layout.parts[part]
    parts = [
        (row, piece) for row in plan.rows_of(document) for piece in plan.sources(row) if piece.document == document
    ]
    if not parts:
        return []
    rows = np.array([row for row, _ in parts], dtype=np.int64)
    first_row = layout.first_row(part)
    found = []
    for epoch in range(num_epochs):
        seen = invert(rows, plan.num_rows, order_key(seed, epoch, plan.hash)) + epoch * plan.num_rows
        for place, (row, fragment) in zip(layout.places_of(part, seen).tolist(), parts, strict=True):
            # A source that is used up shows its rows no more.
            if place >= 0:
                step, row_of_step = divmod(place, rows_per_step)
                found.append(Visit(epoch, step + 1, row_of_step, first_row + row, fragment.start, fragment.length))
    return sorted(found, key=lambda visit: (visit.step, visit.row_of_step))


def _first_documents(split: Split) -> np.ndarray:
    """Number of the first document of each shard, int64[num_shards]."""
    return np.cumsum([0, *(shard.documents for shard in split.shards)], dtype=np.int64)[:-1]
