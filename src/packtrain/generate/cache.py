"""Decides where keys and values of past positions are kept: in memory that is allocated once, before the first token.

Shapes: B batch (1 here), G key-value heads, T new positions, S positions of a slot, K head dim, N slots.
"""

import torch
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.errors import UserError


def cache_bytes(config: ModelConfig, slots: int, positions: int, itemsize: int = 4) -> int:
    """Bytes of keys and values for `slots` sequences of at most `positions` positions, of `itemsize` bytes a number."""
    return 2 * config.num_hidden_layers * slots * config.kv_heads * positions * config.head_size * itemsize


class SlotCache:
    """Keys and values of every layer for a fixed number of sequences, each in a slot of its own.

    `keys` and `values` are [layers, N, G, S, K]. `lengths` says how many positions of each slot are filled.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        positions: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises UserError if the memory is not there."""
        shape = (config.num_hidden_layers, slots, config.kv_heads, positions, config.head_size)
        try:
            # Written to, so that the memory is there from the start, and not only promised.
            self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device).fill_(0) for _ in "kv")
        except (RuntimeError, MemoryError):
            needed = cache_bytes(config, slots, positions, dtype.itemsize)
            raise UserError(
                f"the cache of {slots} sequences of {positions} positions takes {needed / 1e9:.1f} GB, and {device} does not "
                "have that much free; give fewer sequences or a shorter context"
            ) from None
        self.positions = positions
        self.lengths = [0] * slots

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def of(self, slot: int) -> "SlotView":
        """The slot as a `Cache` that `Llama.forward` can fill with a batch of one."""
        return SlotView(self, slot)


class SlotView:
    """One slot of a SlotCache, as the model's `Cache`."""

    def __init__(self, cache: SlotCache, slot: int) -> None:
        self._cache, self._slot = cache, slot

    @property
    def length(self) -> int:
        """Positions that every layer holds; it grows when the last layer of a pass is updated."""
        return self._cache.lengths[self._slot]

    def update(self, layer_index: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values after the others; returns views (k_BGSK, v_BGSK) of all that it holds."""
        start = self.length
        end = start + k_BGTK.shape[2]
        held_k = self._cache.keys[layer_index, self._slot, None, :, :end]
        held_v = self._cache.values[layer_index, self._slot, None, :, :end]
        held_k[:, :, start:] = k_BGTK
        held_v[:, :, start:] = v_BGTK
        if layer_index == self._cache.keys.shape[0] - 1:
            self._cache.lengths[self._slot] = end
        return held_k, held_v
