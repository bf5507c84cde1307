"""Dropout is a function of seed, step, row and place: the same numbers however the rows are divided and computed."""

import copy

import numpy as np
import pytest
import torch

from packtrain.model.dropout import Dropout, keep, row_keys
from packtrain.parallel.lanes import Lanes

from .tiny import built, random_tokens, tiny, with_cpu_kernels

KEYS = row_keys(7, 3, range(4))


def passed(model, rows=slice(0, 4), dropout=0.3, **arguments):
    """The loss of some rows of a batch of four, and the gradients of the model."""
    tokens, targets = random_tokens(4, 24)[rows], random_tokens(4, 24, seed=1)[rows]
    model.zero_grad()
    loss = model(tokens, targets, dropout=dropout, keys_B2=KEYS[rows], **arguments)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


def plain_keep(keys, shape, rate):
    """`keep` with unsigned numbers, as the hash is written."""
    positions = np.arange(np.prod(shape), dtype=np.uint32).reshape(1, *shape)
    first, second = (keys.numpy().view(np.uint32)[:, k].reshape(-1, 1, 1) for k in (0, 1))
    h = positions ^ first
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    h = h ^ second
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x735A2D97)
    return h.view(np.int32) >= round(rate * 2**32) - 2**31


def test_the_hash_is_that_of_unsigned_numbers():
    assert np.array_equal(keep(KEYS, torch.Size([24, 64]), 0.3).numpy(), plain_keep(KEYS, (24, 64), 0.3))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_share_is_the_rate_in_every_row_and_place_and_nothing_is_lost_on_average(rate):
    x = torch.ones(4, 64, 128)
    for place in Dropout(rate, KEYS).spread(9):
        dropped = (place(x) == 0).double().mean(dim=(1, 2))
        # Six standard deviations of 8,192 throws.
        assert (dropped - rate).abs().max() < 6 * (rate * (1 - rate) / 8192) ** 0.5
        assert place(x).max() == pytest.approx(1 / (1 - rate))


def test_rows_steps_seeds_and_places_are_unrelated():
    keys = torch.cat([row_keys(seed, step, range(3)) for seed in (0, 1) for step in (1, 2)])
    places = Dropout(0.5, keys).spread(5)
    signs = torch.cat([place(torch.ones(len(keys), 64, 64)).flatten(1) - 1 for place in places])
    alike = (signs @ signs.T / signs.shape[1]).fill_diagonal_(0.0)
    # No two of 60 masks agree more often than chance: six standard deviations of 4,096 throws.
    assert alike.abs().max() < 6 / 64
    # Nor are they the same sequence from another point on.
    assert (signs[:, 1:] * signs[:, :-1]).mean(dim=1).abs().max() < 6 / 64


def test_rows_keep_their_keys_whichever_rank_has_them():
    assert torch.equal(torch.cat([row_keys(7, 3, range(2)), row_keys(7, 3, range(2, 4))]), KEYS)


@pytest.mark.parametrize("kernels", [False, True])
def test_micro_batches_lanes_and_recomputed_blocks_drop_the_same(kernels):
    model = built(tiny())
    if kernels:
        with_cpu_kernels(model)
    loss, gradients = passed(model)
    halves = [passed(model, rows) for rows in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(half[0] for half in halves), loss)
    for whole, *parts in zip(gradients, *(half[1] for half in halves), strict=True):
        torch.testing.assert_close(sum(parts), whole, rtol=1e-4, atol=1e-5)
    lanes = Lanes(model, 2)
    in_lanes, gradients_in_lanes = passed(lanes)
    torch.testing.assert_close(in_lanes, loss)
    for whole, other in zip(gradients, gradients_in_lanes, strict=True):
        torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-5)
    model.recompute(2)
    again = passed(model)
    assert torch.equal(again[0], loss)
    assert all(torch.equal(a, b) for a, b in zip(again[1], gradients, strict=True))


def test_the_cpu_s_kernels_drop_what_the_equation_drops():
    equation = built(tiny(num_key_value_heads=2, qk_norm=True))
    (loss, gradients), (wanted, wanted_gradients) = (
        passed(m, z_loss=0.01) for m in (with_cpu_kernels(copy.deepcopy(equation)), equation)
    )
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    for a, b in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    # Every other number of a fourth of them would show.
    assert not torch.isclose(loss, passed(equation, dropout=0.25, z_loss=0.01)[0], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_drops_what_an_eager_one_drops():
    model = built(tiny())
    (loss, gradients), (wanted, wanted_gradients) = (passed(m) for m in (torch.compile(model), model))
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
    for a, b in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
