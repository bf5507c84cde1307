"""Decides how 4-bit AdamW steps: torchao's update, on this rank's part, compiled on a GPU and on the CPU a slice of it at a time."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from packtrain.config.libraries import quieten_torchao
from packtrain.optim.blocks import SMALLEST, flat, slices

quieten_torchao()

from torchao.optim import AdamW4bit  # noqa: E402
from torchao.optim.adam import single_param_adam  # noqa: E402
from torchao.optim.subclass_4bit import OptimState4bit  # noqa: E402

BLOCK = 128


class SlicedAdamW4bit(AdamW4bit):
    """AdamW with 4-bit states (arXiv 2309.01507) in blocks of 128; tensors that such blocks do not fill stay in float32.

    Eagerly a whole embedding would take a dozen float32 and int64 copies of itself; compiled there are none, but a
    compiler for the CPU is not on every machine. Of a parameter that is cut over ranks each has the states of its own
    rows; they are the same numbers for any division that cuts no block: see `blocks.check_division`. A state is kept as
    torchao's three parts of it, `exp_avg.codes`, `exp_avg.scale` and `exp_avg.qmap`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "the gradients are there already"
        with contextlib.ExitStack() as stack:
            update = single_param_adam
            if self.param_groups[0]["params"][0].device.type != "cpu":
                # One kernel for each size of a parameter: more than are kept by default.
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
            state |= _zeros(p, "exp_avg", is_signed=True) | _zeros(p, "exp_avg_sq", is_signed=False)
        state["step"] += 1
        weights, grad = flat(p), flat(p.grad)
        for part in slices(weights.numel(), p.device):
            update(
                weights[part],
                grad[part],
                state["step"],
                _slice(state, "exp_avg", part, is_signed=True),
                _slice(state, "exp_avg_sq", part, is_signed=False),
                None,
                group["lr"],
                *group["betas"],
                group["weight_decay"],
                group["eps"],
                True,
                False,
            )


def is_packed(p: Tensor) -> bool:
    """Whether a parameter has 4-bit states. Of the whole of it: that must not depend on the number of ranks."""
    return p.numel() >= SMALLEST and p.numel() % BLOCK == 0


def _zeros(p: Tensor, entry: str, *, is_signed: bool) -> dict[str, Tensor]:
    if not is_packed(p):
        return {entry: torch.zeros_like(p)}
    num = flat(p).numel()
    return {
        f"{entry}.codes": torch.zeros(num // 2, dtype=torch.uint8, device=p.device),
        f"{entry}.scale": torch.zeros(num // BLOCK, device=p.device),
        f"{entry}.qmap": OptimState4bit.zeros(BLOCK, is_signed, BLOCK, p.device).qmap,
    }


def _slice(state: dict[str, Any], entry: str, part: slice, *, is_signed: bool) -> Tensor:
    if entry in state:
        return flat(state[entry])[part]
    codes = state[f"{entry}.codes"][part.start // 2 : part.stop // 2]
    scale = state[f"{entry}.scale"][part.start // BLOCK : part.stop // BLOCK]
    shape = (part.stop - part.start,)
    return OptimState4bit(codes, scale, state[f"{entry}.qmap"], is_signed, shape, dtype=torch.float32)
