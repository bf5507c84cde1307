"""Decides which clean documents of a source are equal to others, and how many of validation are kept for training too."""

import numpy as np

from packtrain.data.format.manifest import SPLITS, SplitName
from packtrain.prepare.copies.equal import ENTRY, Sides, add_documents, add_numbered, mark_copies
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_keep, read_scan
from packtrain.prepare.steps.sides import assign_sides, read_cut
from packtrain.storage.buckets import Buckets
from packtrain.storage.locks import WORK_FOLDER


def read_sides(results: Results, slicing: Slicing) -> Sides:
    """The side of every clean document."""
    held = [np.empty(0, np.bool_)]
    for piece in slicing.slices:
        sides = assign_sides(results, piece, read_scan(results, piece))
        held.append(sides[sides >= 0] == SPLITS.index("validation"))
    is_held = np.concatenate(held)
    return Sides(is_held, np.zeros_like(is_held))


def find_copies(results: Results, slicing: Slicing, is_copy: np.ndarray, sides: Sides | None) -> dict[int, int]:
    """Mark the copies among the clean documents of all slices; returns how many groups of equal documents have each size."""
    with Buckets(results.store.scratch(f"{WORK_FOLDER}/sort"), ENTRY, slicing.rows) as buckets:
        for is_held in (None,) if sides is None else (True, False):
            count = 0
            for piece in slicing.slices:
                scan = read_scan(results, piece)
                clean = scan["content"][scan["reason"] == 0]
                if sides is None:
                    add_documents(buckets, clean, count)
                else:
                    its = np.flatnonzero(sides.is_held[count : count + len(clean)] == is_held)
                    add_numbered(buckets, clean[its], count + its)
                count += len(clean)
        return mark_copies(buckets, is_copy, sides)


def count_leaked(results: Results, slicing: Slicing) -> int:
    """How many kept validation documents are kept for training too. Takes 16 bytes of memory for each validation document."""
    cut = read_cut(results) if results.recipe.split.by == "tail" else None

    def hashes(piece: Slice, side: SplitName) -> np.ndarray:
        scan = read_scan(results, piece)
        chosen = read_keep(results, piece) & (assign_sides(results, piece, scan) == SPLITS.index(side))
        contents = scan["content"].copy()
        if cut is not None and cut.at and cut.piece == piece.number:
            chosen[cut.row] = side == "validation" or cut.keeps_first
            contents[cut.row] = np.frombuffer(bytes.fromhex(cut.contents[SPLITS.index(side)]), "<u8")
        return np.ascontiguousarray(contents[chosen]).view("S16").reshape(-1)

    validation = np.concatenate([hashes(piece, "validation") for piece in slicing.slices])
    known, counts = np.unique(validation, return_counts=True)
    is_leaked = np.zeros(len(known), dtype=np.bool_)
    for piece in slicing.slices if len(known) else ():
        trained = hashes(piece, "train")
        at = np.minimum(np.searchsorted(known, trained), len(known) - 1)
        is_leaked[at[known[at] == trained]] = True
    return int(counts[is_leaked].sum())
