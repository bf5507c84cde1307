"""Decides how norm, rotation and SwiGLU run eagerly on the CPU: by hand-written gradients with less memory traffic.

There autograd's step-by-step gradients cost several passes over memory, and a fresh allocation each, where the
equations need one or two. A compiler fuses the plain equations by itself and CUDA has kernels for them, so `layers`
uses these only where `applies` says so. Each is tested against autograd's gradient of its equation.

Letters: B batch, T tokens, D hidden size, F intermediate size, H heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from packtrain.model import products


def applies(x: Tensor) -> bool:
    """Whether the functions of this file are the faster way for `x`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class TiedEmbedding(torch.autograd.Function):
    """x = W[tokens], where W is the output projection too;  dW = what the loss left in `handed_on`, plus dx in its rows.

    Plain autograd would make a second gradient of W's size, of zeros but for these rows, and add the two. The loss is
    above every block, so that its backward pass always comes first.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BT: Tensor, weight_VD: Tensor, handed_on: list[Tensor]) -> Tensor:
        ctx.save_for_backward(tokens_BT)
        ctx.handed_on = handed_on
        return F.embedding(tokens_BT, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor) -> tuple[Tensor | None, ...]:
        (tokens_BT,) = ctx.saved_tensors
        d_weight_VD = ctx.handed_on.pop()
        return None, d_weight_VD.index_add_(0, tokens_BT.flatten(), dx_BTD.flatten(0, 1)), None


class RMSNorm(torch.autograd.Function):
    """y = w·n with n = x·r, r = 1/sqrt(mean(x²) + eps);  dx = r·(w·dy − n·mean(n·w·dy)),  dw = Σ dy·n.

    Keeps x and r only; computes in float32 or wider and rounds the result to `dtype`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        return *_norm_backward(dy, x * r, weight, r, x.dtype), None, None


class NormLinears(torch.autograd.Function):
    """zᵢ = y·Wᵢᵀ with y = RMSNorm(x), for each weight Wᵢ given;  dWᵢ = dzᵢᵀ·y,  dy = Σ dzᵢ·Wᵢ, then as `RMSNorm`.

    Keeps x and r: y, which plain autograd keeps, is one pass over x to compute again.
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_D: Tensor, eps: float, *weights: Tensor) -> tuple[Tensor, ...]:
        r_BT1 = _inverse_rms(x_BTD, eps)
        ctx.save_for_backward(x_BTD, weight_D, r_BT1, *weights)
        y_BTD = (x_BTD * r_BT1).mul_(weight_D).to(weights[0].dtype)
        return tuple(products.linear(y_BTD, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dz: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_D, r_BT1, *weights = ctx.saved_tensors
        n_BTD = x_BTD * r_BT1
        y_ND = (n_BTD * weight_D).to(weights[0].dtype).flatten(0, 1)
        d_weights = [dz_i.flatten(0, 1).t() @ y_ND for dz_i in dz]
        del y_ND
        dy_ND = products.linear(dz[0].flatten(0, 1), weights[0].t())
        for dz_i, weight in zip(dz[1:], weights[1:], strict=True):
            dy_ND = products.add_linear(dy_ND, dz_i.flatten(0, 1), weight.t())
        dx_BTD, d_weight_D = _norm_backward(dy_ND.view_as(n_BTD), n_BTD, weight_D, r_BT1, x_BTD.dtype)
        return dx_BTD, d_weight_D, None, *d_weights


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(dy: Tensor, n: Tensor, weight: Tensor, r: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    products = dy * n
    d_weight = products.flatten(0, -2).sum(0)
    mean = products.mul_(weight).mean(-1, keepdim=True)
    dx = torch.mul(dy, weight, out=products).addcmul_(n, mean, value=-1.0).mul_(r)
    return dx.to(dtype), d_weight.to(weight.dtype)


class Rotate(torch.autograd.Function):
    """(a, b) → (a·cos − b·sin, b·cos + a·sin) of the halves of the last dimension; its gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BTHK, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(dy_BTHK, cos, sin, -1.0), None, None


def _turn(x_BTHK: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    a, b = x_BTHK.to(torch.promote_types(x_BTHK.dtype, cos.dtype)).chunk(2, dim=-1)
    out_BTHK = torch.empty(x_BTHK.shape, dtype=a.dtype)
    out_a, out_b = out_BTHK.chunk(2, dim=-1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin, value=direction)
    return out_BTHK.to(x_BTHK.dtype)


class CausalAttention(torch.autograd.Function):
    """softmax(q·kᵀ / sqrt(K)) · v over the positions before, for 16-bit types: their gradients are computed in float32.

    torch's kernel for them takes each of a gradient's many small products in 16 bits through oneDNN, which sets every one up
    anew: up to twice as slow as in float32, and up to six times where lanes share the memory that this takes. It wins only where
    `_has_large_tiles` says so.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        out_BHTK, log_sums = _flash.default(q_BHTK, k_BGTK, v_BGTK, 0.0, True)
        ctx.save_for_backward(q_BHTK, k_BGTK, v_BGTK, out_BHTK, log_sums)
        return out_BHTK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BHTK: Tensor) -> tuple[Tensor, ...]:
        *narrow, log_sums = ctx.saved_tensors
        dtype = d_out_BHTK.dtype if _has_large_tiles(narrow[0]) else torch.float32
        gradients = _flash_backward.default(*(x.to(dtype) for x in (d_out_BHTK, *narrow)), log_sums, 0.0, True)
        return tuple(gradient.to(d_out_BHTK.dtype) for gradient in gradients)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _has_large_tiles(q_BHTK: Tensor) -> bool:
    """Whether products of 16 bits in attention are so large that units for tiles of them (AMX) pay for setting them up."""
    T, K = q_BHTK.shape[-2:]
    return T * K >= 2**16 and torch.cpu._is_amx_tile_supported()


class Linear(torch.autograd.Function):
    """y = x·Wᵀ;  dx = dy·W,  dW = dyᵀ·x."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight_OD: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTD, weight_OD)
        return products.linear(x_BTD, weight_OD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTO: Tensor) -> tuple[Tensor, Tensor]:
        x_BTD, weight_OD = ctx.saved_tensors
        d_weight_OD = dy_BTO.flatten(0, 1).t() @ x_BTD.flatten(0, 1)
        return products.linear(dy_BTO, weight_OD.t()), d_weight_OD


class SwiGLUDown(torch.autograd.Function):
    """y = h·Wᵀ with h = silu(g)·u;  dh = dy·W,  dW = dyᵀ·h,  du = dh·silu(g),  dg = dh·u·silu'(g).

    Keeps g and u; h, as large as either, is computed again in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, gate_BTF: Tensor, up_BTF: Tensor, weight_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTF, up_BTF, weight_DF)
        return products.linear(F.silu(gate_BTF).mul_(up_BTF), weight_DF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate_BTF, up_BTF, weight_DF = ctx.saved_tensors
        silu_BTF = F.silu(gate_BTF)
        h_BTF = silu_BTF * up_BTF
        d_weight_DF = dy_BTD.flatten(0, 1).t() @ h_BTF.flatten(0, 1)
        del h_BTF
        dh_BTF = products.linear(dy_BTD, weight_DF.t())
        d_up_BTF = silu_BTF.mul_(dh_BTF)
        d_gate_BTF = dh_BTF.mul_(up_BTF)
        torch.ops.aten.silu_backward.grad_input(d_gate_BTF, gate_BTF, grad_input=d_gate_BTF)
        return d_gate_BTF, d_up_BTF, d_weight_DF
