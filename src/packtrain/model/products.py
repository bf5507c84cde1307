"""Decides which library takes a matrix product on the CPU.

torch gives products in float32 to MKL, and those in bfloat16 to oneDNN. MKL is made for Intel's cores, where it is the faster
by 6 to 20 %; of what an AMD core can do its kernels reach 85 %, oneDNN's 93 %. torch has no public way to ask for oneDNN in
float32; the operator used here is the one that its own compiler emits. Where it is missing, the product is the plain one.

Letters: N rows, I inputs, O outputs.
"""

import functools
import math
import platform
from pathlib import Path

import torch
from torch import Tensor

# Fewer rows than this leave a kernel nothing to block over.
_FEWEST_ROWS = 16
# Numbers of four bytes: 256 bytes, of which glibc's alignment takes up to 96.
_ROOM = 64


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ, [..., O]. Has no gradient of its own: for use inside an autograd function."""
    if _is_for_onednn(x):
        return by_onednn(x, weight_OI)
    out = _with_room(*x.shape[:-1], weight_OI.shape[0], like=x)
    torch.mm(x.flatten(0, -2), weight_OI.t(), out=out.flatten(0, -2))
    return out


def add_linear(sum_NO: Tensor, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """sum + x·Wᵀ, [N, O]; may overwrite `sum_NO`. Has no gradient of its own."""
    if _is_for_onednn(x_NI):
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, sum_NO, weight_OI, None, "add")
    return sum_NO.addmm_(x_NI, weight_OI.t())


def by_onednn(x: Tensor, weight_OI: Tensor) -> Tensor:
    """`linear` by oneDNN, of at least 16 rows, where `has_onednn`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, None, "none", [], "")


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= _FEWEST_ROWS * x.shape[-1]
        and has_onednn()
        and not is_intel()
    )


def _with_room(*shape: int, like: Tensor) -> Tensor:
    """Uninitialised, and a little larger than it looks.

    glibc looks for a tensor's size and what aligning it may take, so that it cannot put a weight's gradient into the gap
    that an activation of its very size has left.
    """
    return like.new_empty(math.prod(shape) + _ROOM)[: math.prod(shape)].view(shape)


@functools.cache
def has_onednn() -> bool:
    """Whether torch has the operators used here."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return operator is not None and {"default", "binary"}.issubset(operator.overloads())


@functools.cache
def is_intel() -> bool:
    """Whether the CPU is one of Intel's."""
    try:
        name = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        name = platform.processor()
    return "GenuineIntel" in name
