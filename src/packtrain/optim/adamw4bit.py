"""Decides how 4-bit AdamW steps: torchao's update of this rank's part, compiled on a GPU and a slice at a time on the CPU."""

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from packtrain.config.libraries import quieten_torchao
from packtrain.config.optim import OptimConfig
from packtrain.config.optimizers import SMALLEST_QUANTISED
from packtrain.optim.base import Groups, ShardedOptimizer, Sharding
from packtrain.optim.blocks import check_division, iterate_slices

quieten_torchao()

from torchao.optim import AdamW4bit  # noqa: E402
from torchao.optim.adam import single_param_adam  # noqa: E402
from torchao.optim.subclass_4bit import OptimState4bit  # noqa: E402

BLOCK = 128


class SlicedAdamW4bit(AdamW4bit, ShardedOptimizer):
    """AdamW with 4-bit states (arXiv 2309.01507) in blocks of 128; tensors that such blocks do not fill stay in float32.

    An eager update of a whole embedding would take a dozen float32 and int64 copies of it. A compiled update takes none,
    but not every machine has a compiler for the CPU. Each rank keeps the states of its own part of a sharded parameter;
    they are the same numbers for any division that cuts no block (see `blocks.check_division`). A state is stored as
    torchao's three parts of it: `exp_avg.codes`, `exp_avg.scale` and `exp_avg.qmap`.
    """

    state_blocks: ClassVar = {
        "exp_avg.codes": 2,
        "exp_avg.scale": BLOCK,
        "exp_avg_sq.codes": 2,
        "exp_avg_sq.scale": BLOCK,
    }
    state_entries = (
        *ShardedOptimizer.state_entries,
        {"step", *(f"{entry}.{part}" for entry in ("exp_avg", "exp_avg_sq") for part in ("codes", "scale", "qmap"))},
    )

    def __init__(self, groups: Any, *, sharding: Sharding, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._sharding = sharding

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradients exist already"
        with contextlib.ExitStack() as stack:
            update = single_param_adam
            if self.param_groups[0]["params"][0].device.type != "cpu":
                # One kernel for each size of parameter, which is more than torch keeps by default.
                stack.enter_context(torch._dynamo.utils.disable_cache_limit())
                update = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._step_one(p, group, update)
                        p.grad = None

    def _step_one(self, p: Parameter, group: dict[str, Any], update: Callable[..., None]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            num_here = self._sharding.take_local(p).numel()
            state |= _zeros(p, num_here, "exp_avg", is_signed=True)
            state |= _zeros(p, num_here, "exp_avg_sq", is_signed=False)
        state["step"] += 1
        weights, grad = self._sharding.flatten(p), self._sharding.flatten(p.grad)
        for part in iterate_slices(weights.numel(), p.device):
            update(
                weights[part],
                grad[part],
                state["step"],
                self._slice_state(state, "exp_avg", part, is_signed=True),
                self._slice_state(state, "exp_avg_sq", part, is_signed=False),
                None,
                group["lr"],
                *group["betas"],
                # In a tensor, as the learning rate is: a compiled update sees it change.
                group["weight_decay"]
                if p.device.type == "cpu"
                else torch.full((), group["weight_decay"], device=p.device),
                group["eps"],
                True,
                False,
            )

    def _slice_state(self, state: dict[str, Any], entry: str, part: slice, *, is_signed: bool) -> Tensor:
        if entry in state:
            return self._sharding.flatten(state[entry])[part]
        codes = state[f"{entry}.codes"][part.start // 2 : part.stop // 2]
        scale = state[f"{entry}.scale"][part.start // BLOCK : part.stop // BLOCK]
        shape = (part.stop - part.start,)
        return OptimState4bit(codes, scale, state[f"{entry}.qmap"], is_signed, shape, dtype=torch.float32)


def build(config: OptimConfig, groups: Groups, _: torch.dtype, sharding: Sharding) -> SlicedAdamW4bit:
    check_division(config.name, groups, _is_quantised, BLOCK, sharding)
    return SlicedAdamW4bit(groups, lr=config.lr, betas=config.betas, eps=config.eps, sharding=sharding)


def _is_quantised(p: Tensor) -> bool:
    """Whether a parameter has 4-bit states. `p` is the whole parameter: this must not depend on the number of ranks."""
    return p.numel() >= SMALLEST_QUANTISED and p.numel() % BLOCK == 0


def _zeros(p: Tensor, num_here: int, entry: str, *, is_signed: bool) -> dict[str, Tensor]:
    if not _is_quantised(p):
        return {entry: torch.zeros_like(p)}
    return {
        f"{entry}.codes": torch.zeros(num_here // 2, dtype=torch.uint8, device=p.device),
        f"{entry}.scale": torch.zeros(num_here // BLOCK, device=p.device),
        f"{entry}.qmap": OptimState4bit.zeros(BLOCK, is_signed, BLOCK, p.device).qmap,
    }
