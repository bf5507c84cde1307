"""The key-value cache alone: what goes in comes out, in order, across block boundaries."""

import torch

from packtrain.generate.cache import BLOCK, KVCache


def random_kv(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, length, 4, generator=generator), torch.randn(2, 3, length, 4, generator=generator)


def test_positions_come_back_in_order_over_block_borders():
    cache = KVCache(num_layers=1, capacity=1)
    given = [random_kv(length, seed) for seed, length in enumerate((BLOCK - 3, 1, 1, 1, 1, 2 * BLOCK, 5))]
    for keys, values in given:
        held_keys, held_values = cache.update(0, keys, values)
    assert torch.equal(held_keys, torch.cat([k for k, _ in given], dim=2))
    assert torch.equal(held_values, torch.cat([v for _, v in given], dim=2))
    assert cache.length == held_keys.shape[2]


def test_length_moves_on_when_the_last_layer_is_updated():
    cache = KVCache(num_layers=2)
    keys, values = random_kv(4, 0)
    cache.update(0, keys, values)
    assert cache.length == 0
    cache.update(1, keys, values)
    assert cache.length == 4


def test_a_cache_of_the_right_capacity_is_allocated_once():
    cache = KVCache(num_layers=1, capacity=2 * BLOCK)
    address = None
    for seed in range(2 * BLOCK):
        held_keys, _ = cache.update(0, *random_kv(1, seed))
        assert address in (None, held_keys.data_ptr())
        address = held_keys.data_ptr()
