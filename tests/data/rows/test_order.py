"""The order is a permutation for every length, can be undone, and looks random."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packtrain.data.rows.order import invert, order_key, permute

AWKWARD_LENGTHS = sorted(
    {1, 2, 3, 5, 6, 7, 65_537, 262_145}
    | {2**k for k in range(1, 19)}
    | {4**k + 1 for k in range(1, 10)}
    | {4**k - 1 for k in range(1, 10)}
)


@pytest.mark.parametrize("num", AWKWARD_LENGTHS)
def test_every_index_is_visited_once_and_the_inverse_undoes_it(num: int) -> None:
    index = np.arange(num)
    for epoch in range(2):
        key = order_key(1337, epoch, "rows")
        image = permute(index, num, key)
        assert np.array_equal(np.sort(image), index)
        assert np.array_equal(invert(image, num, key), index)
        assert np.array_equal(permute(invert(index, num, key), num, key), index)


@settings(deadline=None, max_examples=60)
@given(num=st.integers(1, 5000), seed=st.integers(0, 2**63), epoch=st.integers(0, 2**40), source=st.text(max_size=8))
@example(num=1, seed=0, epoch=0, source="")
def test_bijection_for_any_length_and_key(num: int, seed: int, epoch: int, source: str) -> None:
    key = order_key(seed, epoch, source)
    image = permute(np.arange(num), num, key)
    assert np.array_equal(np.bincount(image, minlength=num), np.ones(num, dtype=np.int64))
    assert np.array_equal(invert(image, num, key), np.arange(num))


@settings(deadline=None, max_examples=60)
@given(num=st.integers(2**33, 2**60), seed=st.integers(0, 2**32), data=st.data())
def test_huge_lengths_cost_nothing_and_invert(num: int, seed: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=20, unique=True)), dtype=np.int64)
    key = order_key(seed, 0, "rows")
    image = permute(index, num, key)
    assert image.min() >= 0 and image.max() < num
    assert len(set(image.tolist())) == len(index)
    assert np.array_equal(invert(image, num, key), index)


def test_an_element_does_not_depend_on_what_is_asked_beside_it() -> None:
    key = order_key(7, 0, "rows")
    whole = permute(np.arange(1000), 1000, key)
    assert [int(permute(np.array([i]), 1000, key)[0]) for i in range(0, 1000, 37)] == whole[::37].tolist()
    assert np.array_equal(permute(np.arange(1000).reshape(10, 100), 1000, key), whole.reshape(10, 100))
    assert permute(np.array([], dtype=np.int64), 1000, key).shape == (0,)


def test_the_order_never_changes_between_versions() -> None:
    """A run resumed under a later version must see the same rows; a new order needs a new plan version."""
    key = order_key(1337, 0, "golden")
    assert key.hex() == "49531ef880f994ab962ef74d1b6a26e6"
    assert permute(np.arange(8), 1000, key).tolist() == [814, 877, 63, 970, 376, 702, 301, 572]


def test_keys_of_neighbouring_seeds_and_epochs_share_nothing() -> None:
    keys = {order_key(seed, epoch, source) for seed, epoch, source in itertools.product(range(8), range(8), ("a", "b"))}
    assert len(keys) == 8 * 8 * 2
    assert all(len(key) == 16 for key in keys)
    orders = {tuple(permute(np.arange(50), 50, key).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_two_and_three_rows_come_in_every_order() -> None:
    for num, num_orders in ((2, 2), (3, 6)):
        seen = {tuple(permute(np.arange(num), num, order_key(seed, 0, "rows")).tolist()) for seed in range(400)}
        assert len(seen) == num_orders


@pytest.mark.parametrize("num", [1000, 4097, 65_537])
def test_order_looks_random(num: int) -> None:
    """Fixed points, neighbours and spread over buckets within five standard deviations of a random permutation."""
    index = np.arange(num)
    num_keys, buckets = 40, 10
    fixed, neighbours = 0, 0
    table = np.zeros((buckets, buckets))
    for seed in range(num_keys):
        image = permute(index, num, order_key(seed, 0, "rows"))
        fixed += int((image == index).sum())
        neighbours += int((np.diff(image) == 1).sum())
        np.add.at(table, (index * buckets // num, image * buckets // num), 1)
        assert abs(np.corrcoef(index, image)[0, 1]) < 5 / np.sqrt(num)
    for count in (fixed, neighbours):  # Both Poisson with mean one per permutation.
        assert abs(count - num_keys) < 5 * np.sqrt(num_keys)
    expected = num_keys * num / buckets**2
    chi_square = float(((table - expected) ** 2 / expected).sum())
    freedom = (buckets - 1) ** 2
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_index_outside_the_range_is_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="outside range"):
        permute(np.array([10]), 10, order_key(0, 0, ""))
