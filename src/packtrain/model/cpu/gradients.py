"""Decides the CPU's gradients: autograd functions written by hand, with less memory traffic.

Autograd takes a gradient step by step, with several passes over memory and a fresh allocation each, where its equation
needs one or two. A test compares each function with autograd's gradient of its equation.

Letters: B batch, T tokens, D hidden size, F intermediate size, H heads, K head width, N all tokens, O outputs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from packtrain.model.cpu.products import Products


class TiedEmbedding(torch.autograd.Function):
    """x = W[tokens], and W for the output projection;  dW is the projection's gradient, plus dx in the tokens' rows.

    W goes through this function on its way to the loss, so that its gradient comes back through it. Autograd alone would
    make a second gradient of W's size, of zeros but for these rows, and add the two.
    """

    @staticmethod
    def forward(ctx: Any, tokens_BT: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(tokens_BT)
        return F.embedding(tokens_BT, weight_VD), weight_VD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx_BTD: Tensor, d_weight_VD: Tensor) -> tuple[None, Tensor]:
        (tokens_BT,) = ctx.saved_tensors
        # In place: the loss gave its only copy away.
        return None, d_weight_VD.index_add_(0, tokens_BT.flatten(), dx_BTD.flatten(0, 1))


class Normalize(torch.autograd.Function):
    """y = w·n with n = x·r, r = 1/sqrt(mean(x²) + eps);  dx = r·(w·dy − n·mean(n·w·dy)),  dw = Σ dy·n.

    Keeps x and r only. Computes in float32 or wider, and rounds the result to `dtype`.
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


class NormalizeAndProject(torch.autograd.Function):
    """zᵢ = y·Wᵢᵀ with y = RMSNorm(x), for each weight Wᵢ given;  dWᵢ = dzᵢᵀ·y,  dy = Σ dzᵢ·Wᵢ, then as `Normalize`.

    Keeps x and r. Autograd would keep y too, which is one pass over x to compute again.
    """

    @staticmethod
    def forward(
        ctx: Any, products: Products, x_BTD: Tensor, weight_D: Tensor, eps: float, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        r_BT1 = _inverse_rms(x_BTD, eps)
        ctx.save_for_backward(x_BTD, weight_D, r_BT1, *weights)
        ctx.products = products
        y_BTD = (x_BTD * r_BT1).mul_(weight_D).to(weights[0].dtype)
        return tuple(products.outputs(y_BTD, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dz: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, weight_D, r_BT1, *weights = ctx.saved_tensors
        products: Products = ctx.products
        n_BTD = x_BTD * r_BT1
        y_ND = (n_BTD * weight_D).to(weights[0].dtype).flatten(0, 1)
        d_weights = [products.weight_gradient(dz_i.flatten(0, 1), y_ND) for dz_i in dz]
        del y_ND
        dy_ND = products.input_gradient(dz[0].flatten(0, 1), weights[0])
        for dz_i, weight in zip(dz[1:], weights[1:], strict=True):
            dy_ND = products.add_input_gradient(dy_ND, dz_i.flatten(0, 1), weight)
        dx_BTD, d_weight_D = _norm_backward(dy_ND.view_as(n_BTD), n_BTD, weight_D, r_BT1, x_BTD.dtype)
        return None, dx_BTD, d_weight_D, None, *d_weights


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(dy: Tensor, n: Tensor, weight: Tensor, r: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    product = dy * n
    d_weight = product.flatten(0, -2).sum(0)
    mean = product.mul_(weight).mean(-1, keepdim=True)
    dx = torch.mul(dy, weight, out=product).addcmul_(n, mean, value=-1.0).mul_(r)
    return dx.to(dtype), d_weight.to(weight.dtype)


class Rotate(torch.autograd.Function):
    """(a, b) → (a·cos − b·sin, b·cos + a·sin) of the halves of the last dimension. Its gradient is the opposite rotation."""

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
    """Causal softmax(q·kᵀ / sqrt(K)) · v in 16 bits, with gradients computed in float32.

    In 16 bits torch's kernel takes the many small products of a gradient through oneDNN, which sets each one up again: up to
    twice as slow as in float32, and up to six times if lanes share the memory bandwidth. It is faster only for large tiles.
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
    """Whether attention's 16-bit products are large enough for AMX, the CPU's units for tiles, to repay the setup."""
    T, K = q_BHTK.shape[-2:]
    return T * K >= 2**16 and torch.cpu._is_amx_tile_supported()


class Project(torch.autograd.Function):
    """y = x·Wᵀ;  dx = dy·W,  dW = dyᵀ·x."""

    @staticmethod
    def forward(ctx: Any, products: Products, x_BTD: Tensor, weight_OD: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTD, weight_OD)
        ctx.products = products
        return products.outputs(x_BTD, weight_OD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTO: Tensor) -> tuple[None, Tensor, Tensor]:
        x_BTD, weight_OD = ctx.saved_tensors
        d_weight_OD = ctx.products.weight_gradient(dy_BTO.flatten(0, 1), x_BTD.flatten(0, 1))
        return None, ctx.products.input_gradient(dy_BTO, weight_OD), d_weight_OD


class SwiGLUDown(torch.autograd.Function):
    """y = h·Wᵀ with h = silu(g)·u;  dh = dy·W,  dW = dyᵀ·h,  du = dh·silu(g),  dg = dh·u·silu'(g).

    Keeps g and u. The backward pass computes h again, which is as large as either.
    """

    @staticmethod
    def forward(ctx: Any, products: Products, gate_BTF: Tensor, up_BTF: Tensor, weight_DF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_BTF, up_BTF, weight_DF)
        ctx.products = products
        return products.outputs(F.silu(gate_BTF).mul_(up_BTF), weight_DF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        gate_BTF, up_BTF, weight_DF = ctx.saved_tensors
        silu_BTF = F.silu(gate_BTF)
        h_BTF = silu_BTF * up_BTF
        d_weight_DF = ctx.products.weight_gradient(dy_BTD.flatten(0, 1), h_BTF.flatten(0, 1))
        del h_BTF
        dh_BTF = ctx.products.input_gradient(dy_BTD, weight_DF)
        d_up_BTF = silu_BTF.mul_(dh_BTF)
        d_gate_BTF = dh_BTF.mul_(up_BTF)
        torch.ops.aten.silu_backward.grad_input(d_gate_BTF, gate_BTF, grad_input=d_gate_BTF)
        return None, d_gate_BTF, d_up_BTF, d_weight_DF
