"""Decides the arithmetic of the parts around attention: RMSNorm, rotary positions and the SwiGLU feed-forward.

Letters: B batch, T tokens, D hidden size, F intermediate size, H heads, K head width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from packtrain.config.model import ModelConfig, RopeScaling


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (arXiv 1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # torch has a fused kernel only if both have the weight's type. The result is rounded once here; otherwise each
        # projection that reads it would round it again.
        y = F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.eps)
        return y.to(product_dtype(x))


def product_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products of `x`: autocast's if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def project(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """What each of several layers without biases makes of the same `x`.

    Code that is compiled for a GPU and converts the weights anyway converts them into one matrix: one large product instead
    of several, which read `x` once, and whose gradients for `x` need no sum.
    """
    weights = [linear.weight for linear in linears]
    dtype = product_dtype(x)
    is_plain = all(type(linear) is nn.Linear and linear.weight.dtype != dtype for linear in linears)
    if not (torch.compiler.is_compiling() and x.device.type != "cpu" and is_plain):
        return tuple(linear(x) for linear in linears)
    return project_together(x, *weights)


def project_together(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """The products of `x` with the transpose of each weight, as one product in the type of products."""
    joined = torch.cat([weight.to(product_dtype(x)) for weight in weights])
    return F.linear(x, joined).split([weight.shape[0] for weight in weights], dim=-1)


class Rotation(NamedTuple):
    """Cosine and sine of every rotary angle, [B or 1, T, 1, K/2] in float32."""

    cos: Tensor
    sin: Tensor


class Rotary:
    """Angles of rotary position embeddings (arXiv 2104.09864), without parameters or buffers.

    The frequencies are Python numbers, so that no move, cast or meta device can change them. The device keeps a copy:
    sending them in each forward pass would wait for the device.
    """

    def __init__(self, config: ModelConfig):
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32, device="cpu") / config.head_size
        frequencies = 1.0 / (config.rope_theta**exponents)
        if config.rope_scaling is not None:
            frequencies = stretch(frequencies, config.rope_scaling)
        self.frequencies: list[float] = frequencies.tolist()
        self.move(torch.device("cpu"))

    def move(self, device: torch.device) -> None:
        """Put the copy on `device`."""
        self._frequencies_K = torch.tensor(self.frequencies, dtype=torch.float32, device=device)

    def __call__(self, positions: Tensor) -> Rotation:
        """Angles for positions [T] or [B, T]; float32, because bf16 cannot tell position 257 from 258."""
        if self._frequencies_K.device != positions.device:
            self.move(positions.device)
        angles = positions.reshape(-1, positions.shape[-1], 1, 1).float() * self._frequencies_K
        return Rotation(angles.cos(), angles.sin())


def stretch(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Rotary frequencies for a longer context: `linear` (arXiv 2306.15595) or as in Llama 3.1."""
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair (i, i + K/2) of a head by its position's angle. Hugging Face pairs them this way."""
    cos, sin = rotation
    a, b = x_BTHK.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BTHK.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = project(x_BTD, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate_BTF) * up_BTF)
