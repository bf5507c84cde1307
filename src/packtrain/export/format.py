"""Decides what a format has to provide, and what it is given to write and check an export."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from packtrain.errors import ExportError
from packtrain.pretrained.conditions import Conditions
from packtrain.runs.checkpoint import OpenRun


@dataclass(frozen=True)
class Subject:
    """What is exported: a run's model, which is never changed, its conditions in training, and the type of the weights."""

    run: OpenRun
    conditions: Conditions
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def num_parameters(self) -> int:
        """A tied output projection counts once."""
        return sum(p.numel() for p in self.run.model.parameters())


@dataclass(frozen=True)
class Checks:
    """What was measured on the written files. Both losses are in nats per token and on the same tokens."""

    max_logit_difference: float
    tolerance: float
    num_tokens: int
    text: str
    """Source of the tokens: "validation split" or "built-in prompts"."""
    loss: float
    """Of the model in memory, with its float32 weights."""
    loss_exported: float
    """Of the reloaded files; differs from `loss` by the rounding to their type."""
    num_strings: int
    """Number of strings whose token ids and decoded text were compared."""


@dataclass(frozen=True)
class Format:
    """How a subject is written as files, and how they are read back and compared. `check` raises ExportError."""

    write: Callable[[Subject, Path], None]
    check: Callable[[Subject, Path, Path | None], Checks]
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
