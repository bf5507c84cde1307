"""Decides which documents are kept: all that are clean, of copies the first, if the source is sound and both sides get some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from packtrain.config.recipe import Recipe
from packtrain.data.buckets import Buckets
from packtrain.data.clusters import least_alike, mark_near_copies
from packtrain.data.dedup import ENTRY, add_documents, mark_copies
from packtrain.data.delimited import BROKEN, NO_TEXT, NOT_UTF8
from packtrain.data.ledger import Copies, CopyKind, Intake, Kept
from packtrain.data.locks import WORK_FOLDER, one_at_a_time
from packtrain.data.pool import Task, Workers
from packtrain.data.room import Room
from packtrain.data.samples import near_samples
from packtrain.data.shards import SPLITS, SplitName
from packtrain.data.signatures import Signatures
from packtrain.data.slices import Plan, Slice
from packtrain.data.stages import (
    SCANS,
    UNREADABLE,
    Workplace,
    num_unreadable,
    read_keep,
    read_notes,
    read_scan,
    scan_slice,
    sides,
    write_keep,
)
from packtrain.errors import SourceError

# What to do about rows that cannot be read.
_MENDING = {
    BROKEN: "mend the source",
    NO_TEXT: "set source.text_column",
    NOT_UTF8: "convert the source to UTF-8 (iconv does)",
}


@dataclass(frozen=True)
class Selection:
    """The counts of the choice of documents, which itself lies in the work folder: see `stages.read_keep`."""

    intake: Intake
    kept: Kept
    copies: Copies


def choose(place: Workplace, plan: Plan, *, needs_both_sides: bool = True) -> Selection:
    """Choose over all slices, which have to be scanned, and write what is kept of each.

    A choice made before is taken as it is. Raises SourceError if more than source.max_bad_fraction of the rows cannot be
    read, or one side of the split is empty that is needed.
    """
    with one_at_a_time(place.store, "choice"):
        selection = _made_before(place) or _choose(place, plan)
    if needs_both_sides:
        _check_sides(selection.intake, selection.kept, place.recipe)
    return selection


def scan_slices(
    place: Workplace, plan: Plan, slices: Sequence[Slice], workers: Workers, room: Room, on_rows: Callable[[int], None]
) -> int:
    """Scan those of these slices that are not scanned yet; how many. `on_rows` gets the rows scanned so far.

    Raises SourceError as soon as more rows cannot be read than source.max_bad_fraction allows of the whole plan, and
    DiskFullError as soon as `room` finds that the rest will not fit.
    """
    missing = missing_scans(place, slices)
    room.to_scan(missing, plan.rows)
    tasks = [Task(scan_slice, (place, work), work.describe()) for work in missing]
    done = sum(work.rows for work in slices) - sum(work.rows for work in missing)
    unreadable = 0
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        scan = read_scan(place, missing[number])
        unreadable += num_unreadable(scan)
        # Certain by now, however good the rest is: a large source need not be read to its end to be refused.
        if unreadable > plan.rows * place.recipe.source.max_bad_fraction:
            _refuse_unreadable(place, plan.slices, plan.rows)
        room.scanned(missing[number], int(scan["utf8_bytes"][scan["reason"] == 0].sum()))
        on_rows(done)
    return len(missing)


def missing_scans(place: Workplace, slices: Sequence[Slice]) -> list[Slice]:
    """Those of these slices that are not scanned yet."""
    there = {f"{SCANS}/{name}" for name in place.store.names(SCANS)}
    return [work for work in slices if not there.issuperset(place.stage_one_names(work))]


def _choose(place: Workplace, plan: Plan) -> Selection:
    """Takes a byte of memory for each document, ten with dedup.near, and some hundred megabytes; the counts are written last."""
    intake, kept, copies = Intake(), Kept(), Copies()
    with Buckets(place.store.scratch(f"{WORK_FOLDER}/sort"), ENTRY, plan.rows) as buckets:
        count = 0
        for work in plan.slices:
            scan = read_scan(place, work)
            intake.add(scan, read_notes(place, work))
            clean = scan["content"][scan["reason"] == 0]
            add_documents(buckets, clean, count)
            count += len(clean)
        if sum(intake.dropped[r] for r in UNREADABLE) > intake.documents * place.recipe.source.max_bad_fraction:
            _refuse_unreadable(place, plan.slices, intake.documents)
        is_copy = np.zeros(count, dtype=np.bool_)
        copies.group_sizes = mark_copies(buckets, is_copy)
    if not place.recipe.dedup.exact:
        is_copy[:] = False
    is_near = _near_copies(place, plan, is_copy, copies) if place.recipe.dedup.near else np.zeros_like(is_copy)
    _write_keeps(place, plan, {"duplicates": is_copy, "near_duplicates": is_near}, kept, copies)
    if place.recipe.split.by == "files":
        kept.leaked = _count_leaked(place, plan)
    selection = Selection(intake, kept, copies)
    place.store.write(place.counts_name, TypeAdapter(Selection).dump_json(selection))
    return selection


def _near_copies(place: Workplace, plan: Plan, is_copy: npt.NDArray[np.bool_], copies: Copies) -> npt.NDArray[np.bool_]:
    signatures = Signatures([place.store.file(place.near_name(work)) for work in plan.slices], place.recipe.dedup)
    first = mark_near_copies(signatures, is_copy, place.recipe.dedup, place.store.scratch(f"{WORK_FOLDER}/sort"))
    is_near = first != np.arange(len(first), dtype=first.dtype)
    copies.near_samples = near_samples(place, plan, least_alike(signatures, first, np.flatnonzero(is_near)))
    return is_near


def _write_keeps(
    place: Workplace, plan: Plan, left_out: dict[CopyKind, npt.NDArray[np.bool_]], kept: Kept, copies: Copies
) -> None:
    start = 0
    for work in plan.slices:
        scan = read_scan(place, work)
        clean = np.flatnonzero(scan["reason"] == 0)
        keep = scan["reason"] == 0
        for kind, is_left_out in left_out.items():
            rows = clean[is_left_out[start : start + len(clean)]]
            keep[rows] = False
            copies.add(kind, scan["utf8_bytes"][rows])
        start += len(clean)
        kept.add(scan, keep, sides(place, work, scan))
        write_keep(place, work, keep)


def _count_leaked(place: Workplace, plan: Plan) -> int:
    """Kept documents held out that are kept for training too; takes 16 bytes of memory for each that is held out."""

    def keys(work: Slice, side: SplitName) -> npt.NDArray[Any]:
        scan = read_scan(place, work)
        chosen = read_keep(place, work) & (sides(place, work, scan) == SPLITS.index(side))
        return np.ascontiguousarray(scan["content"][chosen]).view("S16").reshape(-1)

    known, counts = np.unique(np.concatenate([keys(w, "validation") for w in plan.slices]), return_counts=True)
    is_leaked = np.zeros(len(known), dtype=np.bool_)
    for work in plan.slices if len(known) else ():
        trained = keys(work, "train")
        at = np.minimum(np.searchsorted(known, trained), len(known) - 1)
        is_leaked[at[known[at] == trained]] = True
    return int(counts[is_leaked].sum())


def _made_before(place: Workplace) -> Selection | None:
    name = place.counts_name
    return TypeAdapter(Selection).validate_json(place.store.read(name)) if place.store.exists(name) else None


def _refuse_unreadable(place: Workplace, slices: Sequence[Slice], rows: int) -> None:
    intake = Intake()
    for work in slices:
        if place.store.exists(place.scan_name(work)):
            intake.add(read_scan(place, work), read_notes(place, work))
    bad = {reason: intake.dropped[reason] for reason in UNREADABLE if intake.dropped[reason]}
    examples = "; ".join(intake.samples[reason][0] for reason in bad)
    counted = ", ".join(f"{count} {reason}" for reason, count in bad.items())
    allowed = place.recipe.source.max_bad_fraction
    raise SourceError(
        f"{sum(bad.values())} of {rows} rows cannot be read ({counted}), more than source.max_bad_fraction={allowed} "
        f"allows; for example {examples}: {', '.join(_MENDING[reason] for reason in bad)}, or raise source.max_bad_fraction"
    )


def _check_sides(intake: Intake, kept: Kept, recipe: Recipe) -> None:
    total = sum(kept.documents.values())
    if total == 0:
        counted = ", ".join(f"{intake.dropped[reason]} {reason}" for reason in intake.reasons())
        raise SourceError(
            f"no document is left after cleaning (of {intake.documents}: {counted}); look at the source, or relax what dropped them"
        )
    needed: tuple[SplitName, ...] = SPLITS if recipe.split.validation_fraction > 0 else ("train",)
    for name in needed:
        if kept.documents[name] == 0:
            raise SourceError(
                f"the {name} side of the split is empty, as all {total} documents fell to the other; give more "
                "documents, or write split.validation_fraction=0 to hold none out, or another split.salt"
            )
