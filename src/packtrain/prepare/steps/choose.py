"""Decides which documents are kept: every clean one, and of copies the first, but validation's of copies on both sides.

It also decides where split.by=tail cuts the text, and that the source is sound and no side stays empty that is needed.
"""

from collections.abc import Mapping

import numpy as np
from pydantic import TypeAdapter

from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.empty_sides import check_sides
from packtrain.prepare.steps.equal_documents import count_leaked, find_copies, read_sides
from packtrain.prepare.steps.ledger import Copies, CopyKind, Intake, KeptCounts, Selection
from packtrain.prepare.steps.near import mark_near
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_notes, read_scan, write_keep
from packtrain.prepare.steps.sides import Cut, assign_sides, read_cut, write_cut
from packtrain.prepare.steps.tail import drop_leaking_parts, find_cut
from packtrain.prepare.steps.unreadable import UnreadableRows


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
        check_sides(selection.intake, selection.kept, results.recipe)
    return selection


def _choose(results: Results, slicing: Slicing) -> Selection:
    """Takes a few hundred megabytes of memory and a byte for each document, three for a given split, ten more with dedup.near."""
    recipe = results.recipe
    intake, kept, copies = Intake(), KeptCounts(), Copies()
    unreadable = UnreadableRows(results, slicing.slices)
    clean_rows = [_take_in(results, piece, intake, unreadable) for piece in slicing.slices]
    unreadable.check(intake.documents)
    is_copy, is_near = np.zeros(sum(clean_rows), np.bool_), np.zeros(sum(clean_rows), np.bool_)
    # If copies are dropped anyway, the tail is that of the text without them.
    is_cut_first = recipe.split.by == "tail" and not recipe.dedup.exact
    if is_cut_first:
        write_cut(results, find_cut(results, slicing, is_copy))
    sides = read_sides(results, slicing) if recipe.split.is_given or is_cut_first else None
    copies.group_sizes = find_copies(results, slicing, is_copy, sides)
    is_leak = np.zeros_like(is_copy) if sides is None or recipe.split.keep_leaks else sides.is_leak
    is_copy &= ~is_leak & recipe.dedup.exact
    if recipe.dedup.near:
        held = None if sides is None else sides.is_held
        is_near, is_near_leak, copies.near_samples = mark_near(results, slicing, is_copy | is_leak, held)
        is_leak |= is_near_leak
    left_out: dict[CopyKind, np.ndarray] = {
        "duplicates": is_copy,
        "near_duplicates": is_near,
        "in_validation": is_leak,
    }
    if recipe.split.by == "tail":
        _settle_cut(results, slicing, left_out, is_found=is_cut_first)
    _write_keeps(results, slicing, left_out, kept, copies)
    if recipe.split.by != "content":
        kept.leaked = count_leaked(results, slicing) if recipe.split.keep_leaks else 0
    cut = read_cut(results) if recipe.split.by == "tail" else None
    return Selection(intake, kept, copies, cut if cut is not None and cut.at else None)


def _take_in(results: Results, piece: Slice, intake: Intake, unreadable: UnreadableRows) -> int:
    """Count the rows of a slice; returns how many of them are clean."""
    scan, notes = read_scan(results, piece), read_notes(results, piece)
    intake.add(scan, notes)
    unreadable.add(piece, notes)
    return int((scan["reason"] == 0).sum())


def _settle_cut(results: Results, slicing: Slicing, left_out: Mapping[CopyKind, np.ndarray], *, is_found: bool) -> None:
    """Store where the text is cut, and mark the documents that the cut puts on both sides."""
    is_left_out = np.logical_or.reduce(list(left_out.values()))
    cut = read_cut(results) if is_found else find_cut(results, slicing, is_left_out)
    if not results.recipe.split.keep_leaks:
        cut = drop_leaking_parts(results, slicing, cut, is_left_out, left_out["in_validation"])
    write_cut(results, cut)


def _write_keeps(
    results: Results, slicing: Slicing, left_out: Mapping[CopyKind, np.ndarray], kept: KeptCounts, copies: Copies
) -> None:
    """Store what is kept of each slice, and count it. `left_out` marks copies among the clean documents of all slices."""
    cut = read_cut(results) if results.recipe.split.by == "tail" else None
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
        if cut is not None and cut.at and cut.piece == piece.number:
            _count_first_part(cut, kept, copies)
        write_keep(results, piece, keep)


def _count_first_part(cut: Cut, kept: KeptCounts, copies: Copies) -> None:
    """Of the document that is cut, which is counted for validation, count the first part for what becomes of it."""
    size = cut.utf8_bytes[0]
    kept.utf8_bytes["validation"] -= size
    if cut.keeps_first:
        kept.documents["train"] += 1
        kept.utf8_bytes["train"] += size
    else:
        copies.add("in_validation", np.array([size], np.uint64))
