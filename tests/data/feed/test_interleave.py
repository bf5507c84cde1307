"""Places go to datasets by their weights, as evenly as possible in every window, and both directions of the formula agree."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packtrain.data.feed.interleave import MAX_CYCLE, Interleave, whole_weights

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
LIMITED = st.lists(st.tuples(st.integers(1, 12), st.one_of(st.none(), st.integers(1, 60))), min_size=1, max_size=5)


def sources(interleave: Interleave, first: int, stop: int) -> np.ndarray:
    return interleave.at(np.arange(first, stop))[0]


@settings(deadline=None, max_examples=200)
@given(counts=COUNTS, first=st.integers(0, 2**40), length=st.integers(1, 400))
@example(counts=[1], first=0, length=9)
@example(counts=[1, 1], first=1, length=1)
@example(counts=[39, 1, 1, 1, 1], first=0, length=400)
def test_every_window_holds_the_shares_to_within_two_places(counts: list[int], first: int, length: int) -> None:
    interleave = Interleave(counts, [None] * len(counts))
    window = np.bincount(sources(interleave, first, first + length), minlength=len(counts))
    bound = 1 - Fraction(1, 2 * len(counts) - 2) if len(counts) > 1 else Fraction(0)
    for source, count in enumerate(counts):
        share = Fraction(count, sum(counts))
        assert abs(int(window[source]) - share * length) <= 2 * bound < 2
        # And from the beginning on, where one place is all that is missing.
        assert abs(interleave.seen_by(source, first) - share * first) <= bound < 1


def one_by_one(weights: list[int], limits: list[int | None], stop: int) -> list[tuple[int, int]]:
    """The definition, kept in a loop: cycles of those that go on, begun anew when one ends."""
    seen, given, active = [0] * len(weights), [], list(range(len(weights)))
    while len(given) < stop and active:
        order = sources(
            Interleave([weights[s] for s in active], [None] * len(active)), 0, sum(weights[s] for s in active)
        )
        at = 0
        while len(given) < stop:
            source = active[order[at % len(order)]]
            given.append((source, seen[source]))
            seen[source] += 1
            at += 1
            if seen[source] == limits[source]:
                active.remove(source)
                break
    return given


@settings(deadline=None, max_examples=120)
@given(parts=LIMITED)
@example(parts=[(1, 1), (1, 1)])
@example(parts=[(3, 5), (1, None)])
@example(parts=[(1, 60), (12, 1), (12, 1), (12, 1)])
def test_sources_end_where_they_are_used_up_and_the_others_go_on(parts: list[tuple[int, int | None]]) -> None:
    weights, limits = [weight for weight, _ in parts], [limit for _, limit in parts]
    interleave = Interleave(weights, limits)
    finite = [limit for limit in limits if limit is not None]
    assert interleave.num_places == (sum(finite) if len(finite) == len(limits) else None)
    stop = interleave.num_places or 120
    source, seen = interleave.at(np.arange(stop))
    assert list(zip(source.tolist(), seen.tolist(), strict=True)) == one_by_one(weights, limits, stop)
    for number, limit in enumerate(limits):
        own = np.flatnonzero(source == number)
        assert seen[own].tolist() == list(range(len(own)))
        assert np.array_equal(interleave.places_of(number, seen[own]), own)
        counted = np.concatenate([[0], np.cumsum(source == number)])
        assert all(interleave.seen_by(number, place) == counted[place] for place in range(0, stop, 7))
        if limit is not None:
            assert len(own) <= limit
            assert interleave.places_of(number, np.array([limit, limit + 5])).tolist() == [-1, -1]


@settings(deadline=None, max_examples=100)
@given(parts=LIMITED, first=st.integers(2, 2**50), data=st.data())
def test_a_far_place_is_computed_and_not_counted_to(
    parts: list[tuple[int, int | None]], first: int, data: st.DataObject
) -> None:
    interleave = Interleave(
        [weight for weight, _ in parts], [None if limit is None else limit * first for _, limit in parts]
    )
    last = (interleave.num_places or 2**60) - 1
    places = np.array(data.draw(st.lists(st.integers(0, last), min_size=1, max_size=20)))
    source, seen = interleave.at(places)
    for place, whose, had in zip(places.tolist(), source.tolist(), seen.tolist(), strict=True):
        assert interleave.places_of(whose, np.array([had])).tolist() == [place]
        assert interleave.seen_by(whose, place) == had


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([0.7, 0.3], [7, 3]),
        ([7.0, 3.0], [7, 3]),
        ([2], [1]),
        ([1e-05, 0.00002], [1, 2]),
        ([0.333, 0.667], [333, 667]),
        ([50, 25, 25], [2, 1, 1]),
        ([1.0, 1e-9], None),
    ],
)
def test_weights_become_whole_numbers(weights: list[float], whole: list[int] | None) -> None:
    assert whole_weights(weights) == whole


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_weights_of_any_grain_are_kept_to_one_part_in_the_longest_cycle(weights: list[float]) -> None:
    whole = whole_weights(weights)
    if whole is not None:
        assert sum(whole) <= MAX_CYCLE and min(whole) >= 1
        for given_weight, kept in zip(weights, whole, strict=True):
            assert abs(kept / sum(whole) - given_weight / sum(weights)) < 1.001 / MAX_CYCLE


def test_the_longest_cycle_holds_its_shares_too() -> None:
    counts = whole_weights([0.123456789, 0.5, 0.000123, 0.376420211])
    assert counts is not None and sum(counts) == MAX_CYCLE
    order = sources(Interleave(counts, [None] * 4), 0, MAX_CYCLE)
    for source, count in enumerate(counts):
        drift = np.cumsum(order == source) - np.arange(1, MAX_CYCLE + 1) * count / MAX_CYCLE
        assert np.abs(drift).max() <= 5 / 6 + 1e-9
