"""Decides which dataset each place of a run is given to, by weights, in closed form: nothing is remembered between places.

Weights become whole numbers, whose sum is a cycle. Within it, places are assigned by the rule of Tijdeman, "The chairman
assignment problem" (Discrete Mathematics 32, 1980): after any number of places, each of m datasets has had its share to within
1 - 1/(2m - 2) of a place, and in any window to within twice that, fewer than two places. When a dataset is used up, a new
segment begins, in which the others share the places by their weights.
"""

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

# Finer weights are rounded to this grain, which changes less than one part in 65,536 of all places.
MAX_CYCLE = 2**16


@dataclass(frozen=True)
class _Segment:
    """Places `first` to `stop` - 1, which the same datasets share."""

    first: int
    stop: int | None
    counts: tuple[int, ...]
    """Places in a cycle for each dataset; 0 for those that are used up."""
    seen: np.ndarray
    """Rows of each dataset before the segment, int64[m]."""


class Interleave:
    """Gives the places 0, 1, 2, ... of a run to datasets numbered from 0, by the rule above.

    `weights` are as `whole_weights` gives them; `limits` are the rows that each dataset can give in all, None for no limit.
    """

    def __init__(self, weights: Sequence[int], limits: Sequence[int | None]) -> None:
        assert weights and len(weights) == len(limits) and all(weight > 0 for weight in weights)
        self._segments: list[_Segment] = []
        counts, seen, first = tuple(weights), [0] * len(weights), 0
        while any(counts):
            last = [_end(counts, dataset, limits[dataset], seen[dataset]) for dataset in range(len(counts))]
            ends = [end for end in last if end is not None]
            stop = first + min(ends) if ends else None
            self._segments.append(_Segment(first, stop, counts, np.array(seen, dtype=np.int64)))
            if stop is None:
                break
            seen = [self.seen_by(dataset, stop) for dataset in range(len(counts))]
            counts = tuple(0 if seen[dataset] == limits[dataset] else count for dataset, count in enumerate(counts))
            first = stop
        self.num_places = self._segments[-1].stop
        """Places until every dataset is used up; None if one never is."""
        self._firsts = np.array([segment.first for segment in self._segments], dtype=np.int64)

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The dataset of each place, and how many places it had before: int64[n] each, for int64[n] below num_places."""
        dataset, seen = np.empty_like(places), np.empty_like(places)
        number = np.searchsorted(self._firsts, places, side="right") - 1
        for index in np.unique(number).tolist():
            segment, chosen = self._segments[index], number == index
            cycle = _cycle(segment.counts)
            turn, rest = np.divmod(places[chosen] - segment.first, len(cycle.dataset))
            dataset[chosen] = whose = cycle.dataset[rest]
            seen[chosen] = segment.seen[whose] + turn * cycle.counts[whose] + cycle.before[rest]
        return dataset, seen

    def places_of(self, dataset: int, seen: np.ndarray) -> np.ndarray:
        """A dataset's next place, once it had `seen` places: int64[n] for int64[n]; -1 if it is used up by then."""
        places = np.full(len(seen), -1, dtype=np.int64)
        for segment in self._segments:
            count = segment.counts[dataset]
            if count:
                chosen = seen >= segment.seen[dataset]
                turn, rest = np.divmod(seen[chosen] - segment.seen[dataset], count)
                cycle = _cycle(segment.counts)
                found = segment.first + turn * len(cycle.dataset) + cycle.places[dataset][rest]
                places[chosen] = found if segment.stop is None else np.where(found < segment.stop, found, -1)
        return places

    def seen_by(self, dataset: int, place: int) -> int:
        """How many of the places before `place` belong to a dataset."""
        segment = next(s for s in reversed(self._segments) if s.first <= place)
        turn, rest = divmod(place - segment.first, sum(segment.counts))
        within = int(np.searchsorted(_cycle(segment.counts).places[dataset], rest))
        return int(segment.seen[dataset]) + turn * segment.counts[dataset] + within


def whole_weights(weights: Sequence[float]) -> list[int] | None:
    """Whole numbers in the exact ratio of the weights as decimals, without a common divisor.

    Their sum is at most MAX_CYCLE; finer weights are rounded. None if a weight is less than one part in MAX_CYCLE.
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
    by_rest = sorted(range(len(shares)), key=lambda dataset: rounded[dataset] - shares[dataset])
    for dataset in by_rest[: MAX_CYCLE - sum(rounded)]:
        rounded[dataset] += 1
    return rounded


@dataclass(frozen=True)
class _Cycle:
    """The places 0..C - 1, which then repeat."""

    dataset: np.ndarray
    """The dataset of each place, int64[C]."""
    before: np.ndarray
    """How many places of the same dataset come before each place, int64[C]."""
    counts: np.ndarray
    """Places of each dataset, int64[m]."""
    places: tuple[np.ndarray, ...]
    """The places of each dataset, ascending."""


@functools.lru_cache(maxsize=64)
def _cycle(counts: tuple[int, ...]) -> _Cycle:
    dataset = np.array(_assign(counts), dtype=np.int64)
    places = tuple(np.flatnonzero(dataset == number) for number in range(len(counts)))
    before = np.empty(len(dataset), dtype=np.int64)
    for of_dataset in places:
        before[of_dataset] = np.arange(len(of_dataset))
    return _Cycle(dataset, before, np.array(counts, dtype=np.int64), places)


def _assign(counts: Sequence[int]) -> list[int]:
    """Tijdeman's rule: of the datasets that may have place n (from 1), it goes to the one that must have its next soonest.

    With m datasets and q = 2m - 2, a dataset i with c_i places in a cycle of C may have its x-th place, counted from 0, from
    n = C(qx + 1) / (q c_i) on, and must have it by n = C(qx + q - 1) / (q c_i).
    """
    active = [dataset for dataset, count in enumerate(counts) if count]
    if len(active) == 1:
        return active * counts[active[0]]
    cycle, q = sum(counts), 2 * len(active) - 2
    waiting = [(-(-cycle // (q * counts[dataset])), dataset, 0) for dataset in active]
    heapq.heapify(waiting)
    due: list[tuple[int, int, int]] = []
    given = []
    for place in range(1, cycle + 1):
        while waiting and waiting[0][0] <= place:
            _, dataset, had = heapq.heappop(waiting)
            heapq.heappush(due, (cycle * (q * had + q - 1) // (q * counts[dataset]), dataset, had))
        _, dataset, had = heapq.heappop(due)
        given.append(dataset)
        heapq.heappush(waiting, (-(-cycle * (q * (had + 1) + 1) // (q * counts[dataset])), dataset, had + 1))
    return given


def _end(counts: tuple[int, ...], dataset: int, limit: int | None, seen: int) -> int | None:
    """Places in a segment up to a dataset's last row, if it had `seen` rows before; None if it has no last."""
    if limit is None or not counts[dataset]:
        return None
    turn, rest = divmod(limit - seen - 1, counts[dataset])
    return turn * sum(counts) + int(_cycle(counts).places[dataset][rest]) + 1
