"""Decides how a Hugging Face folder, from anywhere, becomes a model of ours: a Llama, or a Qwen3 without sliding window."""

import contextlib
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ModelError, TokenizerError
from packtrain.pretrained.conditions import Conditions
from packtrain.pretrained.files import ModelFiles, check_shapes, refuse
from packtrain.pretrained.pieces import build_sentencepiece
from packtrain.pretrained.sentencepiece_model import read_sentencepiece
from packtrain.storage.json_file import MOST_BYTES, describe_os_error, parse_json
from packtrain.storage.regular import read_regular

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_LLAMA_TOKENIZERS = ("LlamaTokenizer", "LlamaTokenizerFast")
_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_ARCHITECTURES = {"LlamaForCausalLM": False, "Qwen3ForCausalLM": True}
"""Whether each has a norm on queries and keys."""
_MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
_NEEDED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings"),
)
_OPTIONAL = ("num_key_value_heads", "head_dim", "tie_word_embeddings", "rms_norm_eps", "initializer_range")
# What transformers takes for a key that is not there.
_ASSUMED: dict[bool, dict[str, Any]] = {
    False: {"tie_word_embeddings": False, "rms_norm_eps": 1e-6},
    True: {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "num_key_value_heads": 32, "head_dim": 128},
}
_ABSENT = ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config", "auto_map")
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_FLOATS = ("F64", "F32", "F16", "BF16")


class _Stored(NamedTuple):
    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_folder(folder: Path) -> ModelFiles:
    """The model in a folder with a config.json, safetensors (one file, or several with an index) and a tokenizer.json.

    Weights of any float type are read. Raises ModelError if it is not such a model or a file of it is missing or damaged.
    """
    config = read_config(folder)
    stored = _list_weights(folder)
    for name, found in stored.items():
        if found.dtype not in _FLOATS:
            raise refuse(folder, f"{name} is stored as {found.dtype}, and quantised weights cannot be read")
    read = partial(_read_tensor, folder, stored)
    if config.tie_word_embeddings and {_OUTPUT, _EMBEDDING} <= stored.keys():
        _check_tie(folder, stored, read)
    check_shapes(folder, config, {name: found.shape for name, found in stored.items()}, CONFIG)
    files = (folder / CONFIG, *sorted({found.file for found in stored.values()}))
    length = config.max_position_embeddings
    assert length is not None, "read_config requires it"
    return ModelFiles(folder, "Hugging Face folder", config, files, read, lambda: _read_conditions(folder, length))


def read_config(folder: Path) -> ModelConfig:
    """The shape that config.json describes. Raises ModelError for a model that is not a Llama as packtrain has it."""
    found = _read_object(folder, CONFIG)
    names = found.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else None
    if architecture not in _ARCHITECTURES:
        raise refuse(folder, f"its architecture is {str(architecture)[:60]}, not {' or '.join(_ARCHITECTURES)}")
    if found.get("model_type") not in (None, _MODEL_TYPES[architecture]):
        raise refuse(
            folder, f"its architecture is {architecture}, but its model_type is {str(found['model_type'])[:60]}"
        )
    is_qwen3 = _ARCHITECTURES[architecture]
    _refuse_features(folder, found, is_qwen3)
    missing = next((name for name in _NEEDED if found.get(name) is None), None)
    if missing is not None:
        raise refuse(folder, f"{CONFIG} has no {missing}")
    given = _ASSUMED[is_qwen3] | {name: found[name] for name in (*_NEEDED, *_OPTIONAL) if found.get(name) is not None}
    given |= {"qk_norm": is_qwen3, **_read_rope(folder, found)}
    try:
        return ModelConfig.model_validate(given)
    except ValidationError as failure:
        error = failure.errors()[0]
        raise refuse(folder, f"{'.'.join(map(str, error['loc']))} of {CONFIG}: {error['msg']}") from None


def _refuse_features(folder: Path, found: dict[str, Any], is_qwen3: bool) -> None:
    """Raises ModelError for a setting that changes the equation to one that our Llama does not have."""
    name = next((name for name in _ABSENT if found.get(name)), None)
    if name is None and not is_qwen3 and found.get("sliding_window"):
        name = "sliding_window"
    if name is None and found.get("hidden_act", "silu") not in ("silu", "swish"):
        name = "hidden_act"
    if name is None and any(kind != "full_attention" for kind in found.get("layer_types") or ()):
        name = "layer_types"
    if name is None and found.get("partial_rotary_factor") not in (None, 1, 1.0):
        name = "partial_rotary_factor"
    if name is not None:
        raise refuse(folder, f"its {name} is not that of a plain Llama")


