"""Decides which documents are kept: all that are clean, of copies the first, if the source is sound and both sides get some."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS, SplitName
from packtrain.errors import SourceError
from packtrain.prepare.copies.clusters import least_alike, mark_near_copies
from packtrain.prepare.copies.equal import ENTRY, add_documents, mark_copies
from packtrain.prepare.copies.signatures import Signatures
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.keep import read_keep, write_keep
from packtrain.prepare.steps.ledger import Copies, CopyKind, Intake, Kept
from packtrain.prepare.steps.passes import _refuse_unreadable
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.samples import near_samples
from packtrain.prepare.steps.scan import UNREADABLE, read_notes, read_scan, sides
from packtrain.storage.buckets import Buckets
from packtrain.storage.locks import WORK_FOLDER


@dataclass(frozen=True)
class Selection:
    """The counts of the choice of documents, which itself lies in the work folder: see `stages.read_keep`."""

    intake: Intake
    kept: Kept
    copies: Copies


def choose(place: Results, plan: Slicing, *, needs_both_sides: bool = True) -> Selection:
    """Choose over all slices, which have to be scanned, and write what is kept of each.

    A choice made before is taken as it is. Raises SourceError if more than source.max_bad_fraction of the rows cannot be
    read, or one side of the split is empty that is needed.
    """
    with place.store.one_at_a_time("choice"):
        selection = _made_before(place) or _choose(place, plan)
    if needs_both_sides:
        _check_sides(selection.intake, selection.kept, place.recipe)
    return selection


def _choose(place: Results, plan: Slicing) -> Selection:
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


def _near_copies(
    place: Results, plan: Slicing, is_copy: npt.NDArray[np.bool_], copies: Copies
) -> npt.NDArray[np.bool_]:
    signatures = Signatures([place.store.file(place.near_name(work)) for work in plan.slices], place.recipe.dedup)
    first = mark_near_copies(signatures, is_copy, place.recipe.dedup, place.store.scratch(f"{WORK_FOLDER}/sort"))
    is_near = first != np.arange(len(first), dtype=first.dtype)
    copies.near_samples = near_samples(place, plan, least_alike(signatures, first, np.flatnonzero(is_near)))
    return is_near


def _write_keeps(
    place: Results, plan: Slicing, left_out: dict[CopyKind, npt.NDArray[np.bool_]], kept: Kept, copies: Copies
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


def _count_leaked(place: Results, plan: Slicing) -> int:
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


def _made_before(place: Results) -> Selection | None:
    name = place.counts_name
    return TypeAdapter(Selection).validate_json(place.store.read(name)) if place.store.exists(name) else None


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
