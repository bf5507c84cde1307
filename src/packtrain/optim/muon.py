"""Decides how Muon steps: matrices by their orthogonalised momentum, embeddings, output and norms by AdamW."""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from packtrain.optim.blocks import local, num_shards

# It tells that gloo gathers where NCCL exchanges.
logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)

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
    learning rate and one weight decay serve for all. Of sharded matrices (DTensor) each is put together and orthogonalised on
    one rank, those of one shape on as many ranks as they are cut over, and every rank gets its part back.
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
                for batch in _batches(parameters):
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
            # Nesterov's look ahead.
            updates.append(p.grad.lerp(mean, group["momentum"]))
            p.grad = None
        for p, direction in zip(batch, _directions(updates, self.dtype), strict=True):
            part = local(p)
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
    # The smaller side squared is what A takes.
    is_tall = matrix_MN.shape[0] > matrix_MN.shape[1]
    x = (matrix_MN.t() if is_tall else matrix_MN).to(dtype)
    x = x / x.norm().clamp(min=_EPS)
    for _ in range(_ROUNDS):
        a = x @ x.t()
        x = torch.addmm(x, torch.addmm(a, a, a, beta=_B, alpha=_C), x, beta=_A)
    return x.t() if is_tall else x


def _batches(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those to orthogonalise at one time: of one shape, one for each rank that they are cut over, nearly in the given order."""
    waiting: dict[torch.Size, list[Tensor]] = {}
    for p in matrices:
        alike = waiting.setdefault(p.shape, [])
        alike.append(p)
        if len(alike) == num_shards(p):
            yield waiting.pop(p.shape)
    yield from waiting.values()


def _directions(updates: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What this rank holds of each of the matrices, which are cut alike, orthogonalised.

    Cut ones by two exchanges among the ranks that share them: of rows for whole matrices, and back, in `dtype`.
    """
    first = updates[0]
    if not isinstance(first, DTensor):
        return [orthogonalise(update, dtype) for update in updates]
    by_row = tuple(Shard(1) if isinstance(kind, Shard) else kind for kind in first.placements)
    by_matrix = tuple(Shard(0) if isinstance(kind, Shard) else kind for kind in first.placements)
    shape = torch.Size([len(updates), *first.shape])

    def exchanged(part: Tensor, held: tuple[Placement, ...], wanted: tuple[Placement, ...]) -> Tensor:
        stride = (first.numel(), first.shape[1], 1)
        tensor = DTensor.from_local(part, first.device_mesh, held, run_check=False, shape=shape, stride=stride)
        return tensor.redistribute(placements=wanted).to_local()

    mine = exchanged(torch.stack([local(update) for update in updates]), by_row, by_matrix)
    done = torch.stack([orthogonalise(matrix, dtype) for matrix in mine]) if len(mine) else mine.to(dtype)
    return list(exchanged(done, by_matrix, by_row).unbind())
