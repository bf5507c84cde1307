"""Decides the files of a Hugging Face folder: weights, configuration and tokenizer for transformers 4 and 5."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards

from packtrain.config.model import ModelConfig, RopeScaling
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ExportError
from packtrain.export import card
from packtrain.export.format import Checks, Subject
from packtrain.pretrained.huggingface import INDEX
from packtrain.runs.layout import write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("The", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=50, do_sample=True, top_p=0.95)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```

{note}"""


def examine(_subject: Subject) -> None:
    """transformers is always installed, and holds every model of ours."""


def describe(subject: Subject, checks: Checks, folder: Path) -> None:
    """Writes the model card."""
    card.write(subject, checks, folder, _USE.format(note=card.tokenizer_note(subject)))


def write(subject: Subject, folder: Path) -> None:
    """Writes the folder that `AutoModelForCausalLM` and `AutoTokenizer` load. Raises ExportError if a weight overflows."""
    conditions, tokenizer = subject.conditions, subject.conditions.tokenizer
    _write_weights(subject, folder)
    config = model_config(subject.config, tokenizer, conditions.context_length, subject.choices.dtype)
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


def _write_weights(subject: Subject, folder: Path) -> None:
    """One file, or several and an index if they have more than `shard_bytes`. One file's tensors are converted at a time."""
    weights, dtype = dict(subject.model.named_parameters()), DTYPES[subject.choices.dtype]
    sizes = {name: torch.empty(weight.shape, dtype=dtype, device="meta") for name, weight in weights.items()}
    plan = split_torch_state_dict_into_shards(sizes, max_shard_size=subject.choices.shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        tensors = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in names}
        for name, tensor in tensors.items():
            refuse_overflow(name, tensor, subject.choices.dtype)
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json(folder / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def refuse_overflow(name: str, tensor: torch.Tensor, dtype: str) -> None:
    """Raises ExportError if a weight is not finite after it was rounded to `dtype`."""
    if not tensor.isfinite().all():
        raise ExportError(
            f"{name} has values that {dtype} cannot represent, or that are already infinite or NaN; write --dtype bfloat16 or "
            "float32, or choose an earlier checkpoint with --step"
        )


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
