"""Decides how a Hugging Face folder, such as `packtrain export` writes, becomes a model of ours again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ExportError
from packtrain.generate.conditions import Conditions
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.storage.json_file import read_json

_ARCHITECTURES = {"LlamaForCausalLM": False, "Qwen3ForCausalLM": True}
"""Whether each has a norm on queries and keys."""
_SHARED = (
    *(
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
    ),
    *("vocab_size", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "initializer_range"),
)
_SCALING = ("rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ABSENT = ("attention_bias", "mlp_bias", "use_sliding_window")


@dataclass(frozen=True)
class OpenFolder:
    """A model to use, in evaluation mode and float32, and how it reads text."""

    folder: Path
    model: Llama
    conditions: Conditions


def open_folder(folder: Path, *, device: str = "cpu") -> OpenFolder:
    """Opens a Llama, or a Qwen3 without sliding window, with its tokenizer. Weights of any float type become float32.

    Raises ExportError if the folder is not such a model or a file of it is missing or damaged, TokenizerError if the
    tokenizer is missing or has more ids than the model.
    """
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    model = build(config, seed=0, device="meta")
    weights = _read_weights(folder)
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    if found != expected:
        name = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise _refuse(folder, f"{name} has shape {found.get(name)}, and config.json says {expected.get(name)}")
    state = {name: tensor.to(device, torch.float32) for name, tensor in weights.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if device == "cpu":
        use_cpu_kernels(model)
    length = config.max_position_embeddings
    assert length is not None, "read_config requires it"
    return OpenFolder(folder, model.eval(), Conditions(tokenizer, _adds_bos(tokenizer), length))


def read_config(folder: Path) -> ModelConfig:
    """The shape that config.json describes. Raises ExportError for a model that is not a Llama as packtrain has it."""
    found = read_json(folder / "config.json", lambda reason: _refuse(folder, f"config.json: {reason}"))
    if not isinstance(found, dict):
        raise _refuse(folder, "config.json is not an object")
    names = found.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if architecture not in _ARCHITECTURES:
        raise _refuse(folder, f"its architecture is {architecture}, not {' or '.join(_ARCHITECTURES)}")
    others = [name for name in _ABSENT if found.get(name)]
    if others or found.get("hidden_act", "silu") != "silu":
        raise _refuse(folder, f"its {others[0] if others else 'hidden_act'} is not that of a plain Llama")
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    given: dict[str, Any] = {name: found[name] for name in _SHARED if found.get(name) is not None}
    # transformers leaves out what has its default value.
    given.setdefault("tie_word_embeddings", False)
    given.setdefault("rms_norm_eps", 1e-6)
    given["qk_norm"] = _ARCHITECTURES[str(architecture)]
    given["rope_theta"] = rope.get("rope_theta") or found.get("rope_theta") or 10000.0
    if rope.get("rope_type", "default") != "default":
        given["rope_scaling"] = {name: rope[name] for name in _SCALING if name in rope}
    if "max_position_embeddings" not in given:
        raise _refuse(folder, "config.json has no max_position_embeddings")
    try:
        return ModelConfig.model_validate(given)
    except ValidationError as failure:
        error = failure.errors()[0]
        raise _refuse(folder, f"{'.'.join(map(str, error['loc']))} of config.json: {error['msg']}") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files: one file, or those that an index names."""
    names = ["model.safetensors"]
    if (folder / "model.safetensors.index.json").is_file():
        index = read_json(
            folder / "model.safetensors.index.json", lambda reason: _refuse(folder, f"its index: {reason}")
        )
        listed = index.get("weight_map", {}) if isinstance(index, dict) else {}
        # By name alone: an index may come from elsewhere, and lead to any file.
        names = sorted({Path(str(name)).name for name in listed.values()})
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        except (OSError, safetensors.SafetensorError) as error:
            raise _refuse(folder, f"{name} cannot be read ({error})") from None
    return weights


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's files put BOS before a text."""
    ids = tokenizer.raw.encode("a", add_special_tokens=True).ids
    return tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id]


def _refuse(folder: Path, reason: str) -> ExportError:
    return ExportError(
        f"{folder} is not a model that packtrain can open: {reason}; give a run, or a folder that `packtrain export` wrote"
    )
