"""Decides how a GGUF file of the llama or qwen3 kind becomes a model of ours: its shape, its weights and its tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import TokenizerError
from packtrain.model.layers import stretch
from packtrain.pretrained.conditions import Conditions
from packtrain.pretrained.files import ModelFiles, check_shapes, expected_shapes, refuse
from packtrain.pretrained.gguf_header import Q8_0, GGUFHeader, GGUFTensor, read_header
from packtrain.pretrained.gguf_layout import ROPE_FACTORS, gguf_name, interleaved_heads
from packtrain.pretrained.pieces import Controls, PieceKind, VocabularyPiece, build_byte_level, build_sentencepiece
from packtrain.pretrained.rotary_rows import separate_rows

_KINDS = {"llama": False, "qwen3": True}
"""Whether each has a norm on queries and keys."""
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
# Values that change the equation to one that our Llama does not have, unless they are 0.
_ABSENT = (
    *("expert_count", "attention.sliding_window", "attention.clamp_kqv", "attention.scale"),
    *("logit_scale", "residual_scale", "embedding_scale"),
)


def read_file(path: Path) -> ModelFiles:
    """The model in a GGUF with weights in F32, F16, BF16 or Q8_0. Raises ModelError if it is another kind of model, or damaged."""
    header = read_header(path)
    config = _Reading(path, header).config()
    if config.num_hidden_layers > len(header.tensors):
        raise refuse(path, f"it has {len(header.tensors)} tensors, too few for its {config.num_hidden_layers} layers")
    known = {gguf_name(name): name for name in expected_shapes(config)}
    shapes = {
        known.get(theirs, theirs): found.shape for theirs, found in header.tensors.items() if theirs != ROPE_FACTORS
    }
    check_shapes(path, config, shapes, "its header")

    def read(name: str) -> Tensor:
        tensor = _read_tensor(path, header.tensors[gguf_name(name)])
        heads = interleaved_heads(name, config)
        return tensor if heads is None else separate_rows(tensor, heads)

    length = config.max_position_embeddings
    assert length is not None, "a GGUF has a context length"
    return ModelFiles(
        path,
        "GGUF",
        config,
        (path,),
        read,
        lambda: _read_conditions(path, header, length),
        is_rounded=any(tensor.type == Q8_0 for tensor in header.tensors.values()),
    )


class _Reading:
    """The settings of a model, each of the type that it must have."""

    def __init__(self, path: Path, header: GGUFHeader) -> None:
        self._path, self._header = path, header
        self._kind = str(header.values.get("general.architecture"))

    def config(self) -> ModelConfig:
        if self._kind not in _KINDS:
            raise refuse(self._path, f"its architecture is {self._kind[:60]}, not {' or '.join(_KINDS)}")
        other = next((name for name in _ABSENT if self._value(name)), None)
        if other is not None:
            raise refuse(self._path, f"its {other} is not that of a plain Llama")
        heads = self._count("attention.head_count")
        given: dict[str, Any] = {
            "hidden_size": self._count("embedding_length"),
            "num_hidden_layers": self._count("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._count("attention.head_count_kv", heads),
            "intermediate_size": self._count("feed_forward_length"),
            "vocab_size": self._rows(),
            "max_position_embeddings": self._count("context_length"),
            "rms_norm_eps": self._value("attention.layer_norm_rms_epsilon") or 1e-5,
            "rope_theta": self._value("rope.freq_base") or 10000.0,
            "tie_word_embeddings": "output.weight" not in self._header.tensors,
            "qk_norm": _KINDS[self._kind],
        }
        given["head_dim"] = self._count("attention.key_length", given["hidden_size"] // heads)
        width = given["head_dim"]
        for name in ("attention.value_length", "rope.dimension_count"):
            if self._count(name, width) != width:
                raise refuse(self._path, f"its {name} is {self._value(name)}, and its heads are {width} wide")
        try:
            config = ModelConfig.model_validate(given | self._linear_scaling())
        except ValidationError as failure:
            error = failure.errors()[0]
            raise refuse(self._path, f"{'.'.join(map(str, error['loc']))}: {error['msg']}") from None
        return self._with_stretched_rope(config)

    def _value(self, name: str) -> Any:
        return self._header.values.get(f"{self._kind}.{name}")

    def _count(self, name: str, default: int | None = None) -> int:
        value = self._value(name)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 1 << 31:
            raise refuse(self._path, f"{self._kind}.{name} is {str(value)[:40]}")
        return value

    def _rows(self) -> int:
        embedding = self._header.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise refuse(self._path, "it has no token_embd.weight")
        return embedding.shape[0]

    def _linear_scaling(self) -> dict[str, Any]:
        kind = self._value("rope.scaling.type") or ("linear" if self._value("rope.scale_linear") else "none")
        factor = self._value("rope.scaling.factor") or self._value("rope.scale_linear") or 1.0
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return {}
        if kind != "linear":
            raise refuse(
                self._path, f"its rotary embedding is stretched by {str(kind)[:40]}; packtrain has linear and llama3"
            )
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}

    def _with_stretched_rope(self, config: ModelConfig) -> ModelConfig:
        """`config` with the llama3 scaling that a tensor of divisors of the frequencies stands for."""
        stored = self._header.tensors.get(ROPE_FACTORS)
        if stored is None:
            return config
        if stored.shape != (config.head_size // 2,):
            raise refuse(self._path, f"{ROPE_FACTORS} has shape {list(stored.shape)}, not {[config.head_size // 2]}")
        divisors = _read_tensor(self._path, stored).to(torch.float64)
        if torch.equal(divisors, torch.ones_like(divisors)):
            return config
        exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
        frequencies = 1.0 / (config.rope_theta**exponents)
        for original in (8192, *(1 << n for n in range(3, 20))):
            scaling = {
                "rope_type": "llama3",
                "factor": float(divisors.max()),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
            if config.rope_scaling is not None or not scaling["factor"] > 1:  # type: ignore[operator]
                break
            found = ModelConfig.model_validate(config.model_dump() | {"rope_scaling": scaling})
            assert found.rope_scaling is not None
            ours = frequencies.double() / stretch(frequencies, found.rope_scaling).double()
            if torch.allclose(ours, divisors, rtol=1e-4):
                return found
        raise refuse(self._path, f"its {ROPE_FACTORS} is not llama3's stretching of the rotary embedding")


def _read_tensor(path: Path, stored: GGUFTensor) -> Tensor:
    data = bytearray(stored.num_bytes)
    with path.open("rb") as file:
        file.seek(stored.offset)
        if file.readinto(data) != stored.num_bytes:
            raise refuse(path, "it has become shorter since it was opened")
    if stored.type == Q8_0:
        return _read_q8_0(data).reshape(stored.shape)
    if not data:
        return torch.empty(stored.shape, dtype=_TYPES[stored.type])
    return torch.frombuffer(data, dtype=_TYPES[stored.type]).reshape(stored.shape)


def _read_q8_0(data: bytearray) -> Tensor:
    """float32 values: a block's 32 integers times its scale."""
    blocks = np.frombuffer(data, dtype=[("scale", "<f2"), ("values", "i1", 32)])
    return torch.from_numpy(blocks["values"] * blocks["scale"].astype(np.float32)[:, None])


