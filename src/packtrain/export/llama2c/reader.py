"""Decides what llama2.c's files say, from its description of them alone: a plain NumPy reader that knows nothing of our model.

Letters: B rows, T tokens, D hidden size, F intermediate size, V vocabulary, H query heads, G key-value heads, K head width,
L layers.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_MAGIC, _HEADER = 0x616B3432, 256
_SIZES = struct.Struct("<7i")
_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Llama2cModel:
    """The sizes and weights of a model.bin, float32; matrices of int8 are multiplied out."""

    num_heads: int
    num_kv_heads: int
    weights: dict[str, np.ndarray]

    def logits(self, tokens_BT: np.ndarray) -> np.ndarray:
        """Logits, float32 [B, T, V]."""
        w, (B, T) = self.weights, tokens_BT.shape
        H, G = self.num_heads, self.num_kv_heads
        x_BTD = w["token_embedding_table"][tokens_BT]
        K = x_BTD.shape[-1] // H
        hidden_TT = np.triu(np.full((T, T), -np.inf, dtype=np.float32), 1)
        for layer in range(len(w["wq"])):
            h_BTD = _norm(x_BTD, w["rms_att_weight"][layer])
            q_BHTK = _rotate(_heads(h_BTD @ w["wq"][layer].T, H))
            k_BHTK = np.repeat(_rotate(_heads(h_BTD @ w["wk"][layer].T, G)), H // G, axis=1)
            v_BHTK = np.repeat(_heads(h_BTD @ w["wv"][layer].T, G), H // G, axis=1)
            scores_BHTT = q_BHTK @ k_BHTK.swapaxes(-1, -2) / np.float32(np.sqrt(K)) + hidden_TT
            shares_BHTT = np.exp(scores_BHTT - scores_BHTT.max(-1, keepdims=True))
            shares_BHTT /= shares_BHTT.sum(-1, keepdims=True)
            x_BTD = x_BTD + (shares_BHTT @ v_BHTK).swapaxes(1, 2).reshape(B, T, -1) @ w["wo"][layer].T
            h_BTD = _norm(x_BTD, w["rms_ffn_weight"][layer])
            gate_BTF = h_BTD @ w["w1"][layer].T
            x_BTD = x_BTD + (gate_BTF / (1 + np.exp(-gate_BTF)) * (h_BTD @ w["w3"][layer].T)) @ w["w2"][layer].T
        return np.asarray(_norm(x_BTD, w["rms_final_weight"]) @ w["wcls"].T, dtype=np.float32)

    def continue_greedily(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """The likeliest `num_new` tokens after prompts of equal length, one at a time."""
        tokens_BT = np.array(prompts)
        for _ in range(num_new):
            tokens_BT = np.concatenate([tokens_BT, self.logits(tokens_BT)[:, -1:].argmax(-1)], axis=1)
        return [[int(i) for i in row[len(prompts[0]) :]] for row in tokens_BT]


def read_model(path: Path) -> Llama2cModel:
    """Reads a model.bin of any version. Raises ValueError, with the reason as a clause, if it is none or of another size."""
    if path.stat().st_size < _SIZES.size:
        raise ValueError(f"it has only {path.stat().st_size} bytes")
    data = np.memmap(path, dtype=np.uint8, mode="r")
    head = data[:_HEADER].tobytes()
    version, group, start = 0, 0, _SIZES.size
    sizes = _SIZES.unpack_from(head, 0)
    is_shared = sizes[5] > 0
    if head.startswith(struct.pack("<I", _MAGIC)) and len(head) == _HEADER:
        version, start = struct.unpack_from("<i", head, 4)[0], _HEADER
        sizes = _SIZES.unpack_from(head, 8)
        is_shared = head[8 + _SIZES.size] == 1
        group = struct.unpack_from("<i", head, 9 + _SIZES.size)[0] if version == 2 else 0
    D, F, L, H, G, V, positions = sizes
    cursor = _Cursor(data, start, group)
    vectors, projections, feed_forward = _shapes(D, F, L, H, G)
    if version == 0:
        layers = {
            "rms_att_weight": vectors["rms_att_weight"], **projections,
            "rms_ffn_weight": vectors["rms_ffn_weight"], **feed_forward,
        }  # fmt: skip
        order = {"token_embedding_table": (abs(V), D)} | layers | {"rms_final_weight": (D,)}
        order |= {"frequencies": (2, positions, D // H // 2)}
    else:
        order = vectors | {"rms_final_weight": (D,), "token_embedding_table": (V, D)} | projections | feed_forward
    if not is_shared:
        order |= {"wcls": (abs(V), D)}
    weights = {name: cursor.read(name, shape) for name, shape in order.items()}
    if cursor.place != len(data):
        raise ValueError(f"it has {len(data)} bytes, and its header says {cursor.place}")
    weights.setdefault("wcls", weights["token_embedding_table"])
    return Llama2cModel(H, G, weights)


class _Cursor:
    """Reads tensors one after another; with a group size, all but norms are int8 and then scales, layer by layer."""

    def __init__(self, data: np.ndarray, place: int, group: int) -> None:
        self._data, self.place, self._group = data, place, group

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if not self._group or name.startswith("rms"):
            return self._take(int(np.prod(shape)), "<f4").reshape(shape)
        layers = [self._read_quantized(shape[1:]) for _ in range(shape[0])] if len(shape) == 3 else None
        return self._read_quantized(shape) if layers is None else np.stack(layers)

    def _read_quantized(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        steps = self._take(count, "i1").reshape(-1, self._group)
        return (steps * self._take(count // self._group, "<f4")[:, None]).reshape(shape)

    def _take(self, count: int, kind: str) -> np.ndarray:
        end = self.place + count * np.dtype(kind).itemsize
        if end > len(self._data):
            raise ValueError(f"it has {len(self._data)} bytes, and its header says at least {end}")
        taken = self._data[self.place : end].view(kind)
        self.place = end
        return taken


def _shapes(D: int, F: int, L: int, H: int, G: int) -> tuple[_Shapes, _Shapes, _Shapes]:
    """Norms, attention and feed-forward of all layers, each in the order of the file."""
    keys = D // H * G
    vectors: _Shapes = {"rms_att_weight": (L, D), "rms_ffn_weight": (L, D)}
    projections: _Shapes = {"wq": (L, D, D), "wk": (L, keys, D), "wv": (L, keys, D), "wo": (L, D, D)}
    return vectors, projections, {"w1": (L, F, D), "w2": (L, D, F), "w3": (L, F, D)}


def _norm(x_BTD: np.ndarray, weight_D: np.ndarray) -> np.ndarray:
    return x_BTD / np.sqrt((x_BTD * x_BTD).mean(-1, keepdims=True) + np.float32(1e-5)) * weight_D


def _heads(x_BTD: np.ndarray, num_heads: int) -> np.ndarray:
    """[B, T, H·K] to [B, H, T, K]."""
    return x_BTD.reshape(*x_BTD.shape[:2], num_heads, -1).swapaxes(1, 2)


def _rotate(x_BHTK: np.ndarray) -> np.ndarray:
    """Neighbours (2i, 2i + 1) of a head, by the angle position / 10000^(2i/K)."""
    T, K = x_BHTK.shape[-2:]
    angles = np.outer(np.arange(T), 1.0 / 10000.0 ** (np.arange(0, K, 2) / K)).astype(np.float32)
    even, odd = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
    rotated = np.empty_like(x_BHTK)
    rotated[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
    rotated[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
    return rotated
