import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from packtrain.prepare.steps.lengths import SEQ_LENS, length_histogram, longer_than, merge

PARTS = st.lists(st.lists(st.integers(0, 40_000), min_size=1, max_size=30), min_size=1, max_size=4)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_histogram_bins_begin_at_powers_of_two(lengths: list[int]) -> None:
    expected: dict[str, int] = {}
    for length in sorted(lengths):
        least = str(0 if length == 0 else 1 << (length.bit_length() - 1))
        expected[least] = expected.get(least, 0) + 1
    assert length_histogram([np.array(lengths)]) == expected


@given(PARTS)
def test_slices_sum_to_the_whole(parts: list[list[int]]) -> None:
    arrays = [np.array(part) for part in parts]
    merged = merge([{"lengths": length_histogram([a]), "longer": longer_than([a])} for a in arrays])
    every = [length for part in parts for length in part]
    assert sum(merged.histogram.values()) == len(every)
    for seq_len in SEQ_LENS:
        longer = [length for length in every if length > seq_len]
        assert merged.longer_than[str(seq_len)] == {"documents": len(longer), "tokens": sum(longer)}


def test_a_dataset_without_documents_has_lengths() -> None:
    merged = merge([{"lengths": length_histogram([]), "longer": longer_than([])}])
    assert merged.histogram == {}
    assert all(count == {"documents": 0, "tokens": 0} for count in merged.longer_than.values())
