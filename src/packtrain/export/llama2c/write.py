"""Decides what llama2.c's model file has in it (version 0, 1 or 2), and which models it cannot hold."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.errors import ExportError
from packtrain.export import card
from packtrain.export.format import Checks, Subject
from packtrain.export.huggingface import refuse_overflow, tokenizer_config, tokenizer_json
from packtrain.export.llama2c.numbering import Numbering, number_tokens
from packtrain.export.llama2c.vocabulary import write_vocabulary
from packtrain.pretrained.llama2c_layout import (
    EMBEDDING,
    FREQUENCIES,
    HEADER_BYTES,
    MAGIC,
    OUTPUT,
    interleaved_heads_of,
    weight_order,
)
from packtrain.pretrained.rotary_rows import interleave_rows
from packtrain.runs.layout import write_json

BYTES = {"float32": 4, "int8": 1 + 4 / 8}
MODEL, VOCABULARY = "model.bin", "tokenizer.bin"
PROGRAMS = {0: "run", 2: "runq"}
"""The program of llama2.c that reads a version; none of its programs reads version 1."""
_THETA, _EPS = 10000.0, 1e-5
_LEAST_GROUP = 8

_USE = """With [llama2.c](https://github.com/karpathy/llama2.c), in its folder after `make {program}`:

```
./{program} model.bin -z tokenizer.bin -n 200 -i "The"
```"""
_USE_1 = "This is version 1 of llama2.c's format, which its programs in C do not read; `packtrain generate` does."


def examine(subject: Subject) -> None:
    """Raises ExportError for a model or tokenizer that llama2.c's files cannot hold."""
    config = subject.config
    reasons = [
        (config.qk_norm, "norms on queries and keys (model.qk_norm)"),
        (config.rope_scaling is not None, "a stretched rotary embedding (model.rope_scaling)"),
        (
            not _is(config.rope_theta, _THETA),
            f"model.rope_theta={config.rope_theta:g}, and run.c computes with {_THETA:g}",
        ),
        (
            not _is(config.rms_norm_eps, _EPS),
            f"model.rms_norm_eps={config.rms_norm_eps:g}, and run.c computes with {_EPS:g}",
        ),
        (
            config.head_size * config.num_attention_heads != config.hidden_size,
            f"heads of width {config.head_size}, and run.c computes with hidden_size / num_attention_heads",
        ),
    ]
    for is_so, what in reasons:
        if is_so:
            raise ExportError(f"llama2.c's format has no place for {what}; write --format hf or gguf")
    number_tokens(subject.conditions.tokenizer, config.vocab_rows)
    if subject.choices.dtype == "int8":
        group_size(config, subject.choices.group_size)


def _is(given: float, needed: float) -> bool:
    """Whether a setting is what run.c has, which is a float32; so are those that come from a GGUF file."""
    return bool(np.float32(given) == np.float32(needed))


def group_size(config: ModelConfig, most: int) -> int:
    """How many weights share a scale: `most`, halved until rows of every matrix are whole groups."""
    size = most
    while config.hidden_size % size or config.intermediate_size % size:
        size //= 2
        if size < min(most, _LEAST_GROUP):
            raise ExportError(
                f"hidden_size={config.hidden_size} and intermediate_size={config.intermediate_size} are not multiples of "
                f"--group-size {most}, nor of its halves down to {_LEAST_GROUP}; write a --group-size that divides both, or "
                "--dtype float32"
            )
    return size


def write(subject: Subject, folder: Path) -> None:
    """Writes model.bin, tokenizer.bin, and the tokenizer in Hugging Face's form with the same ids."""
    conditions = subject.conditions
    numbering = number_tokens(conditions.tokenizer, subject.config.vocab_rows)
    with (folder / MODEL).open("wb") as file:
        _write_header(file, subject)
        for name in weight_order(subject.config, subject.choices.version):
            _write_weight(file, subject, name, numbering)
    write_vocabulary(conditions.tokenizer, numbering, folder / VOCABULARY)
    renumbered = numbering.apply_to(tokenizer_json(conditions.tokenizer, conditions.add_bos))
    write_json(folder / "tokenizer.json", renumbered)
    config = tokenizer_config(conditions.tokenizer, conditions.add_bos, conditions.context_length)
    write_json(folder / "tokenizer_config.json", config)


def describe(subject: Subject, checks: Checks, folder: Path) -> None:
    """Writes the model card."""
    program = PROGRAMS.get(subject.choices.version)
    card.write(subject, checks, folder, _USE_1 if program is None else _USE.format(program=program), library=None)


def quantize(weight: Tensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 of groups of `size` weights, and the float32 scale of each group: its largest weight is 127 steps."""
    groups = weight.reshape(-1, size).numpy()
    scales = (np.abs(groups).max(axis=1) / 127.0).astype(np.float32)
    steps = groups / np.where(scales == 0, np.float32(1), scales)[:, None]
    return np.clip(np.round(steps), -127, 127).astype(np.int8), scales


def read_back(weight: Tensor, size: int) -> Tensor:
    """A weight as it reads back from version 2, in float32; vectors are not quantized."""
    if weight.dim() == 1:
        return weight
    steps, scales = quantize(weight.contiguous(), size)
    return torch.from_numpy(steps * scales[:, None]).view(weight.shape)


def _write_header(file: BinaryIO, subject: Subject) -> None:
    config, choices = subject.config, subject.choices
    is_tied, rows = config.tie_word_embeddings, config.vocab_rows
    sizes = [
        *(config.hidden_size, config.intermediate_size, config.num_hidden_layers),
        *(config.num_attention_heads, config.kv_heads),
        # Version 0 says by the sign that the output projection is a matrix of its own.
        rows if choices.version or is_tied else -rows,
        subject.conditions.context_length,
    ]
    if choices.version == 0:
        file.write(struct.pack("<7i", *sizes))
        return
    header = struct.pack("<Ii7iB", MAGIC, choices.version, *sizes, is_tied)
    if choices.version == 2:
        header += struct.pack("<i", group_size(config, choices.group_size))
    file.write(header.ljust(HEADER_BYTES, b"\0"))


def _write_weight(file: BinaryIO, subject: Subject, name: str, numbering: Numbering) -> None:
    config, choices = subject.config, subject.choices
    if name == FREQUENCIES:
        for each in _frequencies(config, subject.conditions.context_length):
            file.write(each.tobytes())
        return
    weight = subject.model.get_parameter(name).detach().to("cpu", torch.float32)
    refuse_overflow(name, weight, choices.dtype)
    if name in (EMBEDDING, OUTPUT):
        weight = weight[numbering.old_ids]
    heads = interleaved_heads_of(name, config)
    weight = (weight if heads is None else interleave_rows(weight, heads)).contiguous()
    if choices.version < 2 or weight.dim() == 1:
        file.write(weight.numpy().astype("<f4", copy=False).data)
        return
    for part in quantize(weight, group_size(config, choices.group_size)):
        file.write(part.data)


def _frequencies(config: ModelConfig, positions: int) -> Iterator[np.ndarray]:
    half = config.head_size // 2
    angles = np.outer(np.arange(positions), 1.0 / _THETA ** (np.arange(half) / half))
    yield np.cos(angles).astype("<f4")
    yield np.sin(angles).astype("<f4")
