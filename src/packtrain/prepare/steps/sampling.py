"""Decides which rows represent a whole source, and what copies among them say about copies in all of it."""

import bisect
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import numpy as np

from packtrain.prepare.sources.slices import Part, Slice, Slicing

SHARE, LEAST_BYTES, MOST_BYTES = 0.01, 16 << 20, 64 << 20
"""A sample is a hundredth of the source, within these limits; a smaller source is read whole."""
_RUNS = 64
# One-sided 95 % of a normal distribution, in standard deviations.
_ONE_SIDED = 1.645


@dataclass(frozen=True)
class Sample:
    """Slices made of runs of rows, the number of rows of each run, and whether they are the whole source."""

    slices: tuple[Slice, ...]
    runs: tuple[tuple[int, ...], ...]
    is_whole: bool


@dataclass(frozen=True)
class CopiesBound:
    """The share of clean documents that are copies of an earlier one: in the sample, and bounds for the source.

    `at_most` is None if the sample is too small to say.
    """

    seen: float
    at_least: float
    at_most: float | None


def draw_sample(slicing: Slicing) -> Sample:
    """Runs of rows from all over a source: one from a random position in each of 64 equal stretches.

    A run begins where a part of a file begins, because most files must be read up to any other row.
    """
    parts = [part for piece in slicing.slices for part in piece.parts]
    size = sum(part.size for part in parts)
    budget = min(MOST_BYTES, max(LEAST_BYTES, int(size * SHARE)))
    if budget >= size:
        return Sample(slicing.slices, tuple((piece.rows,) for piece in slicing.slices), is_whole=True)
    ends = list(accumulate(part.rows for part in parts))
    rows = max(1, slicing.rows * budget // size // _RUNS)
    draw = random.Random(0)
    # For each part in the sample: the run that took it first, and how many of its rows are taken.
    taken: dict[int, tuple[int, int]] = {}
    for run in range(_RUNS):
        low, high = run * slicing.rows // _RUNS, (run + 1) * slicing.rows // _RUNS
        index = bisect.bisect_right(ends, draw.randrange(low, max(high, low + 1)))
        left = rows
        while left > 0 and index < len(parts):
            first, before = taken.get(index, (run, 0))
            more = min(left, parts[index].rows - before)
            taken[index], left, index = (first, before + more), left - more, index + 1
    slices: list[Slice] = []
    runs: list[tuple[int, ...]] = []
    # 16 slices of 4 runs: few enough that their files cost little beside their rows, and enough to see how they differ.
    for _, group in groupby(sorted(taken.items()), key=lambda item: item[1][0] // 4):
        members = [(run, _take_first(parts[index], count)) for index, (run, count) in group]
        slices.append(Slice(len(slices), tuple(part for _, part in members)))
        runs.append(tuple(sum(p.rows for _, p in same) for _, same in groupby(members, key=lambda member: member[0])))
    return Sample(tuple(slices), tuple(runs), is_whole=False)


def bound_copies(
    runs: Sequence[np.ndarray], share: float, near_copies: int = 0, *, has_near: bool = False
) -> CopiesBound:
    """Bound the copies in a source by the content hashes uint64[n, 2] of a sample's runs, a `share` of its documents.

    Lower bound: a document with an earlier copy in the sample has one in the source; less 1.6 standard errors.

    Upper bound: a document is dropped for a copy shortly before it or for one far away. The share of the first kind is that
    of documents in the later half of a run with a copy at most half a run before. The second kind is at most the number of
    pairs of equal documents. A pair falls into two runs of the sample with a chance of share^2 (63 in 64 of it, if pairs are
    spread evenly), and the bound on such pairs is the 95 % limit of a Poisson count. Near copies, of which `near_copies` were
    seen, need not be equal, so with `has_near` there is no upper bound.
    """
    contents = np.concatenate([*runs, np.empty((0, 2), np.uint64)])
    count = len(contents)
    if count == 0:
        return CopiesBound(0.0, 0.0, None)
    _, group = np.unique(contents, axis=0, return_inverse=True)
    seen = (count - int(group.max() + 1) + near_copies) / count
    if share >= 1.0:
        return CopiesBound(seen, seen, seen)
    at_least = max(0.0, seen - _ONE_SIDED * math.sqrt(seen * (1 - seen) / count))
    within = looked_at = close = 0
    for part in np.split(group, np.cumsum([len(run) for run in runs])[:-1]):
        within += _count_pairs(part)
        half = len(part) // 2
        distance = _distance_back(part)[half:]
        looked_at += len(distance)
        close += int((distance <= half).sum())
    close_share = close / looked_at
    close_share += _ONE_SIDED * math.sqrt(close_share * (1 - close_share) / looked_at)
    far_share = _poisson_limit(_count_pairs(group) - within) * _RUNS / (_RUNS - 1) / (share * count)
    at_most = close_share + far_share
    return CopiesBound(seen, at_least, None if has_near or at_most >= 1.0 else max(at_most, seen))


def source_bytes(slices: Iterable[Slice]) -> int:
    """Bytes of the source in these slices, as planning counted them."""
    return sum(part.size for piece in slices for part in piece.parts)


def _take_first(part: Part, rows: int) -> Part:
    # A reader stops at the number of rows, so the fingerprint of the whole part is not reached.
    return replace(part, rows=rows, size=part.size * rows // part.rows, fingerprint="") if rows < part.rows else part


def _count_pairs(group: np.ndarray) -> int:
    """How many pairs of equal entries there are."""
    sizes = np.unique(group, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _distance_back(group: np.ndarray) -> np.ndarray:
    """How far before each entry the last equal one is; more than the number of entries if there is none."""
    order = np.argsort(group, kind="stable")
    distance = np.full(len(group), len(group) + 1)
    same = group[order[1:]] == group[order[:-1]]
    distance[order[1:][same]] = (order[1:] - order[:-1])[same]
    return distance


def _poisson_limit(count: int) -> float:
    """The mean for which that many events or fewer have a chance of 5 % (Wilson and Hilferty 1931)."""
    more = count + 1
    return more * (1 - 1 / (9 * more) + _ONE_SIDED / (3 * math.sqrt(more))) ** 3
