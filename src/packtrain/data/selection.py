"""Decides which documents are kept: all that are clean, of copies the first, if the source is sound and both sides get some."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from packtrain.config.recipe import Recipe
from packtrain.data.dedup import Copies, find_copies
from packtrain.data.ledger import Intake, Kept
from packtrain.data.pool import Task, Workers
from packtrain.data.shards import SPLITS, SplitName
from packtrain.data.slices import Plan, Slice
from packtrain.data.stages import UNREADABLE, Workplace, num_unreadable, read_notes, read_scan, scan_slice
from packtrain.errors import SourceError


@dataclass(frozen=True)
class Selection:
    """Which rows of each slice are kept, bool[rows] each, and the counts that led there."""

    keeps: list[npt.NDArray[np.bool_]]
    intake: Intake
    kept: Kept
    copies: Copies


def select(place: Workplace, plan: Plan, workers: Workers, on_rows: Callable[[int], None]) -> Selection:
    """Scan every slice that is not scanned yet, then choose over all of them. `on_rows` gets the rows scanned so far.

    Raises SourceError if more than source.max_bad_fraction of the rows cannot be read, or one side of the split is empty.
    """
    _scan(place, plan, workers, on_rows)
    selection = _choose(place, plan)
    _check_sides(selection.kept, place.recipe)
    return selection


def num_workers(recipe: Recipe) -> int:
    """Processes to work with: as the recipe says, else one for each core that this process may use."""
    if recipe.prepare.workers is not None:
        return recipe.prepare.workers
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _scan(place: Workplace, plan: Plan, workers: Workers, on_rows: Callable[[int], None]) -> None:
    missing = [work for work in plan.slices if not place.scan_path(work).is_file()]
    tasks = [Task(scan_slice, (place, work), work.describe()) for work in missing]
    done = plan.rows - sum(work.rows for work in missing)
    unreadable = 0
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        unreadable += num_unreadable(read_scan(place, missing[number]))
        # Certain by now, however good the rest is: a large source need not be read to its end to be refused.
        if unreadable > plan.rows * place.recipe.source.max_bad_fraction:
            _refuse_unreadable(place, plan.slices, plan.rows)
        on_rows(done)


def _choose(place: Workplace, plan: Plan) -> Selection:
    intake, kept = Intake(), Kept()
    hashes = []
    for work in plan.slices:
        scan = read_scan(place, work)
        intake.add(scan, read_notes(place, work))
        hashes.append(scan["content"][scan["reason"] == 0])
    if sum(intake.dropped[r] for r in UNREADABLE) > intake.documents * place.recipe.source.max_bad_fraction:
        _refuse_unreadable(place, plan.slices, intake.documents)
    ends = np.cumsum([len(part) for part in hashes])
    joined = np.concatenate(hashes)
    del hashes
    copies = find_copies(joined)
    if not place.recipe.dedup.exact:
        copies = Copies(np.ones(len(joined), dtype=np.bool_), copies.group_sizes)
    keeps = []
    for work, first in zip(plan.slices, np.split(copies.first, ends[:-1]), strict=True):
        scan = read_scan(place, work)
        keep = scan["reason"] == 0
        keep[keep] = first
        kept.add(scan, keep)
        keeps.append(keep)
    return Selection(keeps, intake, kept, copies)


def _refuse_unreadable(place: Workplace, slices: Sequence[Slice], rows: int) -> None:
    intake = Intake()
    for work in slices:
        if place.scan_path(work).is_file():
            intake.add(read_scan(place, work), read_notes(place, work))
    bad = {reason: intake.dropped[reason] for reason in UNREADABLE if intake.dropped[reason]}
    examples = "; ".join(intake.samples[reason][0] for reason in bad)
    counted = ", ".join(f"{count} {reason}" for reason, count in bad.items())
    allowed = place.recipe.source.max_bad_fraction
    raise SourceError(
        f"{sum(bad.values())} of {rows} rows cannot be read ({counted}), more than source.max_bad_fraction={allowed} "
        f"allows; for example {examples}: mend the source, set source.text_column, or raise source.max_bad_fraction"
    )


def _check_sides(kept: Kept, recipe: Recipe) -> None:
    total = sum(kept.documents.values())
    if total == 0:
        raise SourceError(
            "no document is left after cleaning; look at the source, or relax clean.min_chars and clean.max_chars"
        )
    needed: tuple[SplitName, ...] = SPLITS if recipe.split.validation_fraction > 0 else ("train",)
    for name in needed:
        if kept.documents[name] == 0:
            raise SourceError(
                f"the {name} side of the split is empty, as all {total} documents fell to the other; give more "
                "documents, or write split.validation_fraction=0 to hold none out, or another split.salt"
            )
