"""Decides how the training loss is computed."""

from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
"""A target that counts for nothing."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over targets of the cross-entropy of softmax(hidden · weightᵀ), in nats; targets of IGNORE_INDEX count nothing."""
    logits_NV = F.linear(hidden_ND, weight_VD)
    return F.cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE_INDEX, reduction="sum")
