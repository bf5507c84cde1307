"""Decides how Muon steps: matrices by their orthogonalised momentum; embeddings, output and norms by AdamW."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from packtrain.config.optim import OptimConfig
from packtrain.optim.base import Groups, ShardedOptimizer, Sharding

# Coefficients of the quintic iteration in Keller Jordan's Muon (github.com/KellerJordan/Muon, muon.py). It is steepest at
# zero: five rounds take every singular value to between about 0.7 and 1.2, where convergence to 1 would take many.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
_EPS = 1e-7
# Root mean square of an AdamW update; a matrix's update is scaled to the same: Moonlight, arXiv 2502.16982, section 2.2.
_UPDATE_RMS = 0.2


class Muon(ShardedOptimizer):
    """Muon (github.com/KellerJordan/Muon) with the update scale of Moonlight (arXiv 2502.16982, eq. 4).

    Groups with `is_orthogonal` hold matrices: m ← μm + (1 − μ)g, then w ← w − lr·(λw + 0.2·sqrt(max(rows, columns))·
    orthogonalise((1 − μ)g + μm)). AdamW steps the others. The scale gives both updates the same size, so that one
    learning rate and one weight decay serve all. A sharded matrix is gathered and orthogonalised on one rank, and each rank
    gets its part back. The ranks that share matrices of one shape work on different ones at the same time.
    """

    state_entries = ({"momentum"}, *ShardedOptimizer.state_entries)

    def __init__(self, groups: Groups, config: OptimConfig, dtype: torch.dtype, sharding: Sharding) -> None:
        """`dtype`: type of the matrix products inside; bfloat16 if the device computes it fast, else float32."""
        super().__init__(groups, {name: getattr(config, name) for name in ("lr", "betas", "eps", "momentum")})
        self.dtype = dtype
        self._sharding = sharding

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradients exist already"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["is_orthogonal"]:
                for batch in _batch(parameters, self._sharding):
                    self._step_matrices(batch, group)
            elif parameters:
                self._step_others(parameters, group)
                for p in parameters:
                    p.grad = None

    def _step_matrices(self, batch: list[Tensor], group: dict[str, Any]) -> None:
        updates = []
        for p in batch:
            assert p.grad is not None
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p.grad)
            mean = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            # Nesterov's look-ahead.
            updates.append(p.grad.lerp(mean, group["momentum"]))
            p.grad = None
        # Two exchanges among the ranks that share sharded matrices: of rows for whole matrices, and back.
        directions = self._sharding.apply_whole(updates, functools.partial(orthogonalise, dtype=self.dtype), self.dtype)
        for p, direction in zip(batch, directions, strict=True):
            part = self._sharding.take_local(p)
            part.mul_(1 - group["lr"] * group["weight_decay"])
            part.add_(direction.to(p.dtype), alpha=-group["lr"] * _UPDATE_RMS * math.sqrt(max(p.shape)))

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(matrix_MN: Tensor, dtype: torch.dtype) -> Tensor:
    """About U·Vᵀ of the singular value decomposition U·S·Vᵀ, in `dtype`, [M, N]; zeros stay zeros.

    Newton-Schulz: X ← aX + (bA + cA²)X with A = X·Xᵀ, from X = matrix / its Frobenius norm.
    """
    # A is as large as the smaller side squared.
    is_tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = (matrix_MN.t() if is_tall else matrix_MN).to(dtype)
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_ROUNDS):
        a = x @ x.t()
        x = torch.addmm(x, torch.addmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x.t() if is_tall else x


def build(config: OptimConfig, groups: Groups, dtype: torch.dtype, sharding: Sharding) -> Muon:
    # float16 lacks the range: the squares of a normalised matrix's elements round to zero.
    dtype = torch.float32 if dtype == torch.float16 else dtype
    return Muon(groups, config, dtype, sharding)


def _batch(matrices: list[Tensor], sharding: Sharding) -> Iterator[list[Tensor]]:
    """Matrices to orthogonalise together: of one shape, one for each rank that shares them, nearly in the given order."""
    waiting: dict[torch.Size, list[Tensor]] = {}
    for p in matrices:
        alike = waiting.setdefault(p.shape, [])
        alike.append(p)
        if len(alike) == sharding.num_shards(p):
            yield waiting.pop(p.shape)
    yield from waiting.values()
