"""Decides what llama2.c computes for a file: its run.c in NumPy, with its own order of rows and its own rotation.

Letters: T tokens, D hidden size, H query heads, G key-value heads, K head width.
"""

from pathlib import Path
from typing import Any

import numpy as np

from packtrain.pretrained.llama2c import place_tensors, read_header, read_tensor

_EPS = 1e-5


def compute_logits(path: Path, ids_T: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Logits [T, V], float32, of a text's ids from position 0. int8 weights are dequantised, and activations stay float32."""
    header = read_header(path)
    tensors, _ = place_tensors(header)

    def weight(name: str) -> np.ndarray:
        return read_tensor(path, tensors[f"{name}.weight"], header.group_size).numpy()

    H, G = header.num_heads, header.num_kv_heads
    T, K = len(ids_T), header.dim // header.num_heads
    x_TD = weight("model.embed_tokens")[ids_T]
    for layer in range(header.num_layers):
        block = f"model.layers.{layer}"
        h_TD = _norm(x_TD, weight(f"{block}.input_layernorm"))
        q_THK = _rotate((h_TD @ weight(f"{block}.self_attn.q_proj").T).reshape(T, H, K))
        k_TGK = _rotate((h_TD @ weight(f"{block}.self_attn.k_proj").T).reshape(T, G, K))
        v_TGK = (h_TD @ weight(f"{block}.self_attn.v_proj").T).reshape(T, G, K)
        mixed_THK = np.stack(
            [_attend(q_THK[:, h], k_TGK[:, h * G // H], v_TGK[:, h * G // H]) for h in range(H)], axis=1
        )
        x_TD = x_TD + mixed_THK.reshape(T, H * K) @ weight(f"{block}.self_attn.o_proj").T
        h_TD = _norm(x_TD, weight(f"{block}.post_attention_layernorm"))
        gate = h_TD @ weight(f"{block}.mlp.gate_proj").T
        x_TD = (
            x_TD
            + (gate / (1 + np.exp(-gate)) * (h_TD @ weight(f"{block}.mlp.up_proj").T))
            @ weight(f"{block}.mlp.down_proj").T
        )
    output = "model.embed_tokens" if header.is_tied else "lm_head"
    return _norm(x_TD, weight("model.norm")) @ weight(output).T


def _norm(x_TD: np.ndarray, weight_D: np.ndarray) -> np.ndarray:
    return weight_D * (x_TD / np.sqrt((x_TD**2).mean(axis=-1, keepdims=True) + _EPS))


def _rotate(x_THK: np.ndarray) -> np.ndarray:
    """Rotates each pair of neighbours (2i, 2i + 1), as run.c does."""
    T, _, K = x_THK.shape
    angles_TK = np.arange(T)[:, None] / 10000.0 ** (np.arange(0, K, 2) / K)
    cos, sin = (f(angles_TK)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    even, odd = x_THK[..., 0::2], x_THK[..., 1::2]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x_THK.shape)


def _attend(q_TK: np.ndarray, k_TK: np.ndarray, v_TK: np.ndarray) -> np.ndarray:
    scores_TT = q_TK @ k_TK.T / np.sqrt(np.float32(q_TK.shape[-1]))
    scores_TT = np.where(np.tri(len(q_TK), dtype=bool), scores_TT, -np.inf)
    weights_TT = np.exp(scores_TT - scores_TT.max(axis=-1, keepdims=True))
    return (weights_TT / weights_TT.sum(axis=-1, keepdims=True)) @ v_TK
