import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.data import dedup
from packtrain.data.dedup import find_copies, random_split_leak

PAIRS = st.lists(st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 3)), max_size=60)


@given(PAIRS)
def test_the_first_of_equal_hashes_stays(pairs: list[tuple[int, int]]) -> None:
    found = find_copies(np.array(pairs, dtype=np.uint64).reshape(-1, 2))
    seen: set[tuple[int, int]] = set()
    expected = []
    for pair in pairs:
        expected.append(pair not in seen)
        seen.add(pair)
    assert found.first.tolist() == expected
    counts = [pairs.count(pair) for pair in seen]
    assert found.group_sizes == {size: counts.count(size) for size in sorted(set(counts))}


def test_buckets_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**64, (5_000, 2), dtype=np.uint64)[draw.integers(0, 3_000, 9_000)]
    whole = find_copies(hashes)
    monkeypatch.setattr(dedup, "_BUCKET_DOCUMENTS", 256)
    cut = find_copies(hashes)
    assert (whole.first == cut.first).all()
    assert whole.group_sizes == cut.group_sizes


def test_leak_is_what_random_splits_show() -> None:
    draw = random.Random(0)
    groups = {1: 400, 2: 200, 5: 40}
    documents = [(size, g) for size, count in groups.items() for g in range(count) for _ in range(size)]
    leaked = held_out = 0
    for _ in range(200):
        sides = [draw.random() < 0.1 for _ in documents]
        in_training = {d for d, is_held in zip(documents, sides, strict=True) if not is_held}
        held = [d for d, is_held in zip(documents, sides, strict=True) if is_held]
        held_out += len(held)
        leaked += sum(d in in_training for d in held)
    assert random_split_leak(groups, 0.1) == pytest.approx(leaked / held_out, abs=0.02)


def test_no_copies_leak_nothing() -> None:
    assert random_split_leak({1: 10}, 0.1) == 0.0
    assert random_split_leak({}, 0.1) == 0.0