def _read_rope(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Our rotary settings. transformers 4 writes rope_theta and rope_scaling, 5 writes both into rope_parameters."""
    old, new = found.get("rope_scaling") or {}, found.get("rope_parameters") or {}
    if not (isinstance(old, dict) and isinstance(new, dict)):
        raise refuse(folder, "its rope_scaling or rope_parameters is not a table")
    rope = new or old
    thetas = [each for each in (new.get("rope_theta"), found.get("rope_theta")) if each is not None]
    if len(set(map(str, map(_number, thetas)))) > 1:
        raise refuse(folder, f"{CONFIG} gives rope_theta as {thetas[0]} and as {thetas[1]}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise refuse(folder, "its partial_rotary_factor is not that of a plain Llama")
    settings: dict[str, Any] = {"rope_theta": thetas[0] if thetas else 10000.0}
    if kind == "default" or (kind == "linear" and rope.get("factor") == 1):
        return settings
    if kind not in ("linear", "llama3"):
        raise refuse(folder, f"its rotary embedding is stretched by {str(kind)[:40]}; packtrain has linear and llama3")
    needed = _SCALING if kind == "llama3" else ("factor",)
    values = {"original_max_position_embeddings": found.get("original_max_position_embeddings")} | rope
    missing = next((name for name in needed if values.get(name) is None), None)
    if missing is not None:
        raise refuse(folder, f"the rotary settings of {CONFIG} have no {missing}, which {kind} needs")
    return settings | {"rope_scaling": {"rope_type": kind} | {name: values[name] for name in needed}}


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) else value


def _list_weights(folder: Path) -> dict[str, _Stored]:
    """Each tensor of the folder's safetensors files: one file, or those that an index names."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        listed = _read_object(folder, INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise refuse(folder, f"{INDEX} has no weight_map")
        # By name alone: an index may come from elsewhere, and lead to any file.
        names = sorted({Path(str(name)).name for name in listed.values()})
    elif not (folder / WEIGHTS).is_file():
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        if pickled is not None:
            raise refuse(
                folder,
                f"its weights are in {pickled}, a pickle, which can run any code; convert them to {WEIGHTS} first",
            )
        raise refuse(folder, f"it has no {WEIGHTS}")
    stored: dict[str, _Stored] = {}
    for name in names:
        with _open_weights(folder, folder / name) as file:
            for key in file.keys():  # noqa: SIM118  not a mapping
                if key in stored:
                    raise refuse(folder, f"{key} is in {stored[key].file.name} and in {name}")
                part = file.get_slice(key)
                stored[key] = _Stored(folder / name, tuple(part.get_shape()), part.get_dtype())
    return stored


def _read_tensor(folder: Path, stored: dict[str, _Stored], name: str) -> Tensor:
    with _open_weights(folder, stored[name].file) as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


@contextlib.contextmanager
def _open_weights(folder: Path, path: Path) -> Iterator[Any]:
    # Opening a pipe would wait forever. Links are followed: the hub's cache is made of them.
    if not path.is_file():
        raise refuse(folder, f"{path.name} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except ModelError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise refuse(folder, f"{path.name} cannot be read ({reason})") from None


def _check_tie(folder: Path, stored: dict[str, _Stored], read: Callable[[str], Tensor]) -> None:
    """Leaves out an output projection that is the embedding once more. Raises ModelError if it is not."""
    if not torch.equal(read(_OUTPUT), read(_EMBEDDING)):
        raise refuse(folder, f"{_OUTPUT} differs from {_EMBEDDING}, but tie_word_embeddings says that they are one")
    del stored[_OUTPUT]


def _read_object(folder: Path, name: str) -> dict[str, Any]:
    try:
        if (folder / name).stat().st_size > MOST_BYTES:
            raise refuse(folder, f"{name} is larger than {MOST_BYTES >> 20} MB")
        found = parse_json(read_regular(folder / name), allow_nan=True)
    except OSError as error:
        raise refuse(folder, f"{name}: {describe_os_error(error)}") from None
    except ValueError as error:
        raise refuse(folder, f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise refuse(folder, f"{name} is not an object")
    return found


def _read_conditions(folder: Path, context_length: int) -> Conditions:
    model = folder / "tokenizer.model"
    is_old = not (folder / "tokenizer.json").is_file() and model.is_file()
    tokenizer = _read_sentencepiece(model) if is_old else load_tokenizer(folder)
    return Conditions(tokenizer, _adds_bos(folder, tokenizer, is_old), context_length)


def _read_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a folder without tokenizer.json, as those of Llama 1 and 2 were."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        pieces, options = read_sentencepiece(path)
    except (struct.error, LookupError, ValueError, OSError) as error:
        raise TokenizerError(
            f"{path} cannot be read ({str(error)[:100]}); put the model's tokenizer.json there"
        ) from None
    return build_sentencepiece(path, pieces, **options)


def _adds_bos(folder: Path, tokenizer: Tokenizer, is_old: bool) -> bool:
    """Whether the tokenizer's files put BOS before a text."""
    config = _read_object(folder, _TOKENIZER_CONFIG) if (folder / _TOKENIZER_CONFIG).is_file() else {}
    said = config.get("add_bos_token")
    if is_old or (config.get("tokenizer_class") in _LLAMA_TOKENIZERS and isinstance(said, bool)):
        # These classes make their own post-processor.
        return tokenizer.bos_id is not None and said is not False
    ids = tokenizer.raw.encode("a", add_special_tokens=True).ids
    return tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id]
