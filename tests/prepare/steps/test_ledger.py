"""Whether lengths are counted in the right bins, and slices add up to the whole."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from packtrain.prepare.steps.ledger import SEQ_LENS, count_lengths, count_longer, merge_lengths

PARTS = st.lists(st.lists(st.integers(0, 40_000), min_size=1, max_size=30), min_size=1, max_size=4)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_histogram_bins_begin_at_powers_of_two(lengths: list[int]) -> None:
    expected: dict[str, int] = {}
    for length in sorted(lengths):
        least = str(0 if length == 0 else 1 << (length.bit_length() - 1))
        expected[least] = expected.get(least, 0) + 1
    assert count_lengths(np.array(lengths)) == expected


@given(PARTS)
def test_slices_sum_to_the_whole(parts: list[list[int]]) -> None:
    arrays = [np.array(part) for part in parts]
    merged = merge_lengths([{"lengths": count_lengths(a), "longer": count_longer(a)} for a in arrays])
    every = [length for part in parts for length in part]
    assert sum(merged.histogram.values()) == len(every)
    for seq_len in SEQ_LENS:
        longer = [length for length in every if length > seq_len]
        assert merged.longer_than[str(seq_len)] == {"documents": len(longer), "tokens": sum(longer)}


def test_a_dataset_without_documents_has_lengths() -> None:
    empty = np.empty(0, np.int64)
    merged = merge_lengths([{"lengths": count_lengths(empty), "longer": count_longer(empty)}])
    assert merged.histogram == {}
    assert all(count == {"documents": 0, "tokens": 0} for count in merged.longer_than.values())
