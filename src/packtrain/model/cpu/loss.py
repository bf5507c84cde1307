"""Decides how the CPU computes the loss of a chunk: in the memory of its logits, a few rows at a time if they have 16 bits.

Letters: C tokens of a chunk, D hidden size, V vocabulary.
"""

import functools

import torch
from torch import Tensor

from packtrain.model.chunks import WIDE_ROWS
from packtrain.model.cpu.products import Products
from packtrain.model.loss import linear_cross_entropy, softmax_loss


def cpu_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float, products: Products) -> Tensor:
    """`linear_cross_entropy` whose products are taken by `products`."""
    of_chunk = functools.partial(cpu_chunk_loss, products)
    return linear_cross_entropy(hidden_ND, weight_VD, targets_N, z_loss, of_chunk, products)


def cpu_chunk_loss(
    products: Products,
    hidden_CD: Tensor,
    weight_VD: Tensor,
    target_C1: Tensor,
    counts_C1: Tensor,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """A `ChunkLoss`, once it has its products, that turns the logits into their gradient in place."""
    z_CV = products.outputs(hidden_CD, weight_VD)
    wide = torch.promote_types(z_CV.dtype, torch.float32)
    if z_CV.dtype == wide:
        return _overwrite(z_CV, hidden_CD, weight_VD, target_C1, counts_C1, z_loss)
    loss, penalty = z_CV.new_zeros((), dtype=wide), z_CV.new_zeros((), dtype=wide)
    for start in range(0, z_CV.shape[0], WIDE_ROWS):
        rows = slice(start, start + WIDE_ROWS)
        z_CV[rows], loss_of_rows, penalty_of_rows = _overwrite(
            z_CV[rows].to(wide), hidden_CD[rows], weight_VD, target_C1[rows], counts_C1[rows], z_loss
        )
        loss += loss_of_rows
        penalty += penalty_of_rows
    return z_CV, loss, penalty


def _overwrite(
    z_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor, target_C1: Tensor, counts_C1: Tensor, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of a `ChunkLoss`. It takes one exponential of each logit; a log-softmax and its gradient take two."""
    z_C1 = z_CV.gather(1, target_C1)
    p_CV = torch.softmax(z_CV, dim=-1, out=z_CV)
    p_C1 = p_CV.gather(1, target_C1)
    log_p_C1 = p_C1.log()
    # A loss above 87 nats: float32 cannot hold the probability. These rows are computed again, as logarithms.
    lost_C = p_C1[:, 0] < torch.finfo(p_C1.dtype).tiny
    if lost_C.any():
        logits = (hidden_CD[lost_C] @ weight_VD.t()).to(z_CV.dtype)
        log_p_C1[lost_C] = torch.log_softmax(logits, dim=-1).gather(1, target_C1[lost_C])
    return softmax_loss(p_CV, log_p_C1, z_C1 - log_p_C1, target_C1, counts_C1, z_loss)
