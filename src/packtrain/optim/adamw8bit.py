"""Decides how 8-bit AdamW steps: bitsandbytes' update of this rank's part, on the CPU a slice at a time."""

import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from torch import Tensor
from torch.nn import Parameter

from packtrain.config.optim import OptimConfig
from packtrain.config.optimizers import SMALLEST_QUANTISED
from packtrain.optim.base import WHOLE, Groups, ShardedOptimizer, Sharding
from packtrain.optim.blocks import SLICE, check_division, iterate_slices

# It warns that a kernel for 4-bit weights is missing, which nothing here calls.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

BLOCK = 256


class SlicedAdamW8bit(AdamW8bit, ShardedOptimizer):
    """AdamW with block-wise 8-bit states (arXiv 2110.02861), bit for bit as bitsandbytes has it.

    On the CPU, its update makes several float32 copies of a parameter at once: some 600 MB for an embedding of 32,000 ×
    1024. A slice at a time needs 20 MB. Each rank keeps the states of its own part of a sharded parameter; they are the same
    numbers for any division that cuts no block (see `blocks.check_division`).
    """

    state_blocks: ClassVar = {"absmax1": BLOCK, "absmax2": BLOCK}
    state_entries = (
        {"step", "state1", "state2"},
        {"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"},
    )

    def __init__(self, groups: Any, *, sharding: Sharding = WHOLE, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._sharding = sharding

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """As the library's, which also waits for the device after each parameter. Only paged states need that wait."""
        assert closure is None, "the gradients exist already"
        for gindex, group in enumerate(self.param_groups):
            for pindex, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, gindex, pindex)
                self.update_step(group, p, gindex, pindex)
                p.grad = None

    @torch.no_grad()
    def init_state(self, group: dict[str, Any], p: Parameter, gindex: int, pindex: int) -> None:
        # From the whole parameter: whether its states stay in float32 must not depend on the number of ranks.
        super().init_state(group, p, gindex, pindex)
        state = self.state[p]
        if self._sharding.is_sharded(p) and "absmax1" in state:
            num_blocks = math.ceil(self._sharding.take_local(p).numel() / BLOCK)
            for entry in ("absmax1", "absmax2"):
                state[entry] = state[entry][:num_blocks].clone()

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: Parameter, gindex: int, pindex: int) -> None:
        state = self.state[p]
        is_sliced = p.device.type == "cpu" and state["state1"].dtype == torch.uint8 and p.numel() > SLICE
        if not self._sharding.is_sharded(p) and not (is_sliced and p.is_contiguous()):
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        weights, grad, mean, square = map(self._sharding.flatten, (p, p.grad, state["state1"], state["state2"]))
        if mean.dtype == torch.float32:
            if weights.numel():
                _update_32bit(self.optimizer_name, grad, weights, mean, square, state["step"], config)
            return
        for part in iterate_slices(weights.numel(), p.device):
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


def build(config: OptimConfig, groups: Groups, _: torch.dtype, sharding: Sharding) -> SlicedAdamW8bit:
    check_division(config.name, groups, lambda p: p.numel() >= SMALLEST_QUANTISED, BLOCK, sharding)
    return SlicedAdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps, sharding=sharding)


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
