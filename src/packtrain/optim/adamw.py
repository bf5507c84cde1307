"""Decides how AdamW with float32 states steps: torch's fused update."""

import torch

from packtrain.config.optim import OptimConfig
from packtrain.optim.base import Groups, ShardedOptimizer, Sharding


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


def build(config: OptimConfig, groups: Groups, _: torch.dtype, __: Sharding) -> AdamW:
    # fused: one pass over memory; on the CPU it is several times faster than the default.
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
