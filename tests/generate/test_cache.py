"""The cache alone: what goes into a slot comes out of it, in order, and its memory is as told and never moves."""

import pytest
import torch

from packtrain.errors import UserError
from packtrain.generate.cache import SlotCache, cache_bytes

from ..model.tiny import tiny

CONFIG = tiny(num_key_value_heads=2)


def random_kv(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, CONFIG.kv_heads, length, CONFIG.head_size)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_positions_come_back_in_order_and_slots_apart():
    cache = SlotCache(CONFIG, slots=3, positions=20)
    given = {slot: [random_kv(length, 7 * slot + length) for length in (5, 1, 1, 4)] for slot in (0, 2)}
    for turn in range(4):
        for slot, pairs in given.items():
            for layer in range(CONFIG.num_hidden_layers):
                held_keys, held_values = cache.of(slot).update(layer, *pairs[turn])
            assert torch.equal(held_keys, torch.cat([k for k, _ in pairs[: turn + 1]], dim=2))
            assert torch.equal(held_values, torch.cat([v for _, v in pairs[: turn + 1]], dim=2))
    assert cache.lengths == [11, 0, 11]
    assert not cache.keys[:, 1].any()


def test_length_moves_on_when_the_last_layer_is_updated():
    cache = SlotCache(CONFIG, slots=1, positions=8).of(0)
    keys, values = random_kv(4, 0)
    cache.update(0, keys, values)
    assert cache.length == 0
    cache.update(CONFIG.num_hidden_layers - 1, keys, values)
    assert cache.length == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_is_as_told_beforehand(dtype):
    cache = SlotCache(CONFIG, slots=3, positions=20, dtype=dtype)
    # Keys and values, layers, slots, key-value heads, positions, head width.
    assert cache.num_bytes == 2 * 2 * 3 * 2 * 20 * 16 * dtype.itemsize
    assert cache.num_bytes == cache_bytes(CONFIG, 3, 20, dtype.itemsize)


def test_a_cache_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="does not have that much free"):
        SlotCache(CONFIG, slots=1_000_000, positions=1_000_000_000)
