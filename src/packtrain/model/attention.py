"""Decides who attends to whom and which kernel computes it.

Letters: B batch, T query tokens, S key tokens, D hidden size, H query heads, G key-value heads, K head width.
"""

import functools
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from packtrain.config.model import ModelConfig
from packtrain.model.layers import RMSNorm, Rotation, rotate

Mask = Tensor | BlockMask | None
"""None: causal, as many queries as keys. A bool tensor [B or 1, 1, T, S] or a BlockMask: attend where it is True."""


class Cache(Protocol):
    """Keys and values of earlier positions."""

    @property
    def length(self) -> int:
        """How many positions it holds."""

    def update(self, layer_index: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Add one layer's new keys and values; returns all of that layer, [B, G, S, K] each."""


class SelfAttention(nn.Module):
    """Causal attention with rotary positions and grouped key-value heads (arXiv 2305.13245)."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        D, K = config.hidden_size, config.head_size
        self.layer_index = layer_index
        self.head_size = K
        self.q_proj = nn.Linear(D, config.num_attention_heads * K, bias=False)
        self.k_proj = nn.Linear(D, config.kv_heads * K, bias=False)
        self.v_proj = nn.Linear(D, config.kv_heads * K, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * K, D, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(K, config.rms_norm_eps)
            self.k_norm = RMSNorm(K, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Mask = None, cache: Cache | None = None) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_size)
        q_BTHK = self.q_proj(x_BTD).view(heads)
        k_BTGK = self.k_proj(x_BTD).view(heads)
        v_BTGK = self.v_proj(x_BTD).view(heads)
        if self.qk_norm:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BHTK = rotate(q_BTHK, rotation).transpose(1, 2)
        k_BGTK = rotate(k_BTGK, rotation).transpose(1, 2)
        v_BGTK = v_BTGK.transpose(1, 2)
        if cache is not None:
            k_BGTK, v_BGTK = cache.update(self.layer_index, k_BGTK, v_BGTK)
        out_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, mask)
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))


def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Mask) -> Tensor:
    """softmax(q·kᵀ / sqrt(K)) · v over the keys that `mask` allows, [B, H, T, K]."""
    is_grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if isinstance(mask, BlockMask):
        kernel: Any = flex_attention
        if q_BHTK.is_cuda and not torch.compiler.is_compiling():
            kernel = _compile_flex()
        return kernel(q_BHTK, k_BGSK, v_BGSK, block_mask=mask, enable_gqa=is_grouped)
    is_causal = mask is None and q_BHTK.shape[2] > 1
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=is_causal, enable_gqa=is_grouped
    )


def cached_mask(num_new: int, num_cached: int, device: torch.device) -> Mask:
    """Causal attention of `num_new` queries that follow `num_cached` keys."""
    if num_cached == 0 or num_new == 1:
        return None
    return torch.ones(num_new, num_cached + num_new, dtype=torch.bool, device=device).tril(num_cached)[None, None]


def document_mask(segments_BT: Tensor) -> Mask:
    """Causal attention within each segment.

    On CUDA it is a BlockMask: FlexAttention skips the blocks between documents. Elsewhere it is a bool tensor, because
    FlexAttention has no backward pass on the CPU.
    """
    if segments_BT.is_cuda:
        return block_mask(segments_BT)
    T = segments_BT.shape[1]
    causal_TT = torch.ones(T, T, dtype=torch.bool, device=segments_BT.device).tril()
    return ((segments_BT[:, :, None] == segments_BT[:, None, :]) & causal_TT)[:, None]


def block_mask(segments_BT: Tensor) -> BlockMask:
    """`document_mask` for FlexAttention."""
    B, T = segments_BT.shape

    def sees(b: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segments_BT[b, query] == segments_BT[b, key])

    return create_block_mask(sees, B, None, T, T, device=segments_BT.device)


@functools.cache
def _compile_flex() -> Any:
    # Eager FlexAttention would build the whole score matrix.
    return torch.compile(flex_attention)