def _read_conditions(path: Path, header: GGUFHeader, length: int) -> Conditions:
    values = header.values
    try:
        tokenizer = build_tokenizer(path, values)
    except TokenizerError:
        if not (path.parent / "tokenizer.json").is_file():
            raise
        tokenizer = load_tokenizer(path.parent)
    # llama.cpp's own assumptions, if the file says nothing: a BOS for sentencepiece and for Llama 3, else none.
    is_llama = values.get("tokenizer.ggml.model") == "llama" or values.get("tokenizer.ggml.pre") in _LLAMA3
    adds_bos = values.get("tokenizer.ggml.add_bos_token", is_llama)
    return Conditions(tokenizer, bool(adds_bos) and tokenizer.bos_id is not None, length)


def build_tokenizer(path: Path, values: dict[str, Any]) -> Tokenizer:
    """The tokenizer in the values of a GGUF. Raises TokenizerError if there is none, or one of another kind."""
    kind, found = values.get("tokenizer.ggml.model"), _strings(values.get("tokenizer.ggml.tokens"))
    if not found:
        raise TokenizerError(f"{path} has no vocabulary; put the model's tokenizer.json beside it")
    types = values.get("tokenizer.ggml.token_type", [int(PieceKind.NORMAL)] * len(found))
    if not _is_list(types, int) or len(types) != len(found) or not set(types) <= set(PieceKind):
        raise TokenizerError(
            f"the token types of {path} do not fit its vocabulary; put the model's tokenizer.json beside it"
        )
    # Rows of the embedding that no token uses have a name all the same.
    size = 1 + max((index for index, each in enumerate(types) if each != PieceKind.UNUSED), default=0)
    tokens, types = found[:size], types[:size]
    controls = Controls(*(_id(path, values.get(f"tokenizer.ggml.{name}_token_id"), size) for name in ("bos", "eos")))
    if kind == "gpt2":
        merges = _strings(values.get("tokenizer.ggml.merges"))
        if not merges:
            raise TokenizerError(f"{path} has no merges for its vocabulary; put the model's tokenizer.json beside it")
        return build_byte_level(path, tokens, types, merges, str(values.get("tokenizer.ggml.pre", "default")), controls)
    if kind != "llama":
        raise TokenizerError(
            f"the tokenizer of {path} is of the kind '{str(kind)[:40]}', and packtrain knows llama (sentencepiece) and gpt2 "
            "(byte-level); put the model's tokenizer.json beside it"
        )
    scores = values.get("tokenizer.ggml.scores", [])
    if not _is_list(scores, float) or len(scores) != len(found):
        raise TokenizerError(f"{path} has no scores for its vocabulary; put the model's tokenizer.json beside it")
    pieces = [
        VocabularyPiece(token, score, PieceKind(t))
        for token, score, t in zip(tokens, scores[:size], types, strict=True)
    ]
    return build_sentencepiece(
        path,
        pieces,
        controls,
        puts_space=bool(values.get("tokenizer.ggml.add_space_prefix", True)),
        squeezes=bool(values.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )


def _strings(value: Any) -> list[str]:
    return value if _is_list(value, str) else []


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(each) is kind for each in value)


def _id(path: Path, value: Any, size: int) -> int | None:
    if value is None or (type(value) is int and 0 <= value < size):
        return value
    raise TokenizerError(f"{path} names a control token {str(value)[:20]}, and its vocabulary has {size} tokens")
