"""Decides how a user is shown which near copies were dropped: where both documents are, and where they begin to differ."""

from collections.abc import Iterable

import numpy as np

from packtrain.prepare.sources.row import Row
from packtrain.prepare.sources.slices import Slicing
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import read_scan, source_rows

_BEFORE, _SHOWN = 30, 80


def near_samples(place: Results, plan: Slicing, pairs: Iterable[tuple[int, int, float]]) -> list[str]:
    """A sentence for each (near copy, document that stays, similarity); clean documents are numbered over all slices."""
    known = list(pairs)
    rows = _rows(place, plan, {number for near, stays, _ in known for number in (near, stays)})
    return [_sentence(rows[near], rows[stays], likeness) for near, stays, likeness in known]


def _rows(place: Results, plan: Slicing, numbers: set[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    start = 0
    for work in plan.slices if numbers else ():
        clean = np.flatnonzero(read_scan(place, work)["reason"] == 0)
        wanted = {int(clean[n - start]): n for n in numbers if start <= n < start + len(clean)}
        start += len(clean)
        if wanted:
            rows = enumerate(source_rows(place, work))
            found.update((wanted[position], row) for position, row in rows if position in wanted)
    return found


def _sentence(near: Row, stays: Row, likeness: float) -> str:
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
