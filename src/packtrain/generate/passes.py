"""Decides how the model computes the logits of the next tokens of several sequences, each in its slot of the cache.

On the CPU each sequence takes a pass of its own, so that what it gets does not depend on the others. Elsewhere, those that
have one new token take a pass together.

Letters: B sequences, D hidden size, S positions of the cache, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from packtrain.generate.cache import SlotCache
from packtrain.model.llama import Llama


class Work(NamedTuple):
    """New tokens of a slot."""

    slot: int
    ids: Sequence[int]


class ModelPasses:
    """Passes of the model itself. What they compute is float32 on the CPU; the new tokens join the cache."""

    def __init__(self, model: Llama, cache: SlotCache) -> None:
        self._model, self._cache = model, cache

    # Not inference_mode: tensors made in it could not be used in training afterwards.
    @torch.no_grad()
    def read(self, work: Work) -> Tensor:
        """Logits [V] after the last token of a piece of a prompt. Waits for the device."""
        # The output projection of the last position only.
        x_BTD = self._model.model.embed_tokens(torch.tensor([list(work.ids)], device=self._cache.keys.device))
        last_D = self._model.model(x_BTD, cache=self._cache.of(work.slot))[0, -1]
        return self._model.lm_head(last_D).float().cpu()

    def extend(self, work: Sequence[Work]) -> Tensor:
        """Logits [B, V] after the last of a few tokens of each of several slots. Waits for the device."""
        is_single = len(work) == 1 or any(len(piece.ids) > 1 for piece in work)
        if is_single or self._cache.keys.device.type == "cpu":
            return torch.stack([self.read(piece) for piece in work])
        return self._extend_together(work)

    @torch.no_grad()
    def _extend_together(self, work: Sequence[Work]) -> Tensor:
        """One pass with one new token for each slot; each attends to the positions that its slot has."""
        decoder, device = self._model.model, self._cache.keys.device
        slots = torch.tensor([piece.slot for piece in work], device=device)
        positions_B1 = torch.tensor([[self._cache.lengths[piece.slot]] for piece in work], device=device)
        x_B1D = decoder.embed_tokens(torch.tensor([[piece.ids[0]] for piece in work], device=device))
        longest = 1 + max(self._cache.lengths[piece.slot] for piece in work)
        mask_B11S = (torch.arange(longest, device=device) <= positions_B1)[:, None, None]
        rotation = decoder.rotary(positions_B1)
        cache = _Together(self._cache, slots, positions_B1[:, 0], longest)
        for block in decoder.layers:
            x_B1D = block(x_B1D, rotation, mask_B11S, cache)
        for piece in work:
            self._cache.lengths[piece.slot] += 1
        return self._model.lm_head(decoder.norm(x_B1D)[:, -1]).float().cpu()


class _Together:
    """Several slots as the model's `Cache`, each of which gets one position."""

    def __init__(self, cache: SlotCache, slots: Tensor, positions: Tensor, longest: int) -> None:
        self._cache, self._slots, self._positions, self.length = cache, slots, positions, longest - 1

    def update(self, layer_index: int, k_BG1K: Tensor, v_BG1K: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.keys[layer_index], self._cache.values[layer_index]
        # Indexed by slot and position, which the heads lie between: [B, G, K].
        keys[self._slots, :, self._positions] = k_BG1K[:, :, 0]
        values[self._slots, :, self._positions] = v_BG1K[:, :, 0]
        return keys[self._slots, :, : self.length + 1], values[self._slots, :, : self.length + 1]
