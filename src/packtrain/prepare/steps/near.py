"""Decides which clean documents of a recipe are near copies, and how a few of them are shown."""

import numpy as np

from packtrain.prepare.copies.clusters import find_least_alike, keep_within_sides, mark_near_copies
from packtrain.prepare.copies.signatures import Signatures
from packtrain.prepare.sources.slices import Row, Slicing
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_scan, read_source_rows
from packtrain.storage.locks import WORK_FOLDER

_BEFORE, _SHOWN = 30, 80


def mark_near(
    results: Results, slicing: Slicing, is_copy: np.ndarray, is_held: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Which clean documents are near copies of an earlier one of their side, and which near copies of validation leave the
    training side, both bool[documents]; and the least alike pairs, in words.

    Documents marked in `is_copy`, bool[documents], are ignored. `is_held`, bool[documents], gives the sides of a split that
    was given; None if near copies are the same whatever their side.
    """
    dedup = results.recipe.dedup
    signatures = Signatures([results.store.file(results.near_name(piece)) for piece in slicing.slices], dedup)
    first = mark_near_copies(signatures, is_copy, dedup, results.store.scratch(f"{WORK_FOLDER}/sort"))
    is_leak = np.zeros_like(is_copy)
    if is_held is not None:
        keep_within_sides(first, is_copy, is_held, keep_leaks=results.recipe.split.keep_leaks)
        is_leak = is_held[first] & ~is_held
    is_near = first != np.arange(len(first), dtype=first.dtype)
    pairs = list(find_least_alike(signatures, first, np.flatnonzero(is_near)))
    rows = _find_rows(results, slicing, {number for near, stays, _ in pairs for number in (near, stays)})
    samples = [_describe(rows[near], rows[stays], likeness) for near, stays, likeness in pairs]
    return is_near & ~is_leak, is_leak, samples


def _find_rows(results: Results, slicing: Slicing, numbers: set[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    start = 0
    for piece in slicing.slices if numbers else ():
        clean = np.flatnonzero(read_scan(results, piece)["reason"] == 0)
        wanted = {int(clean[n - start]): n for n in numbers if start <= n < start + len(clean)}
        start += len(clean)
        if wanted:
            rows = enumerate(read_source_rows(results, piece))
            found.update((wanted[position], row) for position, row in rows if position in wanted)
    return found


def _describe(near: Row, stays: Row, likeness: float) -> str:
    words = [(row.text or "").split() for row in (near, stays)]
    pairs = enumerate(zip(*words, strict=False))
    differ = next((at for at, (one, other) in pairs if _bare(one) != _bare(other)), 0)
    shown = [_excerpt(text, differ) for text in words]
    return (
        f"{near.file} row {near.row}, some {likeness:.0%} like {stays.file} row {stays.row}, which stays: "
        f"{shown[0]!r} for {shown[1]!r}"
    )


def _bare(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))


def _excerpt(words: list[str], at: int) -> str:
    start = max(0, len(" ".join(words[:at])) - _BEFORE)
    return f"{'...' if start else ''}{' '.join(words)[start : start + _SHOWN]}"
