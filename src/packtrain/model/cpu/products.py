"""Decides which library takes a matrix product on the CPU: torch's own, or oneDNN.

torch gives float32 products to MKL and 16-bit products to one of oneDNN's primitives. Which of the two is faster depends on the CPU
and the product (docs/decisions/0022). torch has no public way to choose oneDNN for float32. This file uses the operator that torch's
own compiler emits; without it, the product is torch's.

Letters: N rows, I inputs, O outputs.
"""

import functools
import math
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from packtrain.config.cpu import KINDS, ONEDNN, TORCH, CpuConfig, OnednnLayers

# With fewer rows a kernel has nothing to block over.
_FEWEST_ROWS = 16
# Elements of four bytes: 256 bytes. glibc's alignment takes up to 96 of them.
_PADDING = 64


@dataclass(frozen=True)
class Products:
    """The products of linear layers, each by the library that is chosen for it.

    None has a gradient: use them inside an autograd function.
    """

    of_outputs: OnednnLayers
    of_input_gradients: OnednnLayers
    of_weight_gradients: OnednnLayers
    is_for_float32_only: bool = False

    @classmethod
    def of(cls, config: CpuConfig) -> Self:
        """As configured, with nothing left open."""
        outputs, input_gradients, weight_gradients = (OnednnLayers.parse(getattr(config, name)) for name in KINDS)
        return cls(outputs, input_gradients, weight_gradients)

    @classmethod
    def by_maker(cls) -> Self:
        """Without a measurement."""
        return replace(cls.of(maker_rule()), is_for_float32_only=True)

    def outputs(self, x: Tensor, weight_OI: Tensor) -> Tensor:
        """x·Wᵀ, [..., O]."""
        if self._is_for_onednn(self.of_outputs, x, weight_OI):
            return by_onednn(x, weight_OI)
        return _by_torch(x, weight_OI)

    def input_gradient(self, dy: Tensor, weight_OI: Tensor) -> Tensor:
        """dy·W, [..., I]."""
        if self._is_for_onednn(self.of_input_gradients, dy, weight_OI):
            return by_onednn(dy, weight_OI.t())
        return _by_torch(dy, weight_OI.t())

    def add_input_gradient(self, sum_NI: Tensor, dy_NO: Tensor, weight_OI: Tensor) -> Tensor:
        """sum + dy·W, [N, I]; may overwrite `sum_NI`."""
        if self._is_for_onednn(self.of_input_gradients, dy_NO, weight_OI):
            return torch.ops.mkldnn._linear_pointwise.binary(dy_NO, sum_NI, weight_OI.t(), None, "add")
        return sum_NI.addmm_(dy_NO, weight_OI)

    def weight_gradient(self, dy_NO: Tensor, x_NI: Tensor, sum_OI: Tensor | None = None) -> Tensor:
        """dyᵀ·x, [O, I]; added to `sum_OI` in place if that is given. Its type may be wider: each product is rounded once."""
        is_taken = self.of_weight_gradients.takes(x_NI.shape[-1], dy_NO.shape[-1])
        if is_taken and self._can_give(x_NI.shape[0], x_NI):
            product = by_onednn(dy_NO.t(), x_NI.t())
        elif sum_OI is not None and sum_OI.dtype == x_NI.dtype:
            return sum_OI.addmm_(dy_NO.t(), x_NI)
        else:
            product = dy_NO.t() @ x_NI
        # A sum of 16-bit products is in float32.
        return product if sum_OI is None else sum_OI.add_(product)

    def _is_for_onednn(self, share: OnednnLayers, x: Tensor, weight_OI: Tensor) -> bool:
        outputs, inputs = weight_OI.shape
        return share.takes(inputs, outputs) and self._can_give(x.numel() // max(x.shape[-1], 1), x)

    def _can_give(self, num_rows: int, x: Tensor) -> bool:
        is_wanted = x.dtype == torch.float32 or not self.is_for_float32_only
        return is_wanted and num_rows >= _FEWEST_ROWS and can_use_onednn(x)


def by_onednn(x: Tensor, weight_OI: Tensor) -> Tensor:
    """x·Wᵀ by oneDNN, for at least 16 rows. Copies an `x` that is not contiguous. Needs `has_onednn`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, None, "none", [], "")


def can_use_onednn(x: Tensor) -> bool:
    """Whether oneDNN multiplies matrices of this type on this CPU."""
    return x.device.type == "cpu" and has_onednn() and _computes(x.dtype)


def _by_torch(x: Tensor, weight_OI: Tensor) -> Tensor:
    out = _empty_padded(*x.shape[:-1], weight_OI.shape[0], like=x)
    torch.mm(x.flatten(0, -2), weight_OI.t(), out=out.flatten(0, -2))
    return out


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
def _computes(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


@functools.cache
def is_intel() -> bool:
    """Whether the CPU is made by Intel."""
    try:
        name = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        name = platform.processor()
    return "GenuineIntel" in name


@functools.cache
def maker_rule() -> CpuConfig:
    """What runs did in float32 before there was a measurement: oneDNN for outputs and input gradients, except on Intel's CPUs."""
    wins = ONEDNN if has_onednn() and not is_intel() else TORCH
    return CpuConfig(outputs=wins, input_gradients=wins, weight_gradients=TORCH)
