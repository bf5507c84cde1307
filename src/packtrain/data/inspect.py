"""Decides how a row is traced back to its documents, and a document forward to the steps that train on it."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.feed.course import Course
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.feed.loader import read_rows
from packtrain.data.feed.mixture import Mixture
from packtrain.data.format.shards import SOURCE_SCHEMA, DocumentSource, Split
from packtrain.data.rows.plan import RowPlan
from packtrain.data.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Stretch:
    """The part of a document that a row has as targets."""

    document: int
    """Number in its side of the dataset."""
    source: DocumentSource
    offset: int
    """First position in the row."""
    start: int
    """First token, counted in the document."""
    length: int
    document_tokens: int
    text: str
    """The decoded targets, with control tokens."""


@dataclass(frozen=True)
class RowView:
    """A row as a step sees it."""

    row: int
    """Number in the plan; in a mixture, among the rows of all datasets."""
    dataset: str | None
    """Name of the row's dataset; None if the run has only one."""
    num_targets: int
    num_padded: int
    stretches: list[Stretch]
    inputs: list[int]
    targets: list[int]


@dataclass(frozen=True)
class Visit:
    """One occasion on which a run sees a part of a document."""

    epoch: int
    step: int | None
    """Optimizer update, counted from 1; None if no step sees it, because the run skipped it or began after it."""
    row_of_step: int | None
    """Which of the step's rows, counted from 0."""
    row: int
    """Number in the plan; in a mixture, among the rows of all datasets."""
    start: int
    """First token, counted in the document."""
    length: int
    place: int
    """Place of the row in the run's data, counted over epochs."""


def summarize(layout: Mixture) -> dict[str, int | str]:
    """What becomes of the tokens when they are packed into rows."""
    plans = layout.parts
    return {
        "packing": plans[0].packing,
        "seq_len": layout.seq_len,
        "rows": layout.num_rows,
        "documents": sum(len(plan.index) for plan in plans),
        "targets": layout.num_targets,
        "padded": layout.num_rows * layout.seq_len - layout.num_targets,
        # Zero, or a plan is wrong.
        "dropped": sum(plan.split.num_tokens - plan.num_targets for plan in plans),
        "cut_documents": sum(plan.num_cut_documents for plan in plans),
        "hash": layout.hash,
    }


def describe_mixed_rows(
    datasets: RunDatasets, layout: Mixture, tokenizer: Tokenizer, rows: Sequence[int], *, document_mask: bool = False
) -> list[RowView]:
    """The given rows of a run's layout, decoded, with the source of each stretch."""
    parts, within = layout.locate(np.asarray(rows, dtype=np.int64))
    views: dict[int, RowView] = {}
    for number in np.unique(parts).tolist():
        part, chosen = datasets.parts[number], np.flatnonzero(parts == number)
        split, plan = part.dataset.split("train"), layout.parts[number]
        found = describe_rows(split, plan, tokenizer, within[chosen].tolist(), document_mask=document_mask)
        for place, view in zip(chosen.tolist(), found, strict=True):
            name = part.name if len(datasets.parts) > 1 else None
            views[place] = replace(view, row=int(rows[place]), dataset=name)
    return [views[place] for place in range(len(rows))]


def describe_rows(
    split: Split, plan: RowPlan, tokenizer: Tokenizer, rows: Sequence[int], *, document_mask: bool = False
) -> list[RowView]:
    """The given rows of one dataset's plan, decoded, with the source of each stretch."""
    read = read_rows(plan, np.asarray(rows, dtype=np.int64), document_mask=document_mask)
    inputs, targets = read.inputs_BT.tolist(), read.targets_BT.tolist()
    fragments = [plan.sources(row) for row in rows]
    sources = find_sources(split, {fragment.document for of_row in fragments for fragment in of_row})
    views = []
    for row, of_row, row_inputs, row_targets in zip(rows, fragments, inputs, targets, strict=True):
        stretches = [
            Stretch(
                document=fragment.document,
                source=sources[fragment.document],
                offset=fragment.offset,
                start=fragment.start,
                length=fragment.length,
                document_tokens=end - start,
                text=tokenizer.decode(row_targets[fragment.offset :][: fragment.length], skip_special=False),
            )
            for fragment in of_row
            for start, end in [plan.index.span(fragment.document)]
        ]
        num_padded = row_targets.count(IGNORE_INDEX)
        views.append(RowView(row, None, plan.seq_len - num_padded, num_padded, stretches, row_inputs, row_targets))
    return views


