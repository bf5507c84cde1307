"""Decides the files of a Hugging Face folder: weights, configuration and tokenizer for transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from packtrain.config.model import ModelConfig, RopeScaling
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ExportError
from packtrain.export.format import Subject
from packtrain.runs.layout import write_json

WEIGHTS = "model.safetensors"


def write(subject: Subject, folder: Path) -> None:
    """Writes the folder that `AutoModelForCausalLM` and `AutoTokenizer` load. Raises ExportError if a weight overflows."""
    conditions, tokenizer = subject.conditions, subject.conditions.tokenizer
    _write_weights(subject, folder / WEIGHTS)
    config = model_config(subject.run.config.model, tokenizer, conditions.context_length, subject.dtype_name)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", _special_ids(tokenizer))
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer, conditions.add_bos))
    write_json(
        folder / "tokenizer_config.json", tokenizer_config(tokenizer, conditions.add_bos, conditions.context_length)
    )
    write_json(folder / "special_tokens_map.json", _special_tokens(tokenizer))


def model_config(config: ModelConfig, tokenizer: Tokenizer, context_length: int, dtype: str) -> dict[str, Any]:
    """config.json: a Llama or, with QK-norm, a Qwen3, which is the same model with that norm.

    The rotary settings and the dtype appear twice, under their names in transformers 4 and in 5.
    """
    scaling = _rope_scaling(config.rope_scaling)
    architecture = "Qwen3" if config.qk_norm else "Llama"
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "vocab_size": config.vocab_rows,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({"use_sliding_window": False} if config.qk_norm else {"mlp_bias": False}),
        "rms_norm_eps": config.rms_norm_eps,
        "initializer_range": config.initializer_range,
        "max_position_embeddings": context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        **_special_ids(tokenizer),
    }


def tokenizer_json(tokenizer: Tokenizer, add_bos: bool) -> dict[str, Any]:
    """tokenizer.json with a post-processor that adds only a BOS before a text, and only if training did."""
    spec: dict[str, Any] = json.loads(tokenizer.raw.to_str())
    bos = tokenizer.bos_token
    spec |= {"truncation": None, "padding": None, "post_processor": None}
    if add_bos:
        first = [
            [{"SpecialToken": {"id": bos, "type_id": n}}, {"Sequence": {"id": "AB"[n], "type_id": n}}] for n in (0, 1)
        ]
        spec["post_processor"] = {
            "type": "TemplateProcessing",
            "single": first[0],
            "pair": first[0] + first[1],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        }
    return spec


def tokenizer_config(tokenizer: Tokenizer, add_bos: bool, context_length: int) -> dict[str, Any]:
    """tokenizer_config.json. With any class but PreTrainedTokenizerFast, transformers 5 would rewrite the tokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_special_tokens(tokenizer),
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _write_weights(subject: Subject, path: Path) -> None:
    tensors: dict[str, Tensor] = dict(subject.run.model.named_parameters())
    for name in tensors:
        tensors[name] = tensors[name].detach().to("cpu", subject.dtype).contiguous()
        if not tensors[name].isfinite().all():
            raise ExportError(
                f"{name} has values that {subject.dtype_name} cannot represent, or that are already infinite or NaN; write "
                "--dtype bfloat16 or float32, or choose an earlier checkpoint with --step"
            )
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.rope_type == "linear":
        return scaling.model_dump(include={"rope_type", "factor"})
    return scaling.model_dump()


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    # null if there is none: without the key, transformers would use Llama's defaults, 1 and 2.
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "unk_token": tokenizer.unk_token}
    return {name: token for name, token in tokens.items() if token is not None}
