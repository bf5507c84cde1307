"""Decides which library takes a matrix product on the CPU.

torch gives products in float32 to MKL, and those in bfloat16 to oneDNN. MKL is made for Intel's cores, where it is the faster
by 6 to 20 %; of what an AMD core can do its kernels reach 85 %, oneDNN's 93 %. torch has no public way to ask for oneDNN in
float32; the operator used here is the one that its own compiler emits. Where it is missing, the product is the plain one.

Letters: N rows, I inputs, O outputs.
"""

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor

# Fewer rows than this leave a kernel nothing to block over.
_FEWEST_ROWS = 16


def linear(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ, [..., O]. Has no gradient of its own: for use inside an autograd function."""
    return by_onednn(x, weight_OI) if _is_for_onednn(x) else x @ weight_OI.t()


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