def find_sources(split: Split, documents: Iterable[int]) -> dict[int, DocumentSource]:
    """File, row, id and content hash of each document. Opens each shard once."""
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
    """Numbers of the documents that `name` stands for: an id, a content hash, a source file, or FILE:ROW.

    Reads only shards and columns that may contain it; their statistics rule out most by file and row.
    """
    first = _first_documents(split).tolist()
    with ThreadPoolExecutor(max_workers=4) as threads:
        found = threads.map(lambda shard: _find_in_shard(split, shard, name), range(len(split.shards)))
        return [start + number for start, numbers in zip(first, found, strict=True) for number in numbers]


def _find_in_shard(split: Split, shard: int, name: str) -> list[int]:
    file, _, row = name.rpartition(":")
    questions: list[dict[str, Any]] = [{"id": name}, {"file": name}]
    if re.fullmatch(r"[0-9a-f]{32}", name):
        questions.append({"hash": bytes.fromhex(name)})
    if re.fullmatch(r"[0-9]{1,18}", row):
        questions.append({"file": file, "row": int(row)})
    bounds = _bounds(split, shard)
    asked = [q for q in questions if all(_may_have(bounds, column, value) for column, value in q.items())]
    if not asked:
        return []
    columns = [column for column in SOURCE_SCHEMA.names if any(column in question for question in asked)]
    table = split.sources_of_shard(shard, columns)
    found = np.zeros(table.num_rows, dtype=np.bool_)
    for question in asked:
        matches = np.ones(table.num_rows, dtype=np.bool_)
        for column, value in question.items():
            values = table[column].cast(pa.string()) if column == "file" else table[column]
            wanted = pa.scalar(value, values.type)
            matches &= pc.fill_null(pc.equal(values, wanted), False).to_numpy()
        found |= matches
    return np.flatnonzero(found).tolist()


def _bounds(split: Split, shard: int) -> list[dict[str, Any]]:
    """Statistics of each column and row group of a shard's sources; none if the file is damaged, which reading will report."""
    try:
        metadata = pq.read_metadata(split.folder / f"{split.shards[shard].name}.src.parquet")
    except (pa.ArrowException, OSError):
        return [{}]
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return [{(c := group.column(i)).path_in_schema: c.statistics for i in range(group.num_columns)} for group in groups]


def _may_have(bounds: list[dict[str, Any]], column: str, value: Any) -> bool:
    for group in bounds:
        statistics = group.get(column)
        if statistics is None:
            return True
        if statistics.has_min_max:
            if statistics.min <= value <= statistics.max:
                return True
        elif not statistics.has_null_count or statistics.num_values:
            # Long values have no bounds, and neither has a column without values.
            return True
    return False


def find_visits(
    layout: Mixture, document: int, *, course: Course, part: int = 0, seed: int, num_epochs: int = 1
) -> list[Visit]:
    """When a run sees a document of a part, in order of time, in the first `num_epochs` epochs of that part."""
    plan, packed = layout.parts[part], None
    found = []
    for epoch in range(num_epochs):
        if packed is not plan.of_epoch(epoch):
            packed = plan.of_epoch(epoch)
            parts = [
                (row, f) for row in packed.rows_of(document) for f in packed.sources(row) if f.document == document
            ]
            rows = np.array([row for row, _ in parts], dtype=np.int64)
        numbers = layout.number(part, plan.first_row(epoch) + rows).tolist()
        places = layout.places_of(part, plan.places_in(epoch, rows, seed)).tolist()
        for place, number, (_, fragment) in zip(places, numbers, parts, strict=True):
            # A dataset that is used up is not seen any more.
            if place >= 0:
                step, row_of_step = course.step_at(place) or (None, None)
                found.append(Visit(epoch, step, row_of_step, number, fragment.start, fragment.length, place))
    return sorted(found, key=lambda visit: visit.place)


def _first_documents(split: Split) -> np.ndarray:
    """Number of the first document of each shard, int64[num_shards]."""
    return np.cumsum([0, *(shard.documents for shard in split.shards)], dtype=np.int64)[:-1]
