"""Decides how Muon steps: matrices by their orthogonalised momentum; embeddings, output and norms by AdamW."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from packtrain.config.optim import OptimConfig
from packtrain.optim.adamw import decay_cautiously, subtract_decay
from packtrain.optim.base import Groups, ShardedOptimizer, Sharding
from packtrain.optim.stacks import stack_size

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
    learning rate and one weight decay serve all. The ranks that share matrices of one shape, or have copies of them, work on
    different ones at the same time. On a GPU each rank works on a stack of them. A sharded matrix is gathered and
    orthogonalised on one rank, and each rank gets its part back.
    """

    state_entries: ClassVar[tuple[set[str], ...]] = ({"momentum"}, *ShardedOptimizer.state_entries)

    def __init__(self, groups: Groups, config: OptimConfig, dtype: torch.dtype, sharding: Sharding) -> None:
        """`dtype`: type of the matrix products inside; bfloat16 if the device computes it fast, else float32."""
        super().__init__(groups, {name: getattr(config, name) for name in ("lr", "betas", "eps", "momentum")})
        self.dtype = dtype
        self._sharding = sharding
        self._is_cautious = config.cautious_decay
        self._orthogonalise = orthogonalise
        self._is_compiled = False

    def compile_update(self) -> None:
        self._is_compiled = True
        self._orthogonalise = torch.compile(orthogonalise, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradients exist already"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["is_orthogonal"]:
                # Compiled, there is a graph for each shape and size of a stack, which is more than torch keeps by default.
                with torch._dynamo.utils.disable_cache_limit() if self._is_compiled else contextlib.nullcontext():
                    for batch in _batch(parameters, self._sharding):
                        self._step_matrices(batch, group)
            elif parameters:
                self._step_others(parameters, group)
                for p in parameters:
                    p.grad = None

    def _step_matrices(self, batch: list[Parameter], group: dict[str, Any]) -> None:
        local = self._sharding.take_local
        for p in batch:
            if not self.state[p]:
                self.state[p] = self._make_state(p)
        means = [local(self.state[p]["momentum"]) for p in batch]
        grads = [local(p.grad) for p in batch if p.grad is not None]
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        # Nesterov's look-ahead.
        updates = list(torch._foreach_lerp(grads, means, group["momentum"]))
        del grads
        for p in batch:
            p.grad = None
        function = functools.partial(self._orthogonalise, dtype=self.dtype)
        directions = self._sharding.apply_whole(batch, updates, function, self.dtype)
        del updates
        directions = self._rescale(directions, batch, group)
        parts = [local(p) for p in batch]
        decay = group["lr"] * group["weight_decay"]
        if self._is_cautious and decay > 0:
            for part, direction in zip(parts, directions, strict=True):
                subtract_decay(part, direction, decay)
        else:
            torch._foreach_mul_(parts, 1 - decay)
        alpha = -group["lr"] * _UPDATE_RMS * math.sqrt(max(batch[0].shape))
        torch._foreach_add_(
            parts, [direction.to(p.dtype) for p, direction in zip(batch, directions, strict=True)], alpha=alpha
        )

    def _make_state(self, p: Parameter) -> dict[str, Tensor]:
        return {"momentum": torch.zeros_like(p)}

    def _rescale(self, directions: list[Tensor], _: list[Parameter], __: dict[str, Any]) -> list[Tensor]:
        """This rank's parts of a batch's orthogonalised updates, of a group, as they are to be applied but for one scale."""
        return directions

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        if self._is_cautious:
            for p, state in zip(parameters, states, strict=True):
                decay_cautiously(p, state["exp_avg"], group, self._sharding)
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
            weight_decay=0.0 if self._is_cautious else group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalise(stack_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """About U·Vᵀ of the singular value decomposition U·S·Vᵀ of each matrix, in `dtype`, [N, R, C]; zeros stay zeros.

    Newton-Schulz: X ← aX + (bA + cA²)X with A = X·Xᵀ, from X = matrix / its Frobenius norm.
    """
    # A is as large as the smaller side squared.
    is_tall = stack_NRC.shape[1] > stack_NRC.shape[2]
    x = (stack_NRC.mT if is_tall else stack_NRC).to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_ROUNDS):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if is_tall else x


def build(config: OptimConfig, groups: Groups, dtype: torch.dtype, sharding: Sharding) -> Muon:
    return Muon(groups, config, choose_dtype(dtype), sharding)


def choose_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type to orthogonalise in, from that of the run's matrix products."""
    # float16 lacks the range: the squares of a normalised matrix's elements round to zero.
    return torch.float32 if dtype == torch.float16 else dtype


def _batch(matrices: list[Parameter], sharding: Sharding) -> Iterator[list[Parameter]]:
    """Matrices to orthogonalise together: of one shape, a stack for each rank that shares them, nearly in the given order."""
    waiting: dict[torch.Size, list[Parameter]] = {}
    for p in matrices:
        alike = waiting.setdefault(p.shape, [])
        alike.append(p)
        if len(alike) == sharding.num_sharers(p) * stack_size(p.numel(), p.device.type):
            yield waiting.pop(p.shape)
    yield from waiting.values()
