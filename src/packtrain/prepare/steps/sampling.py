"""Decides which rows stand for a whole source, and what copies among them say of copies in all of it."""

import bisect
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from packtrain.prepare.sources.slices import Part, Slice, Slicing

SHARE, LEAST_BYTES, MOST_BYTES = 0.01, 16 << 20, 64 << 20
"""A sample is a hundredth of the source, but no less and no more than this; a smaller source is read whole."""
_RUNS = 64
# To be worked on: so few that their files cost little beside their rows, enough to see how they differ.
_SLICES = 16
_SEED = 0
# One-sided 95 % of a normal distribution, in standard deviations.
_ONE_SIDED = 1.645


@dataclass(frozen=True)
class Sample:
    """Slices of runs of rows, how many rows each run has, and whether they are all of the source."""

    slices: tuple[Slice, ...]
    runs: tuple[tuple[int, ...], ...]
    is_whole: bool


@dataclass(frozen=True)
class CopiesBound:
    """Share of clean documents that are copies of an earlier one: seen in the sample, and the bounds for the source.

    `at_most` is None where the sample is too small to say.
    """

    seen: float
    at_least: float
    at_most: float | None


def sample(plan: Slicing) -> Sample:
    """Runs of rows from all over a source, one from a random place in each of 64 equal stretches of it.

    A run begins where a part of a file begins, as other rows of most files are found only by reading up to them.
    """
    parts = [part for work in plan.slices for part in work.parts]
    size = sum(part.size for part in parts)
    budget = min(MOST_BYTES, max(LEAST_BYTES, int(size * SHARE)))
    if budget >= size:
        return Sample(plan.slices, tuple((work.rows,) for work in plan.slices), is_whole=True)
    ends = list(accumulate(part.rows for part in parts))
    rows = max(1, plan.rows * budget // size // _RUNS)
    draw = random.Random(_SEED)
    # Of each part that is touched, the run that touched it first, and its rows.
    taken: dict[int, tuple[int, int]] = {}
    for run in range(_RUNS):
        low, high = run * plan.rows // _RUNS, (run + 1) * plan.rows // _RUNS
        index = bisect.bisect_right(ends, draw.randrange(low, max(high, low + 1)))
        left = rows
        while left > 0 and index < len(parts):
            first, before = taken.get(index, (run, 0))
            more = min(left, parts[index].rows - before)
            taken[index], left, index = (first, before + more), left - more, index + 1
    slices: list[Slice] = []
    runs: list[tuple[int, ...]] = []
    together = _RUNS // _SLICES
    for _, group in groupby(sorted(taken.items()), key=lambda item: item[1][0] // together):
        members = [(run, _first(parts[index], count)) for index, (run, count) in group]
        slices.append(Slice(len(slices), tuple(part for _, part in members)))
        runs.append(tuple(sum(p.rows for _, p in same) for _, same in groupby(members, key=lambda member: member[0])))
    return Sample(tuple(slices), tuple(runs), is_whole=False)


def bound_copies(
    runs: Sequence[npt.NDArray[np.uint64]], share: float, near_copies: int = 0, *, has_near: bool = False
) -> CopiesBound:
    """What content hashes uint64[n, 2] of the runs of a sample, a `share` of the documents, say of copies in the source.

    At least: a document with an earlier copy in the sample has one in the source; less 1.6 standard errors. At most: a
    document is dropped for a copy close before it or for one far away. The share of the first is that of documents in the
    later half of a run with a copy up to half a run before. Those with one far away are no more than pairs of equal
    documents are, which lie in two runs with a chance of share^2 (63 in 64 of them, if they are spread evenly); so many
    more could be there as a Poisson count of that size leaves open at 95 %. Near copies, of which `near_copies` were seen,
    need not be equal, so with `has_near` nothing bounds them from above.
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
        within += _pairs(part)
        half = len(part) // 2
        distance = _distance_back(part)[half:]
        looked_at += len(distance)
        close += int((distance <= half).sum())
    close_share = close / looked_at
    close_share += _ONE_SIDED * math.sqrt(close_share * (1 - close_share) / looked_at)
    far_share = _poisson_limit(_pairs(group) - within) * _RUNS / (_RUNS - 1) / (share * count)
    at_most = close_share + far_share
    return CopiesBound(seen, at_least, None if has_near or at_most >= 1.0 else max(at_most, seen))


def source_bytes(slices: Iterable[Slice]) -> int:
    """Bytes of the source that slices read, as planning counted them."""
    return sum(part.size for work in slices for part in work.parts)


def _first(part: Part, rows: int) -> Part:
    # A reader stops at the count of rows, before the end that the fingerprint speaks of.
    return replace(part, rows=rows, size=part.size * rows // part.rows, fingerprint="") if rows < part.rows else part


def _pairs(group: npt.NDArray[np.integer[Any]]) -> int:
    """How many pairs of equal entries there are."""
    sizes = np.unique(group, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _distance_back(group: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    """How far before each entry the last equal one is; more than there are entries, if none is."""
    order = np.argsort(group, kind="stable")
    distance = np.full(len(group), len(group) + 1)
    same = group[order[1:]] == group[order[:-1]]
    distance[order[1:][same]] = (order[1:] - order[:-1])[same]
    return distance


def _poisson_limit(count: int) -> float:
    """The mean for which so few events or fewer have a chance of 5 % (Wilson and Hilferty 1931)."""
    more = count + 1
    return more * (1 - 1 / (9 * more) + _ONE_SIDED / (3 * math.sqrt(more))) ** 3
