"""Decides what `inspect` says: the rows of a step or of the plan, when a document is trained on, or a summary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packtrain.api.settings import Settings, to_words
from packtrain.api.view import View, open_view
from packtrain.errors import ConfigError, PacktrainError

if TYPE_CHECKING:
    from packtrain.data.format.manifest import SplitName
    from packtrain.data.format.shards import Dataset
    from packtrain.data.inspect import RowView, Visit


def inspect(
    target: str | Path,
    *settings: Settings,
    step: int | None = None,
    row: int | None = None,
    document: str | None = None,
    preset: str = "demo",
    limit: int | None = None,
) -> dict[str, Any]:
    """What a step trains on, or when a document is trained on, in a run or a dataset: what `inspect --json` prints.

    Give one of `step` (from 1), `row` (of the plan, from 0) and `document` (an id, content hash, FILE, FILE:ROW or
    train/NUMBER); without them it is a summary of ledger and rows. `preset` and `settings` decide the rows of a dataset.
    `limit`: that many rows or documents at most. A run's summary also has `run`: its state, progress, checkpoints and events,
    whatever its files hold. Raises ConfigError, DatasetError and RunError.
    """
    from packtrain.runs.listing import looks_like_run

    check_choice(step, row, document)
    if not settings and step is None and row is None and document is None and looks_like_run(Path(target)):
        return describe_run_folder(Path(target))
    view = open_view(Path(target), preset, to_words(settings))
    if document is not None:
        return find_trained(view, document, limit)
    if step is not None or row is not None:
        return describe_rows(view, step, row, limit)
    return view.summary()


def describe_run_folder(folder: Path) -> dict[str, Any]:
    """A run by its files under `run`, and beside it the summary of its data; without its data, a sentence in `run.problems`."""
    from packtrain.runs.overview import describe_folder

    described = {"run": describe_folder(folder)}
    try:
        return described | open_view(folder, "demo", []).summary()
    except PacktrainError as error:
        described["run"]["problems"].append(f"its rows cannot be shown: {error}")
        return described


def check_choice(step: int | None, row: int | None, document: str | None) -> None:
    """Raises ConfigError if more than one thing is asked for."""
    if sum(choice is not None for choice in (step, row, document)) > 1:
        raise ConfigError("--step, --row and --document cannot be combined; keep one")


def choose_rows(view: View, step: int | None, row: int | None) -> list[int]:
    """Numbers of the rows that a step has, or the one row that was named."""
    return view.rows_of_step(step) if step is not None else [view.checked_row(row or 0)]


def describe_rows(view: View, step: int | None, row: int | None, limit: int | None) -> dict[str, Any]:
    """The summary of a view, and the rows of a step or one row of the plan under `rows`, decoded."""
    chosen = choose_rows(view, step, row)
    facts: dict[str, Any] = {"step": step, "num_rows": len(chosen), "num_targets": view.num_targets(chosen)}
    if step is not None:
        facts["skipped"] = view.course.skipped.get(step)
    rows = view.describe(chosen[: len(chosen) if limit is None else limit])
    return {**view.summary(), **facts, "rows": [_row_tree(row) for row in rows]}


def find_trained(view: View, name: str, limit: int | None) -> dict[str, Any]:
    """The first `limit` documents called `name`: where each is, and when it is trained on if it is on the training side."""
    num_steps = 0 if view.is_all_validation else view.num_steps
    end, total = view.course.place_of(num_steps + 1), 0
    found: list[dict[str, Any]] = []
    for part, source in enumerate(view.sources.parts):
        num_epochs = 1
        if num_steps:
            num_epochs = max(1, math.ceil(view.layout.seen_by(part, end) / view.layout.parts[part].num_rows))
        named = _named(source.dataset, name)
        total += len(named)
        for entry in _entries(view, part, named[: None if limit is None else limit - len(found)], num_epochs):
            found.append(entry | ({"dataset": source.name} if view.is_mixed else {}))
    facts = {"name": name, "seed": view.config.train.seed, "num_steps": num_steps, "num_documents": total}
    return {**facts, "documents": found}


def _entries(view: View, part: int, named: list[tuple[SplitName, int]], num_epochs: int) -> Iterator[dict[str, Any]]:
    from packtrain.data.inspect import find_sources, find_visits
    from packtrain.data.rows.index import DocumentIndex

    dataset = view.sources.parts[part].dataset
    sides = {name: [number for side, number in named if side == name] for name, _ in named}
    where = {name: find_sources(dataset.split(name), numbers) for name, numbers in sides.items()}
    for split_name, number in named:
        start, end = DocumentIndex(dataset.split(split_name)).span(number)
        seen: list[Visit] = []
        if split_name == "train":
            seen = find_visits(
                view.layout, number, course=view.course, part=part, seed=view.config.train.seed, num_epochs=num_epochs
            )
        # Earlier visits belong to the run that this one starts from.
        seen = [visit for visit in seen if visit.place >= view.course.first_place]
        yield {
            "document": number,
            "split": split_name,
            "source": where[split_name][number]._asdict(),
            "tokens": end - start,
            "visits": [
                _visit_tree(v, view) for v in seen if v.step is not None and (v.epoch == 0 or v.step <= view.num_steps)
            ],
            "passed_over": [_visit_tree(v, view) for v in seen if v.step is None],
        }


def _visit_tree(visit: Visit, view: View) -> dict[str, Any]:
    """A visit as JSON; `skipped` says why its step did not change the weights."""
    tree = dataclasses.asdict(visit)
    del tree["place"]
    if visit.step is None:
        del tree["step"], tree["row_of_step"]
        return tree
    return tree | {"skipped": view.course.skipped.get(visit.step)}


def _named(dataset: Dataset, name: str) -> list[tuple[SplitName, int]]:
    from packtrain.data.format.manifest import SPLITS
    from packtrain.data.inspect import find_documents

    side, _, number = name.rpartition("/")
    for split in SPLITS:
        if side == split and number.isdecimal() and int(number) < dataset.split(split).num_documents:
            return [(split, int(number))]
    return [(split, number) for split in SPLITS for number in find_documents(dataset.split(split), name)]


def _row_tree(row: RowView) -> dict[str, Any]:
    tree = dataclasses.asdict(row)
    for stretch in tree["stretches"]:
        stretch["source"] = stretch["source"]._asdict()
    return tree
