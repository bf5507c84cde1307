"""Decides what a task asks for that is to be continued. The engine for that is on this room's floor, so a higher room brings it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """Text to continue, as tokens, and how."""

    ids: list[int]
    max_tokens: int
    stop: tuple[str, ...]
    sampling: dict[str, Any]
    """Of temperature, top_k, top_p and repetition_penalty what the task sets; temperature 0 unless it samples."""


Continue = Callable[[Sequence[Prompt]], list[list[int]]]
"""Gives the new tokens of each prompt."""
