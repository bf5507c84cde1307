"""Decides how near copies that were dropped are shown: where both documents are, and where they begin to differ."""

from collections.abc import Iterable

import numpy as np

from packtrain.prepare.sources.row import Row
from packtrain.prepare.sources.slices import Slicing
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_scan, read_source_rows

_BEFORE, _SHOWN = 30, 80


def describe_near_copies(results: Results, slicing: Slicing, pairs: Iterable[tuple[int, int, float]]) -> list[str]:
    """A sentence for each (near copy, document kept for it, similarity); clean documents are numbered over all slices."""
    known = list(pairs)
    rows = _find_rows(results, slicing, {number for near, stays, _ in known for number in (near, stays)})
    return [_describe(rows[near], rows[stays], likeness) for near, stays, likeness in known]


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
