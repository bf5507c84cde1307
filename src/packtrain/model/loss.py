"""Decides how the training loss is computed: the cross-entropy of a linear layer, without its logits ever existing at once.

Letters: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from packtrain.config.data import IGNORE_INDEX
from packtrain.model import fused, products
from packtrain.plan.memory import WIDE_ROWS, chunk_rows


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    hand_on: list[Tensor] | None = None,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum over targets of the cross-entropy of softmax(hidden · weightᵀ), in nats, a scalar of float32 or wider.

    `z_loss` adds that much of log²(Z), Z the softmax's denominator, to what the gradient is of, and nothing to the value.

    Targets of IGNORE_INDEX count nothing. Under autocast the products are taken in its dtype, the softmax in float32.
    With gradients wanted, they are computed here, chunk by chunk, and only scaled in the backward pass: the softmax is
    at hand, so that nothing is computed twice. The weight's gradient is put into `hand_on` where given, for
    `fused.TiedEmbedding` to complete.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    wants_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    total, loss = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, dtype, wants_grad, hand_on, z_loss)
    return total + (loss - total.detach()) if z_loss else total


class _LinearCrossEntropy(torch.autograd.Function):
    """total = Σₙ lₙ − zₙ[tₙ] + c·lₙ², lₙ = logsumexp(zₙ), zₙ = W·hₙ;  ∂total/∂zₙ = (1 + 2c·lₙ)·softmax(zₙ) − onehot(tₙ).

    Gives the total and, without a gradient, the loss, which is the total with c = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        wants_grad: bool,
        hand_on: list[Tensor] | None,
        z_loss: float,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        weight = weight_VD.to(dtype)
        loss, penalty = hidden_ND.new_zeros((), dtype=wide), hidden_ND.new_zeros((), dtype=wide)
        if wants_grad:
            d_hidden_ND = torch.empty_like(hidden_ND, dtype=wide)
            d_weight_VD = torch.empty_like(weight_VD, dtype=wide)
        rows = min(chunk_rows(weight_VD.shape[0], hidden_ND.device.type), hidden_ND.shape[0])
        # A compiler sees the plain product.
        linear = products.linear if fused.applies(weight) else F.linear
        for start in range(0, hidden_ND.shape[0], rows):
            chunk = slice(start, start + rows)
            counts_C1 = (targets_N[chunk] != IGNORE_INDEX)[:, None]
            target_C1 = targets_N[chunk].clamp(min=0)[:, None]
            hidden_CD = hidden_ND[chunk].to(dtype)
            # No name here holds the logits: they may give way to what becomes of them.
            d_z_CV, chunk_loss, chunk_penalty = _of_chunk(
                linear(hidden_CD, weight), target_C1, counts_C1, hidden_CD, weight, z_loss
            )
            loss += chunk_loss
            penalty += chunk_penalty
            if wants_grad:
                # An ignored row is left out on the narrow side of both products: D wide instead of V.
                d_hidden_ND[chunk] = (d_z_CV @ weight) * counts_C1
                _add_product(d_weight_VD, d_z_CV.t(), hidden_CD * counts_C1, is_first=start == 0)
            # Else this chunk would stand beside the next one.
            del d_z_CV
        if wants_grad:
            ctx.gradients = (d_hidden_ND, d_weight_VD)
            ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype)
            ctx.hand_on = hand_on
        ctx.mark_non_differentiable(loss)
        return loss + penalty, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, _d_loss: Tensor) -> tuple[Tensor | None, ...]:
        # They are scaled in place and given away, so that there is one copy of them and one use.
        if ctx.gradients is None:
            raise RuntimeError("the backward pass of this loss can run once; compute the loss again")
        d_hidden_ND, d_weight_VD = ctx.gradients
        ctx.gradients = None
        d_hidden_ND = d_hidden_ND.mul_(d_total).to(ctx.dtypes[0])
        d_weight_VD = d_weight_VD.mul_(d_total).to(ctx.dtypes[1])
        if ctx.hand_on is None:
            return d_hidden_ND, d_weight_VD, None, None, None, None, None
        ctx.hand_on.append(d_weight_VD)
        return d_hidden_ND, None, None, None, None, None, None


