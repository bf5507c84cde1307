"""Whether intervals and groups say of the documents what they claim to."""

import math

import numpy as np
import pytest

from packtrain.evaluate.tally import Tally, find_intervals


def tally_of(nats: np.ndarray, tokens_each: int = 10, num_bytes: int = 30) -> Tally:
    """Documents whose mean loss is given."""
    tally = Tally(np.full(len(nats), num_bytes))
    numbers = np.repeat(np.arange(len(nats)), tokens_each)
    seen = np.tile(np.arange(1, tokens_each + 1), len(nats))
    tally.add(numbers, np.repeat(nats, tokens_each), np.full(len(numbers), num_bytes / tokens_each), seen)
    return tally


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held, true = 0, 2.0
    for seed in range(60):
        nats = np.random.default_rng(seed).normal(true, 0.5, size=60)
        found = find_intervals([tally_of(nats)], [1.0])
        assert found is not None
        low, high = found["loss"]
        held += low <= true <= high
        assert found["bits_per_byte"] == pytest.approx([x * 10 / 30 / math.log(2) for x in (low, high)])
    assert 51 <= held <= 60


def test_an_interval_is_the_same_each_time_and_needs_two_documents() -> None:
    nats = np.linspace(1.0, 3.0, 20)
    assert find_intervals([tally_of(nats)], [1.0]) == find_intervals([tally_of(nats)], [1.0])
    assert find_intervals([tally_of(nats[:1])], [1.0]) is None


def test_a_mixture_weighs_each_source_by_its_share() -> None:
    same = [tally_of(np.full(5, 1.0)), tally_of(np.full(500, 3.0))]
    found = find_intervals(same, [0.75, 0.25])
    assert found is not None
    assert found["loss"] == pytest.approx([1.5, 1.5])


def test_groups_by_length_and_place_add_up() -> None:
    sizes = np.array([10, 256, 257, 100_000, 5])
    tally = Tally(sizes)
    # The last document has no token among those scored.
    numbers, seen = np.array([0, 0, 1, 1, 1, 2, 3, 3]), np.array([0, 1, 1, 2, 3, 4, 5, 9])
    nats = np.arange(8.0)
    tally.add(numbers, nats, np.full(8, 2.0), seen)
    by_length = tally.by_length()
    assert [(row["bytes"], row["documents"], row["tokens"]) for row in by_length] == [
        ("up to 256", 2, 5),
        ("257–1,024", 1, 1),
        ("over 65,536", 1, 2),
    ]
    assert by_length[0]["loss"] == pytest.approx(nats[:5].mean())
    assert by_length[0]["bits_per_byte"] == pytest.approx(nats[:5].sum() / math.log(2) / 10)
    by_place = tally.by_position()
    assert [(row["seen"], row["tokens"]) for row in by_place] == [
        ("0", 1),
        ("1", 2),
        ("2", 1),
        ("3–4", 2),
        ("5–8", 1),
        ("9–16", 1),
    ]
    assert sum(row["loss"] * row["tokens"] for row in by_place) == pytest.approx(nats.sum())
