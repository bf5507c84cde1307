"""Decides how Muon steps: matrices by their orthogonalised momentum, embeddings, output and norms by AdamW."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# Of the quintic iteration in Keller Jordan's Muon (github.com/KellerJordan/Muon, muon.py): steepest at zero, and it
# takes every singular value to within about 0.7 and 1.2 in five rounds instead of to 1 in many.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
_EPS = 1e-7
# Root mean square of an AdamW update, to which that of a matrix is scaled: Moonlight, arXiv 2502.16982, section 2.2.
_UPDATE_RMS = 0.2


class Muon(Optimizer):
    """Muon (github.com/KellerJordan/Muon) with the update scale of Moonlight (arXiv 2502.16982, eq. 4).

    Groups with `is_orthogonal` hold matrices: m ← μm + (1 − μ)g, then w ← w − lr·(λw + 0.2·sqrt(max(rows, columns))·
    orthogonalise((1 − μ)g + μm)). The others are AdamW's. That scale gives both updates the same size, so that one
    learning rate and one weight decay serve for all. A sharded matrix (DTensor) is gathered, orthogonalised whole on
    each rank, and each takes its part.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        momentum: float,
        dtype: torch.dtype,
    ) -> None:
        """`dtype`: of the matrix products inside; bfloat16 where the device is good at it, else float32."""
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the gradients are there already"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["is_orthogonal"]:
                for p in parameters:
                    self._step_matrix(p, group)
                    p.grad = None
            elif parameters:
                self._step_others(parameters, group)
                for p in parameters:
                    p.grad = None

    def _step_matrix(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p.grad)
        mean = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
        # Nesterov's look ahead.
        update = p.grad.lerp(mean, group["momentum"])
        direction = _part_like(orthogonalise(_whole(update), self.dtype).to(p.dtype), p)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(direction, alpha=-group["lr"] * _UPDATE_RMS * math.sqrt(max(p.shape)))

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
    # The smaller side squared is what A takes.
    is_tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = (matrix_MN.t() if is_tall else matrix_MN).to(dtype)
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_ROUNDS):
        a = x @ x.t()
        x = torch.addmm(x, torch.addmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x.t() if is_tall else x


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part_like(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of what every rank has whole, laid out as `like`; needs no communication."""
    if not isinstance(like, DTensor):
        return whole
    everywhere = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(whole, like.device_mesh, everywhere, run_check=False).redistribute(
        placements=like.placements
    )
