"""Decides how the compiled step reads a model, and whether it may: only if its logits are the model's.

Letters: as in step.c.
"""

import ctypes
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from packtrain.generate.cache import SlotCache
from packtrain.generate.compiler import load_step
from packtrain.generate.passes import ModelPasses, Work
from packtrain.generate.weights import NarrowEmbedding, NarrowLinear
from packtrain.model.llama import Llama

_log = logging.getLogger("packtrain")
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
# Tokens of one step: its sums lie on the threads' stacks.
_MOST_TOKENS = 64
_PHASES = 5
# Of the largest logit. Rounding differs by about 1e-6.
_TOLERANCE = 1e-3
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64


class _Matrix(ctypes.Structure):
    _fields_ = [("numbers", _POINTER), ("scales", _POINTER), ("rows", _INT), ("columns", _INT), ("kind", _INT)]


_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
_NORMS = ("attention_norm", "feed_forward_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = [*((name, _Matrix) for name in _MATRICES), *((name, _POINTER) for name in _NORMS)]


_SIZES = ("num_layers", "D", "F", "H", "G", "K", "S", "slots", "max_tokens", "num_threads")
_BUFFERS = ("cosines", "sines", "keys", "values", "x", "q", "heads", "inner", "normed", "scores")


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _INT) for name in _SIZES),
        ("eps", ctypes.c_float),
        ("layers", _POINTER),
        ("embedding", _Matrix),
        ("output", _Matrix),
        ("norm", _POINTER),
        *((name, _POINTER) for name in _BUFFERS),
    ]


class CompiledPasses(ModelPasses):
    """Passes in which a few tokens take the compiled step; longer pieces of a prompt take the model itself."""

    def __init__(self, model: Llama, cache: SlotCache, step: Any) -> None:
        super().__init__(model, cache)
        self._step = step
        config = model.config
        D, F, H, K = config.hidden_size, config.intermediate_size, config.num_attention_heads, config.head_size
        L, N, S = config.num_hidden_layers, _MOST_TOKENS, cache.positions
        threads = torch.get_num_threads()
        rotation = model.model.rotary(torch.arange(S))
        shapes: dict[str, tuple[int, ...]] = {"x": (N, D), "q": (N, H * K), "heads": (N, H * K), "inner": (N, F)}
        shapes |= {"normed": (threads, N, D), "scores": (threads, S)}
        # The library reads this memory by address, so it is kept for as long as this object.
        self._buffers = {name: torch.empty(shape) for name, shape in shapes.items()}
        self._buffers |= {"cosines": rotation.cos.contiguous(), "sines": rotation.sin.contiguous()}
        self._buffers |= {"keys": cache.keys, "values": cache.values}
        self._counters = torch.empty(2, 2 + L * _PHASES, dtype=torch.int64)
        self._layers = (_Layer * L)(*(_read_block(block) for block in model.model.layers))
        sizes = dict(zip(_SIZES, (L, D, F, H, config.kv_heads, K, S, len(cache.lengths), N, threads), strict=True))
        self._structure = _Model(
            **sizes,
            eps=config.rms_norm_eps,
            layers=ctypes.addressof(self._layers),
            embedding=_read_matrix(model.model.embed_tokens),
            output=_read_matrix(model.lm_head),
            norm=model.model.norm.weight.data_ptr(),
            **{name: self._buffers[name].data_ptr() for name in _BUFFERS},
        )
        self._vocab_rows = config.vocab_rows

    def extend(self, work: Sequence[Work]) -> Tensor:
        return torch.cat([self._extend(piece) for piece in _in_portions(work)])

    def _extend(self, work: Sequence[Work]) -> Tensor:
        lengths = self._cache.lengths
        places = [(token, w.slot, lengths[w.slot] + i) for w in work for i, token in enumerate(w.ids)]
        ends = torch.tensor([len(w.ids) for w in work]).cumsum(0) - 1
        rows_3N = torch.tensor(places, dtype=torch.int32).t().contiguous()
        wanted = ends.int()
        logits_BV = torch.empty(len(work), self._vocab_rows)
        self._step.run_step(
            ctypes.byref(self._structure),
            _INT(len(places)),
            *(_POINTER(row.data_ptr()) for row in rows_3N),
            _INT(len(work)),
            _POINTER(wanted.data_ptr()),
            _POINTER(logits_BV.data_ptr()),
            _POINTER(self._counters.data_ptr()),
        )
        for w in work:
            lengths[w.slot] += len(w.ids)
        return logits_BV


def build_passes(model: Llama, cache: SlotCache) -> ModelPasses:
    """The compiled step if it can read the model and gives its logits, else the model itself."""
    step = load_step() if _is_readable(model, cache) else None
    if step is None:
        return ModelPasses(model, cache)
    passes = CompiledPasses(model, cache, step)
    if not _is_equal(model, cache, passes):
        _log.warning(
            "the compiled step does not give the model's logits on this machine, so generation uses the slower one"
        )
        return ModelPasses(model, cache)
    return passes


def _is_readable(model: Llama, cache: SlotCache) -> bool:
    """Whether everything is in plain float32 (or narrow) tensors in the CPU's memory, and the parts are those of step.c."""
    tensors = [*model.parameters(), *model.buffers(), cache.keys]
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return (
        all(
            tensor.device.type == "cpu" and type(tensor.data) is Tensor and tensor.is_contiguous() for tensor in tensors
        )
        and all(parameter.dtype == torch.float32 for parameter in model.parameters())
        and cache.keys.dtype == torch.float32
        and all(type(linear) is nn.Linear and linear.bias is None for linear in linears)
    )


def _is_equal(model: Llama, cache: SlotCache, passes: CompiledPasses) -> bool:
    """Compares the logits of a few tokens of the first slot, which is empty again afterwards."""
    assert not any(cache.lengths), "before the first sequence"
    ids = [0, model.config.vocab_rows - 1, model.config.vocab_rows // 2][: cache.positions]
    expected_V = ModelPasses(model, cache).read(Work(0, ids))
    cache.lengths[0] = 0
    (found_V,) = passes.extend([Work(0, ids)])
    cache.lengths[0] = 0
    if not expected_V.isfinite().all():
        return True  # Both are useless, and the engine says so.
    return bool((found_V - expected_V).abs().max() <= _TOLERANCE * expected_V.abs().max().clamp(min=1.0))


def _in_portions(work: Sequence[Work]) -> list[list[Work]]:
    """Work in lists of at most as many tokens as a step takes."""
    portions: list[list[Work]] = [[]]
    for piece in work:
        if sum(len(other.ids) for other in portions[-1]) + len(piece.ids) > _MOST_TOKENS:
            portions.append([])
        portions[-1].append(piece)
    return portions


def _read_block(block: Any) -> _Layer:
    attn, mlp = block.self_attn, block.mlp
    norms = [block.input_layernorm, block.post_attention_layernorm]
    norms += [attn.q_norm, attn.k_norm] if attn.qk_norm else []
    linears = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    return _Layer(
        **{name: _read_matrix(linear) for name, linear in zip(_MATRICES, linears, strict=True)},
        **{name: norm.weight.data_ptr() for name, norm in zip(_NORMS, norms, strict=False)},
    )


def _read_matrix(module: Any) -> _Matrix:
    is_narrow = isinstance(module, NarrowLinear | NarrowEmbedding)
    numbers: Tensor = module.rows.codes if is_narrow else module.weight
    scales: Tensor | None = module.rows.scales_O1 if is_narrow else None
    return _Matrix(
        numbers.data_ptr(), None if scales is None else scales.data_ptr(), *numbers.shape, _KINDS[numbers.dtype]
    )
