"""Decides which parts of a Llama use the CPU's kernels, and swaps them in.

A part keeps its parameters and their names, and changes its class. torch.compile sees the plain equation in it, from which
it makes better kernels.

Letters: B batch, T tokens, D hidden size, F intermediate size, H query heads, G key-value heads, K head width.
"""

import torch
from torch import Tensor, nn

from packtrain.model.attention import Cache, Mask, attend
from packtrain.model.cpu.gradients import (
    CausalAttention,
    Normalize,
    NormalizeAndProject,
    Project,
    Rotate,
    SwiGLUDown,
    TiedEmbedding,
)
from packtrain.model.cpu.loss import cpu_loss
from packtrain.model.cpu.products import Products
from packtrain.model.dropout import NO_DROPOUT, Branches, drop
from packtrain.model.layers import RMSNorm, Rotation, product_dtype
from packtrain.model.llama import Block, Llama


def use_cpu_kernels(model: Llama, products: Products | None = None) -> None:
    """Make a model train faster and in less memory on the CPU, in place. Its results change by rounding only.

    `products` are given to the libraries that it says; without it, the CPU's maker decides.

    Call it before the model is sharded, compiled or copied. It cannot be combined with fp8, whose layers take their
    products themselves.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert all(type(linear) is nn.Linear for linear in linears), "the CPU's kernels would bypass fp8 layers"
    for module in model.modules():
        module.__class__ = _ON_CPU.get(type(module), type(module))
        if products is not None and isinstance(module, CpuBlock | CpuLlama):
            module.products = products


class CpuRMSNorm(RMSNorm):
    """`RMSNorm` with a hand-written gradient."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(x)
        return Normalize.apply(x, self.weight, self.eps, product_dtype(x))


class CpuBlock(Block):
    """`Block` with hand-written gradients. Each norm is one function with the projections that read it."""

    products = Products.by_maker()

    def compute(
        self, x_BTD: Tensor, rotation: Rotation, mask: Mask, cache: Cache | None = None, dropout: Branches = NO_DROPOUT
    ) -> Tensor:
        if torch.compiler.is_compiling():
            return super().compute(x_BTD, rotation, mask, cache, dropout)
        x_BTD = x_BTD + drop(self._attention(x_BTD, rotation, mask, cache), dropout[0])
        return x_BTD + drop(self._feed_forward(x_BTD), dropout[1])

    def _attention(self, x_BTD: Tensor, rotation: Rotation, mask: Mask, cache: Cache | None) -> Tensor:
        attn = self.self_attn
        heads = (*x_BTD.shape[:2], -1, attn.head_size)
        projected = self._normalize_and_project(x_BTD, self.input_layernorm, attn.q_proj, attn.k_proj, attn.v_proj)
        q_BTHK, k_BTGK, v_BTGK = (z.view(heads) for z in projected)
        if attn.qk_norm:
            q_BTHK, k_BTGK = attn.q_norm(q_BTHK), attn.k_norm(k_BTGK)
        q_BHTK = Rotate.apply(q_BTHK, *rotation).transpose(1, 2)
        k_BGTK = Rotate.apply(k_BTGK, *rotation).transpose(1, 2)
        v_BGTK = v_BTGK.transpose(1, 2)
        if cache is not None:
            k_BGTK, v_BGTK = cache.update(attn.layer_index, k_BGTK, v_BGTK)
        out_BHTK = cpu_attend(q_BHTK, k_BGTK, v_BGTK, mask)
        out_BTD = out_BHTK.transpose(1, 2).flatten(2)
        return Project.apply(self.products, out_BTD, attn.o_proj.weight.to(out_BTD.dtype))

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        mlp = self.mlp
        norm = self.post_attention_layernorm
        gate_BTF, up_BTF = self._normalize_and_project(x_BTD, norm, mlp.gate_proj, mlp.up_proj)
        return SwiGLUDown.apply(self.products, gate_BTF, up_BTF, mlp.down_proj.weight.to(gate_BTF.dtype))

    def _normalize_and_project(self, x_BTD: Tensor, norm: RMSNorm, *projections: nn.Linear) -> tuple[Tensor, ...]:
        weights = (projection.weight.to(product_dtype(x_BTD)) for projection in projections)
        return NormalizeAndProject.apply(self.products, x_BTD, norm.weight, norm.eps, *weights)


class CpuLlama(Llama):
    """`Llama` with the CPU's loss. A tied embedding has one gradient, in one tensor."""

    products = Products.by_maker()

    def embed(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling() or not self.config.tie_word_embeddings:
            return super().embed(tokens_BT)
        return TiedEmbedding.apply(tokens_BT, self.lm_head.weight)

    def loss(self, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, z_loss: float) -> Tensor:
        if torch.compiler.is_compiling() or self.chunk_loss is not Llama.chunk_loss:
            # The loss of a chunk is compiled, or will be.
            return super().loss(hidden_ND, weight_VD, targets_N, z_loss)
        return cpu_loss(hidden_ND, weight_VD, targets_N, z_loss, self.products)


def cpu_attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask) -> Tensor:
    """`attend`, but in 16 bits with the gradients of `CausalAttention`."""
    is_square = q_BHTK.shape[2] == k_BGSK.shape[2] > 1
    if mask is None and is_square and q_BHTK.dtype.itemsize == 2:
        return CausalAttention.apply(q_BHTK, k_BGSK, v_BGSK)
    return attend(q_BHTK, k_BGSK, v_BGSK, mask)


_ON_CPU: dict[type[nn.Module], type[nn.Module]] = {RMSNorm: CpuRMSNorm, Block: CpuBlock, Llama: CpuLlama}
