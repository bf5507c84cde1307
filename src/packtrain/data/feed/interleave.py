"""Decides which source each place of a run is given to, by weights, in closed form: nothing is remembered between places.

Weights become whole numbers that sum to a cycle; within it the places are given out by the rule of Tijdeman, "The chairman
assignment problem" (Discrete Mathematics 32, 1980), so that after any number of places each of m sources has had its share to
within 1 - 1/(2m - 2) of a place, and in any window to within twice that: fewer than two places. Where a source has an end and
reaches it, a new segment begins, in which the others share the places by the same weights among themselves.
"""

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# Weights of a finer grain than this are rounded to it: by less than one part in 65,536 of all places.
MAX_CYCLE = 2**16


@dataclass(frozen=True)
class _Segment:
    """Places from `first` on in which the same sources take part."""

    first: int
    stop: int | None
    counts: tuple[int, ...]
    """Places of a cycle for each source; 0 for those that are used up."""
    seen: np.ndarray
    """Rows of each source before the segment, int64[m]."""


class Interleave:
    """Gives the places 0, 1, 2, ... of a run to sources numbered from 0; see the module for the rule.

    `weights`: as `whole_weights` gives them. `limits`: rows that each source has in all, None where it never ends.
    """

    def __init__(self, weights: Sequence[int], limits: Sequence[int | None]) -> None:
        assert weights and len(weights) == len(limits) and all(weight > 0 for weight in weights)
        self._segments: list[_Segment] = []
        counts, seen, first = tuple(weights), [0] * len(weights), 0
        while any(counts):
            last = [_end(counts, source, limits[source], seen[source]) for source in range(len(counts))]
            ends = [end for end in last if end is not None]
            stop = first + min(ends) if ends else None
            self._segments.append(_Segment(first, stop, counts, np.array(seen, dtype=np.int64)))
            if stop is None:
                break
            seen = [self.seen_by(source, stop) for source in range(len(counts))]
            counts = tuple(0 if seen[source] == limits[source] else count for source, count in enumerate(counts))
            first = stop
        self.num_places = self._segments[-1].stop
        """Places until every source is used up; None where one never is."""
        self._firsts = np.array([segment.first for segment in self._segments], dtype=np.int64)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whose each place is, and how many that source has had before it: int64[n] each, for int64[n] below num_places."""
        source, seen = np.empty_like(places), np.empty_like(places)
        number = np.searchsorted(self._firsts, places, side="right") - 1
        for index in np.unique(number).tolist():
            segment, chosen = self._segments[index], number == index
            cycle = _cycle(segment.counts)
            turn, rest = np.divmod(places[chosen] - segment.first, len(cycle.source))
            source[chosen] = whose = cycle.source[rest]
            seen[chosen] = segment.seen[whose] + turn * cycle.counts[whose] + cycle.before[rest]
        return source, seen

    def places_of(self, source: int, seen: np.ndarray) -> np.ndarray:
        """The place at which a source has had `seen` places before, int64[n] for int64[n]; -1 where it is used up by then."""
        places = np.full(len(seen), -1, dtype=np.int64)
        for segment in self._segments:
            count = segment.counts[source]
            if count:
                chosen = seen >= segment.seen[source]
                turn, rest = np.divmod(seen[chosen] - segment.seen[source], count)
                cycle = _cycle(segment.counts)
                found = segment.first + turn * len(cycle.source) + cycle.places[source][rest]
                places[chosen] = found if segment.stop is None else np.where(found < segment.stop, found, -1)
        return places

    def seen_by(self, source: int, place: int) -> int:
        """How many of the places before `place` are this source's."""
        segment = next(s for s in reversed(self._segments) if s.first <= place)
        turn, rest = divmod(place - segment.first, sum(segment.counts))
        within = int(np.searchsorted(_cycle(segment.counts).places[source], rest))
        return int(segment.seen[source]) + turn * segment.counts[source] + within


def whole_weights(weights: Sequence[float]) -> list[int] | None:
    """Whole numbers in the ratio of the weights, as those are written in decimals, without a common divisor.

    Their sum is at most MAX_CYCLE, to which finer ones are rounded; None if one of them is below one part in that.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= MAX_CYCLE:
        return [weight // divisor for weight in whole]
    shares = [Fraction(weight * MAX_CYCLE, sum(whole)) for weight in whole]
    if min(shares) < 1:
        return None
    rounded = [int(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda source: rounded[source] - shares[source])
    for source in by_rest[: MAX_CYCLE - sum(rounded)]:
        rounded[source] += 1
    return rounded


@dataclass(frozen=True)
class _Cycle:
    """The places 0..C - 1, after which the same begins again."""

    source: np.ndarray
    """Whose each place is, int64[C]."""
    before: np.ndarray
    """How many of its source's places come before each place, int64[C]."""
    counts: np.ndarray
    """Places of each source, int64[m]."""
    places: tuple[np.ndarray, ...]
    """The places of each source, ascending."""


@functools.lru_cache(maxsize=64)
def _cycle(counts: tuple[int, ...]) -> _Cycle:
    source = np.array(_assign(counts), dtype=np.int64)
    places = tuple(np.flatnonzero(source == number) for number in range(len(counts)))
    before = np.empty(len(source), dtype=np.int64)
    for of_source in places:
        before[of_source] = np.arange(len(of_source))
    return _Cycle(source, before, np.array(counts, dtype=np.int64), places)


def _assign(counts: Sequence[int]) -> list[int]:
    """Tijdeman's rule: place n (from 1) goes to a source that may have its next one by then and must have it soonest.

    With q = 2m - 2 of m sources, source i of c_i places in a cycle of C may have its x-th place, counted from 0, from
    n = C(qx + 1) / (q c_i) on, and must have it by n = C(qx + q - 1) / (q c_i).
    """
    active = [source for source, count in enumerate(counts) if count]
    if len(active) == 1:
        return active * counts[active[0]]
    cycle, q = sum(counts), 2 * len(active) - 2
    waiting = [(-(-cycle // (q * counts[source])), source, 0) for source in active]
    heapq.heapify(waiting)
    due: list[tuple[int, int, int]] = []
    given = []
    for place in range(1, cycle + 1):
        while waiting and waiting[0][0] <= place:
            _, source, had = heapq.heappop(waiting)
            heapq.heappush(due, (cycle * (q * had + q - 1) // (q * counts[source]), source, had))
        _, source, had = heapq.heappop(due)
        given.append(source)
        heapq.heappush(waiting, (-(-cycle * (q * (had + 1) + 1) // (q * counts[source])), source, had + 1))
    return given


def _end(counts: tuple[int, ...], source: int, limit: int | None, seen: int) -> int | None:
    """Places of a segment up to the last row of a source that has had `seen` before it; None where there is no last."""
    if limit is None or not counts[source]:
        return None
    turn, rest = divmod(limit - seen - 1, counts[source])
    return turn * sum(counts) + int(_cycle(counts).places[source][rest]) + 1
