"""Decides how AdamW with float32 states steps: torch's fused update, and before it the decay if that is cautious."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from packtrain.config.optim import OptimConfig
from packtrain.optim.base import WHOLE, Groups, ShardedOptimizer, Sharding


class AdamW(torch.optim.AdamW, ShardedOptimizer):
    """torch's AdamW (arXiv 1711.05101)."""

    def make_states(self) -> None:
        """States that are made together are together in memory, below what each step allocates and frees.

        The first step would make them in the gaps between gradients, which leaves a CPU's heap in pieces.
        """
        for group in self.param_groups:
            for p in group["params"]:
                moments = {name: torch.zeros_like(p, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
                # The fused update needs the step on the device.
                self.state[p] = {"step": torch.zeros((), device=p.device), **moments}


class CautiousAdamW(AdamW):
    """AdamW with cautious weight decay (arXiv 2510.12402)."""

    def __init__(self, groups: Groups, *, sharding: Sharding = WHOLE, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._sharding = sharding

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradients exist already"
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for p in group["params"]:
                decay_cautiously(p, self.state[p].get("exp_avg"), group, self._sharding)
            group["weight_decay"] = 0.0
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


def decay_cautiously(p: Tensor, mean: Tensor | None, group: dict[str, Any], sharding: Sharding) -> None:
    """Decays the weights whose AdamW update is about to have their sign. `mean`: the running mean before it, if there is one.

    The update has the sign of the new running mean. Takes memory for three copies of the parameter, for a moment.
    """
    if group["weight_decay"] == 0 or p.grad is None:
        return
    weights, gradient = sharding.take_local(p), sharding.take_local(p.grad)
    update = gradient if mean is None else sharding.take_local(mean).lerp(gradient, 1 - group["betas"][0])
    subtract_decay(weights, update, group["lr"] * group["weight_decay"])


def subtract_decay(weights: Tensor, update: Tensor, amount: float) -> None:
    """w ← w − amount·w where `update`, which is subtracted from w, does not have the opposite sign."""
    # The product of two small numbers could round to zero; that with a sign cannot.
    weights.sub_(torch.where(update.sign() * weights >= 0, weights * amount, 0.0))


def build(config: OptimConfig, groups: Groups, _: torch.dtype, sharding: Sharding) -> AdamW:
    # fused: one pass over memory; on the CPU it is several times faster than the default.
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    return CautiousAdamW(groups, sharding=sharding, **settings) if config.cautious_decay else AdamW(groups, **settings)
