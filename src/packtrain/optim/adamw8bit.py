"""Decides how 8-bit AdamW steps: bitsandbytes' update, on this rank's part, and on the CPU a slice of it at a time."""

import math
from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.nn import Parameter

from packtrain.errors import ConfigError

# Elements updated at once; a multiple of the 256 that share a scale, so that slices change no number.
SLICE = 2**20
BLOCK = 256


class SlicedAdamW8bit(AdamW8bit):
    """AdamW with block-wise 8-bit states (arXiv 2110.02861): bitsandbytes' own, bit for bit.

    On the CPU its update holds several float32 copies of a parameter at once, for an embedding of 32,000 × 1024 some
    600 MB; slice by slice that is 20 MB. Of a parameter that is cut over ranks each has the states of its own rows;
    they are the same numbers for any division that cuts no block: see `check_division`.
    """

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
        state = self.state[p]
        is_spread = isinstance(p, DTensor)
        is_sliced = p.device.type == "cpu" and state["state1"].dtype == torch.uint8 and p.numel() > SLICE
        if not is_spread and not (is_sliced and p.is_contiguous()):
            super().update_step(group, p, gindex, pindex)
            return
        assert p.grad is not None
        config = self.get_config(gindex, pindex, group)
        state["step"] += 1
        weights, grad, mean, square = (_flat(t) for t in (p.data, p.grad, state["state1"], state["state2"]))
        if mean.dtype == torch.float32:
            if weights.numel():
                _update_32bit(self.optimizer_name, grad, weights, mean, square, state["step"], config)
            return
        size = SLICE if p.device.type == "cpu" else max(1, weights.numel())
        for start in range(0, weights.numel(), size):
            stop = min(start + size, weights.numel())
            blocks = slice(start // BLOCK, -(-stop // BLOCK))
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


def check_division(name: str, p: Tensor, min_8bit_size: int = 4096) -> None:
    """Raises ConfigError where the ranks' parts of a parameter cut a block of states, whose scale neither would have."""
    if not isinstance(p, DTensor) or p.numel() < min_8bit_size:
        return
    shards = math.prod(p.device_mesh.size(dim) for dim, kind in enumerate(p.placements) if isinstance(kind, Shard))
    rows = math.ceil(p.shape[0] / shards)
    if rows < p.shape[0] and rows * p.shape[1:].numel() % BLOCK:
        raise ConfigError(
            f"optim.name=adamw8bit keeps its states in blocks of {BLOCK} numbers, and {name} of shape {list(p.shape)} cut over "
            f"{shards} processes cuts one; give a parallel.shard_size that divides {p.shape[0]} well, such as a power of "
            "two, or write optim.name=adamw"
        )


def _flat(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).reshape(-1)


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
