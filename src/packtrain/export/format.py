"""Decides what a format has to provide, and what it is given to write and check an export."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packtrain.config.model import ModelConfig
from packtrain.errors import ExportError
from packtrain.model.llama import Llama
from packtrain.pretrained.conditions import Conditions
from packtrain.pretrained.open import OpenModel
from packtrain.runs.checkpoint import OpenRun

_SPELLINGS = {
    "f32": "float32",
    "fp32": "float32",
    "f16": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "q80": "q8_0",
    "i8": "int8",
}


@dataclass(frozen=True)
class Choices:
    """How a format writes the weights: what --dtype, --shard-size, --version and --group-size said, if it knows them."""

    dtype: str = "float32"
    shard_bytes: int = 5_000_000_000
    """hf: the most bytes of weights in a file."""
    version: int = 0
    """llama2c: of the file."""
    group_size: int = 64
    """llama2c, int8: weights that share a scale."""


@dataclass(frozen=True)
class Subject:
    """What is exported: a model, which is never changed, how it reads text, and how its weights are written."""

    opened: OpenModel
    choices: Choices = Choices()

    @property
    def model(self) -> Llama:
        return self.opened.model

    @property
    def config(self) -> ModelConfig:
        return self.opened.model.config

    @property
    def conditions(self) -> Conditions:
        return self.opened.conditions

    @property
    def run(self) -> OpenRun | None:
        """None for a model that no run of packtrain made."""
        return self.opened.run

    @property
    def num_parameters(self) -> int:
        """A tied output projection counts once."""
        return sum(p.numel() for p in self.model.parameters())


@dataclass(frozen=True)
class Checks:
    """What was measured on the written files. Both losses are in nats per token and on the same tokens."""

    reader: str
    """The program that read the files."""
    max_logit_difference: float
    """Between logits, or between log-probabilities if the reader gives only these."""
    tolerance: float
    num_tokens: int
    """Positions that were compared."""
    text: str
    """Source of the tokens: "validation split" or "built-in prompts"."""
    loss: float
    """Of the model in memory, with its float32 weights."""
    loss_exported: float
    """Of the reloaded files; differs from `loss` by the rounding to their type."""
    num_strings: int
    """Number of strings whose token ids and decoded text were compared."""
    num_greedy: int | None = None
    """Number of prompts whose greedy continuation was the same; None if none was tried."""
    remarks: tuple[str, ...] = ()
    """What the reader does otherwise than packtrain, each a sentence."""


@dataclass(frozen=True)
class Format:
    """How a subject is written as files, and how they are read back and compared."""

    dtypes: Mapping[str, float]
    """The types of weights that it has, and the bytes of a weight in each."""
    examine: Callable[[Subject], None]
    """Raises ExportError, before anything is written, if the format cannot hold the model or its reader is not installed."""
    write: Callable[[Subject, Path], None]
    check: Callable[[Subject, Path, Path | None], Checks]
    """Reads the folder, and compares on text of a dataset if there is one. Raises ExportError if the model is another."""
    describe: Callable[[Subject, Checks, Path], None]
    """Writes, last, what people read: it may say what was measured."""


def check_choice(option: str, given: str, known: Iterable[str], of: str) -> None:
    """Raises ExportError unless the value `given` for --`option` is a known one."""
    if given in known:
        return
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ExportError(
        f"'{given}' is not an export {option} of a {of}; {hint}write --{option} with one of {', '.join(known)}"
    )


def name_dtype(given: str) -> str:
    """Our name for a type of weights: also the field's short names, such as f16 or Q8_0, are understood."""
    return _SPELLINGS.get(given.lower(), given.lower() if given.lower() in ("q8_0", "int8") else given)
