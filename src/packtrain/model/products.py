"""Decides which library takes a matrix product on the CPU.

torch gives products in float32 to MKL, whose kernels reach 85 % of what an AMD core can do, oneDNN's 93 %, and those in
bfloat16 to oneDNN anyway. torch has no public way to ask for oneDNN in float32; the operator used here is the one that
its own compiler emits. Where it is missing, the product is the plain one.

Letters: N rows, I inputs, O outputs.
"""

import functools
import platform

import torch
from torch import Tensor

# Fewer rows than this leave a kernel nothing to block over.
_FEWEST_ROWS = 16


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ, [..., O]. Has no gradient of its own: for use inside an autograd function."""
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight_OI, None, "none", [], "")
    return x @ weight_OI.t()


def add_linear(sum_NO: Tensor, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """sum + x·Wᵀ, [N, O]; may overwrite `sum_NO`. Has no gradient of its own."""
    if _by_onednn(x_NI):
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, sum_NO, weight_OI, None, "add")
    return sum_NO.addmm_(x_NI, weight_OI.t())


def _by_onednn(x: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= _FEWEST_ROWS * x.shape[-1]
        and _has_onednn()
    )


@functools.cache
def _has_onednn() -> bool:
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return operator is not None and {"default", "binary"}.issubset(operator.overloads())
