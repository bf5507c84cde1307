"""Decides which documents are kept: every clean one, and of copies the first, if the source is sound and no side stays empty."""

import numpy as np
from pydantic import TypeAdapter

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS, SplitName
from packtrain.errors import SourceError
from packtrain.prepare.copies.equal import ENTRY, add_documents, mark_copies
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.ledger import Copies, CopyKind, Intake, KeptCounts, Selection
from packtrain.prepare.steps.near import mark_near
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import assign_sides, read_keep, read_notes, read_scan, write_keep
from packtrain.prepare.steps.unreadable import UnreadableRows
from packtrain.storage.buckets import Buckets
from packtrain.storage.locks import WORK_FOLDER


def choose(results: Results, slicing: Slicing, *, needs_both_sides: bool = True) -> Selection:
    """Choose among the documents of all slices, which must be scanned, and store which rows of each are kept.

    An earlier choice of the same recipe and scans is used again. Raises SourceError if more than source.max_bad_fraction of
    the rows cannot be read, or if a side of the split is empty that is needed.
    """
    with results.store.one_at_a_time("choice"):
        if results.store.exists(results.counts_name):
            selection = TypeAdapter(Selection).validate_json(results.store.read(results.counts_name))
        else:
            selection = _choose(results, slicing)
            # Last, as it says that the choice is complete.
            results.store.write(results.counts_name, TypeAdapter(Selection).dump_json(selection))
    if needs_both_sides:
        _check_sides(selection.intake, selection.kept, results.recipe)
    return selection


def _choose(results: Results, slicing: Slicing) -> Selection:
    """Takes a few hundred megabytes of memory and a byte for each document, ten with dedup.near."""
    recipe = results.recipe
    intake, kept, copies = Intake(), KeptCounts(), Copies()
    unreadable = UnreadableRows(results, slicing.slices)
    with Buckets(results.store.scratch(f"{WORK_FOLDER}/sort"), ENTRY, slicing.rows) as buckets:
        count = 0
        for piece in slicing.slices:
            scan = read_scan(results, piece)
            notes = read_notes(results, piece)
            intake.add(scan, notes)
            unreadable.add(piece, notes)
            clean = scan["content"][scan["reason"] == 0]
            add_documents(buckets, clean, count)
            count += len(clean)
        unreadable.check(intake.documents)
        is_copy = np.zeros(count, dtype=np.bool_)
        copies.group_sizes = mark_copies(buckets, is_copy)
    if not recipe.dedup.exact:
        is_copy[:] = False
    is_near = np.zeros_like(is_copy)
    if recipe.dedup.near:
        is_near, copies.near_samples = mark_near(results, slicing, is_copy)
    _write_keeps(results, slicing, {"duplicates": is_copy, "near_duplicates": is_near}, kept, copies)
    if recipe.split.by == "files":
        kept.leaked = _count_leaked(results, slicing)
    return Selection(intake, kept, copies)


def _write_keeps(
    results: Results, slicing: Slicing, left_out: dict[CopyKind, np.ndarray], kept: KeptCounts, copies: Copies
) -> None:
    """Store what is kept of each slice, and count it. `left_out` marks copies among the clean documents of all slices."""
    start = 0
    for piece in slicing.slices:
        scan = read_scan(results, piece)
        keep = scan["reason"] == 0
        clean = np.flatnonzero(keep)
        for kind, is_left_out in left_out.items():
            rows = clean[is_left_out[start : start + len(clean)]]
            keep[rows] = False
            copies.add(kind, scan["utf8_bytes"][rows])
        start += len(clean)
        kept.add(scan, keep, assign_sides(results, piece, scan))
        write_keep(results, piece, keep)


def _count_leaked(results: Results, slicing: Slicing) -> int:
    """How many kept validation documents are kept for training too. Takes 16 bytes of memory for each validation document."""

    def hashes(piece: Slice, side: SplitName) -> np.ndarray:
        scan = read_scan(results, piece)
        chosen = read_keep(results, piece) & (assign_sides(results, piece, scan) == SPLITS.index(side))
        return np.ascontiguousarray(scan["content"][chosen]).view("S16").reshape(-1)

    validation = np.concatenate([hashes(piece, "validation") for piece in slicing.slices])
    known, counts = np.unique(validation, return_counts=True)
    is_leaked = np.zeros(len(known), dtype=np.bool_)
    for piece in slicing.slices if len(known) else ():
        trained = hashes(piece, "train")
        at = np.minimum(np.searchsorted(known, trained), len(known) - 1)
        is_leaked[at[known[at] == trained]] = True
    return int(counts[is_leaked].sum())


def _check_sides(intake: Intake, kept: KeptCounts, recipe: Recipe) -> None:
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
                f"the {name} side of the split is empty, as all {total} documents are on the other side; add documents, "
                "or write split.validation_fraction=0 for no validation data, or another split.salt"
            )
