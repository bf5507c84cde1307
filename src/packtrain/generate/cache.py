"""Decides how keys and values of past positions are kept, so that a new token costs the work of one position.

Shapes: B batch, G key-value heads, T new positions, S all positions, K head dim.
"""

from torch import Tensor

BLOCK = 256


class KVCache:
    """Keys and values of every layer, in buffers that are allocated ahead and grow by whole blocks.

    `capacity` is the expected number of positions; the buffers grow if there are more. A layer's first update sets the
    shape, type and device of its buffers.
    """

    def __init__(self, num_layers: int, capacity: int = BLOCK) -> None:
        self._capacity = _whole_blocks(capacity)
        self._buffers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._lengths = [0] * num_layers

    @property
    def length(self) -> int:
        """Positions that every layer holds; it grows when the last layer of a pass is updated."""
        return min(self._lengths)

    def update(self, layer_index: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Appends a layer's new keys and values; returns views (k_BGSK, v_BGSK) of all it holds."""
        start = self._lengths[layer_index]
        end = start + k_BGTK.shape[2]
        keys, values = self._reserve(layer_index, end, k_BGTK, v_BGTK)
        keys[:, :, start:end] = k_BGTK
        values[:, :, start:end] = v_BGTK
        self._lengths[layer_index] = end
        return keys[:, :, :end], values[:, :, :end]

    def _reserve(self, layer_index: int, end: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        held = self._buffers[layer_index]
        if held is not None and end <= held[0].shape[2]:
            return held
        self._capacity = max(self._capacity, _whole_blocks(end))
        larger = _empty(k_BGTK, self._capacity), _empty(v_BGTK, self._capacity)
        if held is not None:
            start = self._lengths[layer_index]
            for new, old in zip(larger, held, strict=True):
                new[:, :, :start] = old[:, :, :start]
        self._buffers[layer_index] = larger
        return larger


def _whole_blocks(positions: int) -> int:
    return max(1, -(-positions // BLOCK)) * BLOCK


def _empty(like_BGTK: Tensor, capacity: int) -> Tensor:
    B, G, _, K = like_BGTK.shape
    return like_BGTK.new_empty(B, G, capacity, K)
