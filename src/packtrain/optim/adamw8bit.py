"""Decides how 8-bit AdamW steps: bitsandbytes' update, on this rank's part, and on the CPU a slice of it at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from packtrain.optim.blocks import SLICE, SMALLEST, flat, slices

BLOCK = 256


class SlicedAdamW8bit(AdamW8bit):
    """AdamW with block-wise 8-bit states (arXiv 2110.02861): bitsandbytes' own, bit for bit.

    On the CPU its update holds several float32 copies of a parameter at once, for an embedding of 32,000 × 1024 some
    600 MB; slice by slice that is 20 MB. Of a parameter that is cut over ranks each has the states of its own rows;
    they are the same numbers for any division that cuts no block: see `blocks.check_division`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """The library's own, which waits for the device after each parameter; none of ours is paged, which needs that."""
        assert closure is None, "the gradients are there already"
        for gindex, group in enumerate(self.param_groups):
            for pindex, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, gindex, pindex)
                self.update_step(group, p, gindex, pindex)

    @torch.no_grad()
    def init_state(self, group: dict[str, Any], p: Parameter, gindex: int, pindex: int) -> None:
        # Of the whole parameter: the size below which states stay float32 must not depend on the number of ranks.
        super().init_state(group, p, gindex, pindex)
        state = self.state[p]
        if isinstance(p, DTensor) and "absmax1" in state:
            num_blocks = math.ceil(p.to_local().numel() / BLOCK)
            for entry in ("absmax1", "absmax2"):
                state[entry] = state[entry][:num_blocks].clone()

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Parameter, gindex: int, pindex: int) -> None:
        self._update(group, p, gindex, pindex)
        p.grad = None

    def _update(self, group: dict[str, Any], p: Parameter, gindex: int, pindex: int) -> None:
        state = self.state[p]
        is_spread = isinstance(p, DTensor)
        is_sliced = p.device.type == "cpu" and state["state1"].dtype == torch.uint8 and p.numel() > SLICE
        if not is_spread and not (is_sliced and p.is_contiguous()):
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        weights, grad, mean, square = (flat(t) for t in (p, p.grad, state["state1"], state["state2"]))
        if mean.dtype == torch.float32:
            if weights.numel():
                _update_32bit(self.optimizer_name, grad, weights, mean, square, state["step"], config)
            return
        for part in slices(weights.numel(), p.device):
            blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
            functional.optimizer_update_8bit_blockwise(
                self.optimizer_name,
                grad[part],
                weights[part],
                mean[part],
                square[part],
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


def is_packed(p: Tensor) -> bool:
    """Whether a parameter has 8-bit states."""
    return p.numel() >= SMALLEST


def _update_32bit(
    name: str, grad: Tensor, weights: Tensor, mean: Tensor, square: Tensor, step: int, config: dict[str, Any]
) -> None:
    functional.optimizer_update_32bit(
        name,
        grad,
        weights,
        mean,
        config["betas"][0],
        config["eps"],
        step,
        config["lr"],
        square,
        config["betas"][1],
        0.0,
        0.0,
        config["weight_decay"],
        1.0,
        None,
        max_unorm=0.0,
        skip_zeros=config["skip_zeros"],
    )
