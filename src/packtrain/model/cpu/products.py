"""Decides which library takes a matrix product on the CPU.

torch gives float32 products to MKL and bfloat16 products to oneDNN. MKL is Intel's: on Intel's cores it is the faster of the
two by 6 to 20 %, but on AMD's it reaches 85 % of what a core can do, and oneDNN 93 %. torch has no public way to choose oneDNN
for float32. This file uses the operator that torch's own compiler emits; without it, the product is torch's.

Letters: N rows, I inputs, O outputs.
"""

import functools
import math
import platform
from pathlib import Path

import torch
from torch import Tensor

# With fewer rows a kernel has nothing to block over.
_FEWEST_ROWS = 16
# Elements of four bytes: 256 bytes. glibc's alignment takes up to 96 of them.
_PADDING = 64


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ, [..., O]. It has no gradient: use it inside an autograd function."""
    if _is_for_onednn(x):
        return by_onednn(x, weight_OI)
    out = _empty_padded(*x.shape[:-1], weight_OI.shape[0], like=x)
    torch.mm(x.flatten(0, -2), weight_OI.t(), out=out.flatten(0, -2))
    return out


def add_linear(sum_NO: Tensor, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """sum + x·Wᵀ, [N, O]; may overwrite `sum_NO`. It has no gradient."""
    if _is_for_onednn(x_NI):
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, sum_NO, weight_OI, None, "add")
    return sum_NO.addmm_(x_NI, weight_OI.t())


def by_onednn(x: Tensor, weight_OI: Tensor) -> Tensor:
    """`linear` by oneDNN, for at least 16 rows. Needs `has_onednn`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, None, "none", [], "")


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= _FEWEST_ROWS * x.shape[-1]
        and has_onednn()
        and not is_intel()
    )


def _empty_padded(*shape: int, like: Tensor) -> Tensor:
    """An uninitialised tensor whose memory is a little larger than it needs.

    glibc adds what alignment may take to the size that it looks for. Without padding, a weight's gradient would not fit into
    the gap of a freed activation of the same size.
    """
    return like.new_empty(math.prod(shape) + _PADDING)[: math.prod(shape)].view(shape)


@functools.cache
def has_onednn() -> bool:
    """Whether torch has the operators that this file uses."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return operator is not None and {"default", "binary"}.issubset(operator.overloads())


@functools.cache
def is_intel() -> bool:
    """Whether the CPU is made by Intel."""
    try:
        name = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        name = platform.processor()
    return "GenuineIntel" in name
