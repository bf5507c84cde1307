"""Decides which library takes the matrix products of a CPU."""

import re
from typing import NamedTuple, Self

from pydantic import field_validator

from packtrain.config.base import Section

AUTO, TORCH, ONEDNN = "auto", "torch", "onednn"
KINDS = ("outputs", "input_gradients", "weight_gradients")
"""The products of a linear layer, as `CpuConfig` names them."""
_SHAPE = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})", re.ASCII)
_FORMS = "write auto, torch, onednn, or onednn with the shapes that it takes, such as 'onednn 768x2048 2048x768'"


class CpuConfig(Section):
    """Which library multiplies matrices on a CPU: `torch`, which is MKL on x86 in float32, or `onednn`. With shapes, such as
    `onednn 768x2048 2048x768` (a layer's inputs x outputs), oneDNN takes those layers only. `auto`: a new run measures both
    on its machine, in about a second, and notes the outcome here, in its config.toml. A resumed run keeps it, so that its
    numbers have the same bits; on another kind of CPU they may differ in the last digits all the same. A library that is
    missing is replaced by torch, with a warning."""

    outputs: str = AUTO
    """The products that give the outputs of linear layers, the logits too."""
    input_gradients: str = AUTO
    """Those that give the gradients of their inputs."""
    weight_gradients: str = AUTO
    """Those that give the gradients of their weights."""

    @field_validator("*")
    @classmethod
    def _is_understood(cls, value: str) -> str:
        if value != AUTO:
            OnednnLayers.parse(value)
        return value

    @property
    def is_open(self) -> bool:
        """Whether any choice is left to a measurement."""
        return AUTO in dict(self).values()


class OnednnLayers(NamedTuple):
    """The layers whose products oneDNN takes: all, or those of some shapes (inputs, outputs)."""

    takes_all: bool
    shapes: frozenset[tuple[int, int]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """What a setting of `CpuConfig` other than `auto` says. Raises ValueError if that is nothing."""
        library, *words = text.split()[:1000] or [""]
        found = [_SHAPE.fullmatch(word) for word in words]
        if library not in (TORCH, ONEDNN) or not all(found) or (library == TORCH and words):
            raise ValueError(f"'{text[:100]}' is not a library; {_FORMS}")
        shapes = frozenset((int(match[1]), int(match[2])) for match in found if match)
        return cls(library == ONEDNN and not words, shapes)

    def takes(self, inputs: int, outputs: int) -> bool:
        """Whether oneDNN takes a layer's product."""
        return self.takes_all or (inputs, outputs) in self.shapes


def describe_layers(taken: set[tuple[int, int]], of: set[tuple[int, int]]) -> str:
    """The setting by which oneDNN takes the shapes `taken` out of `of`."""
    if not taken:
        return TORCH
    return ONEDNN if taken == of else " ".join([ONEDNN, *(f"{i}x{o}" for i, o in sorted(taken))])


ALL_TORCH = CpuConfig(outputs=TORCH, input_gradients=TORCH, weight_gradients=TORCH)
