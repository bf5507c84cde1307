"""Decides what a format has to provide, and what is known of an export when it is written and checked."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from packtrain.generate.conditions import Conditions
from packtrain.runs.checkpoint import OpenRun


@dataclass(frozen=True)
class Subject:
    """What is exported: a run's model, never changed, under the conditions it was trained in, with weights as `dtype`."""

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
    """What was measured on the written files. Losses are in nats per token, on the same tokens."""

    max_logit_difference: float
    tolerance: float
    num_tokens: int
    text: str
    """Where the tokens came from: "validation split" or "built-in prompts"."""
    loss: float
    """Of the model in memory, float32."""
    loss_exported: float
    """Of the files as reloaded; differs from `loss` by what their dtype rounds away."""
    num_strings: int
    """Strings whose token ids and decoded text were compared."""


@dataclass(frozen=True)
class Format:
    """How a subject becomes files, and how these are read back and compared. `check` raises ExportError."""

    write: Callable[[Subject, Path], None]
    check: Callable[[Subject, Path, Path | None], Checks]
    describe: Callable[[Subject, Checks, Path], None]
    """Writes what people read, last, with what was measured."""