def _of_chunk(
    z_CV: Tensor, target_C1: Tensor, counts_C1: Tensor, hidden_CD: Tensor, weight_VD: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the logits (of rows that count for nothing too), loss and penalty. May overwrite the logits."""
    dtype, wide = z_CV.dtype, torch.promote_types(z_CV.dtype, torch.float32)
    if dtype == wide or not fused.applies(z_CV):
        z_CV = z_CV.to(wide)
        d_z_CV, loss, penalty = _of_logits(z_CV, target_C1, counts_C1, hidden_CD, weight_VD, z_loss)
        return d_z_CV.to(dtype), loss, penalty
    loss, penalty = z_CV.new_zeros((), dtype=wide), z_CV.new_zeros((), dtype=wide)
    for start in range(0, z_CV.shape[0], WIDE_ROWS):
        rows = slice(start, start + WIDE_ROWS)
        d_z_rows, loss_of_rows, penalty_of_rows = _of_logits(
            z_CV[rows].to(wide), target_C1[rows], counts_C1[rows], hidden_CD[rows], weight_VD, z_loss
        )
        z_CV[rows] = d_z_rows
        loss += loss_of_rows
        penalty += penalty_of_rows
    return z_CV, loss, penalty


def _of_logits(
    z_CV: Tensor, target_C1: Tensor, counts_C1: Tensor, hidden_CD: Tensor, weight_VD: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_of_chunk` of float32 or wider."""
    z_C1 = z_CV.gather(1, target_C1) if z_loss else None
    p_CV, log_p_C1 = _softmax(z_CV, target_C1, hidden_CD, weight_VD)
    loss = -(log_p_C1 * counts_C1).sum()
    penalty = torch.zeros_like(loss)
    if z_C1 is not None:
        log_sum_C1 = z_C1 - log_p_C1
        penalty = z_loss * (log_sum_C1.square() * counts_C1).sum()
        p_CV.mul_(1 + 2 * z_loss * log_sum_C1)
    return p_CV.scatter_add_(1, target_C1, p_CV.new_full((1, 1), -1.0).expand_as(target_C1)), loss, penalty


def _softmax(z_CV: Tensor, target_C1: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and the logarithm of the target's. May overwrite the logits."""
    if not fused.applies(z_CV):
        log_p_CV = torch.log_softmax(z_CV, dim=-1)
        log_p_C1 = log_p_CV.gather(1, target_C1)
        return log_p_CV.exp_(), log_p_C1
    # One exponential of each logit instead of two. Where the target's probability is below what float32 holds
    # (a loss above 87 nats), its row is computed again, as logarithms.
    p_CV = torch.softmax(z_CV, dim=-1, out=z_CV)
    p_C1 = p_CV.gather(1, target_C1)
    log_p_C1 = p_C1.log()
    lost_C = p_C1[:, 0] < torch.finfo(p_C1.dtype).tiny
    if lost_C.any():
        logits = (hidden_CD[lost_C] @ weight_VD.t()).to(z_CV.dtype)
        log_p_C1[lost_C] = torch.log_softmax(logits, dim=-1).gather(1, target_C1[lost_C])
    return p_CV, log_p_C1


def _add_product(sum_VD: Tensor, a_VC: Tensor, b_CD: Tensor, *, is_first: bool) -> None:
    if sum_VD.dtype == a_VC.dtype:
        sum_VD.addmm_(a_VC, b_CD, beta=0.0 if is_first else 1.0)
    elif is_first:
        sum_VD.copy_(a_VC @ b_CD)
    else:
        # Each chunk's product is rounded once; their sum is kept in float32.
        sum_VD += a_VC @ b_CD
