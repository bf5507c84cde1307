"""Decides how the training loss is computed: the cross-entropy of a linear layer, a chunk of its logits at a time.

Letters: N tokens, C tokens of a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from packtrain.config.data import IGNORE_INDEX
from packtrain.model.chunks import chunk_rows
from packtrain.model.layers import product_dtype

ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]
"""Takes the arguments of `chunk_loss`; returns the gradient of a chunk's logits, [C, V] in their type, its loss and its penalty.

Rows that do not count add nothing to the loss and the penalty. Their gradient may be anything finite.
"""


class GradientProducts(Protocol):
    """Who multiplies for the gradients of a chunk, where that is not torch alone."""

    def input_gradient(self, dy: Tensor, weight_OI: Tensor, /) -> Tensor:
        """dy·W."""

    def weight_gradient(self, dy_NO: Tensor, x_NI: Tensor, /, sum_OI: Tensor | None = None) -> Tensor:
        """dyᵀ·x, added to `sum_OI` if that is given, which may be of a wider type."""


def chunk_loss(
    hidden_CD: Tensor, weight_VD: Tensor, target_C1: Tensor, counts_C1: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of softmax(hidden·weightᵀ), as a `ChunkLoss`."""
    z_CV = F.linear(hidden_CD, weight_VD)
    dtype = z_CV.dtype
    z_CV = z_CV.to(torch.promote_types(dtype, torch.float32))
    log_p_CV = torch.log_softmax(z_CV, dim=-1)
    log_p_C1 = log_p_CV.gather(1, target_C1)
    log_sum_C1 = z_CV.gather(1, target_C1) - log_p_C1
    d_z_CV, loss, penalty = softmax_loss(log_p_CV.exp_(), log_p_C1, log_sum_C1, target_C1, counts_C1, z_loss)
    return d_z_CV.to(dtype), loss, penalty


def softmax_loss(
    p_CV: Tensor, log_p_C1: Tensor, log_sum_C1: Tensor, target_C1: Tensor, counts_C1: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of a `ChunkLoss` from the softmax, which becomes the gradient.

    `log_p_C1` is the logarithm of the target's probability, `log_sum_C1` that of the softmax's denominator.
    """
    loss = -(log_p_C1 * counts_C1).sum()
    penalty = torch.zeros_like(loss)
    if z_loss:
        penalty = z_loss * (log_sum_C1.square() * counts_C1).sum()
        p_CV.mul_(1 + 2 * z_loss * log_sum_C1)
    if torch.compiler.is_compiling():
        # A comparison becomes part of the kernel that computes the softmax. A scatter would write all of it to memory in
        # float32, and another kernel would read it again to round it.
        is_target_CV = torch.arange(p_CV.shape[1], device=p_CV.device) == target_C1
        return p_CV - is_target_CV.to(p_CV.dtype), loss, penalty
    return p_CV.scatter_add_(1, target_C1, p_CV.new_full((1, 1), -1.0).expand_as(target_C1)), loss, penalty


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    z_loss: float = 0.0,
    of_chunk: ChunkLoss = chunk_loss,
    products: GradientProducts | None = None,
) -> Tensor:
    """Sum over targets of the cross-entropy of softmax(hidden·weightᵀ), in nats, a scalar of float32 or wider.

    Targets of IGNORE_INDEX do not count. The gradient includes that of z_loss·log²(Z), where Z is the softmax's
    denominator; the value does not. Under autocast the products are taken in its type, and the softmax in float32.

    If gradients are needed they are computed here, chunk by chunk, while the softmax is at hand. The backward pass only
    scales them.
    """
    needs_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    dtype = product_dtype(weight_VD)
    total, loss = _LinearCrossEntropy.apply(
        hidden_ND, weight_VD, targets_N, dtype, needs_grad, z_loss, of_chunk, products
    )
    return total + (loss - total.detach()) if z_loss else total


class _LinearCrossEntropy(torch.autograd.Function):
    """total = Σₙ lₙ − zₙ[tₙ] + c·lₙ², lₙ = logsumexp(zₙ), zₙ = W·hₙ;  ∂total/∂zₙ = (1 + 2c·lₙ)·softmax(zₙ) − onehot(tₙ).

    Returns the total, and the loss without a gradient: the total with c = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        dtype: torch.dtype,
        needs_grad: bool,
        z_loss: float,
        of_chunk: ChunkLoss,
        products: GradientProducts | None,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        weight = weight_VD.to(dtype)
        loss, penalty = hidden_ND.new_zeros((), dtype=wide), hidden_ND.new_zeros((), dtype=wide)
        if needs_grad:
            d_hidden_ND = torch.empty_like(hidden_ND, dtype=wide)
            d_weight_VD: Tensor | None = None
        rows = min(chunk_rows(weight_VD.shape[0], hidden_ND.device.type), hidden_ND.shape[0])
        for start in range(0, hidden_ND.shape[0], rows):
            chunk = slice(start, start + rows)
            counts_C1 = (targets_N[chunk] != IGNORE_INDEX)[:, None]
            target_C1 = targets_N[chunk].clamp(min=0)[:, None]
            hidden_CD = hidden_ND[chunk].to(dtype)
            d_z_CV, loss_of_chunk, penalty_of_chunk = of_chunk(hidden_CD, weight, target_C1, counts_C1, z_loss)
            loss += loss_of_chunk
            penalty += penalty_of_chunk
            if needs_grad:
                # Uncounted rows are set to zero on the narrow side of both products, D wide instead of V.
                if products is None:
                    if d_weight_VD is None:
                        d_weight_VD = torch.empty_like(weight_VD, dtype=wide)
                    d_hidden_ND[chunk] = (d_z_CV @ weight) * counts_C1
                    _add_product(d_weight_VD, d_z_CV.t(), hidden_CD * counts_C1, is_first=start == 0)
                else:
                    d_hidden_ND[chunk] = products.input_gradient(d_z_CV, weight) * counts_C1
                    d_weight_VD = products.weight_gradient(d_z_CV, hidden_CD * counts_C1, d_weight_VD).to(wide)
            # Free it before the next chunk needs the memory.
            del d_z_CV
        if needs_grad:
            ctx.gradients = (d_hidden_ND, d_weight_VD)
            ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype)
        ctx.mark_non_differentiable(loss)
        return loss + penalty, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, _d_loss: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place and given away, because there is only one copy.
        if ctx.gradients is None:
            raise RuntimeError("the backward pass of this loss can run once; compute the loss again")
        d_hidden_ND, d_weight_VD = ctx.gradients
        ctx.gradients = None
        d_hidden_ND = d_hidden_ND.mul_(d_total).to(ctx.dtypes[0])
        d_weight_VD = d_weight_VD.mul_(d_total).to(ctx.dtypes[1])
        return d_hidden_ND, d_weight_VD, None, None, None, None, None, None


def _add_product(sum_VD: Tensor, a_VC: Tensor, b_CD: Tensor, *, is_first: bool) -> None:
    if sum_VD.dtype == a_VC.dtype:
        sum_VD.addmm_(a_VC, b_CD, beta=0.0 if is_first else 1.0)
    elif is_first:
        sum_VD.copy_(a_VC @ b_CD)
    else:
        # Each chunk's product is rounded once; their sum stays in float32.
        sum_VD += a_VC @ b_CD
