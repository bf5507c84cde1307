"""Decides how 8-bit AdamW steps on the CPU: bitsandbytes' update, a slice of each parameter at a time."""

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from torch.nn import Parameter

# Elements updated at once; a multiple of the 256 that share a scale, so that slices change no number.
SLICE = 2**20
_BLOCK = 256


class SlicedAdamW8bit(AdamW8bit):
    """AdamW with block-wise 8-bit states (arXiv 2110.02861): bitsandbytes' own, bit for bit.

    On the CPU its update holds several float32 copies of a parameter at once, for an embedding of 32,000 × 1024 some
    600 MB; slice by slice that is 20 MB.
    """

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Parameter, gindex: int, pindex: int) -> None:
        state = self.state[p]
        if (
            p.device.type != "cpu"
            or state["state1"].dtype != torch.uint8
            or p.numel() <= SLICE
            or not p.is_contiguous()
        ):
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        weights, grad = p.data.view(-1), p.grad.reshape(-1)
        mean, square = state["state1"].view(-1), state["state2"].view(-1)
        for start in range(0, p.numel(), SLICE):
            stop = min(start + SLICE, p.numel())
            blocks = slice(start // _BLOCK, -(-stop // _BLOCK))
            functional.optimizer_update_8bit_blockwise(
                self.optimizer_name,
                grad[start:stop],
                weights[start:stop],
                mean[start:stop],
                square[start:stop],
                *config["betas"],
                0.0,
                0.0,
                config["eps"],
                state["step"],
                config["lr"],
                state["qmap1"],
                state["qmap2"],
                state["absmax1"][blocks],
                state["absmax2"][blocks],
                config["weight_decay"],
                gnorm_scale=1.0,
                skip_zeros=config["skip_zeros"],
            )
