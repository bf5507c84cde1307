"""Hugging Face's LlamaForCausalLM through `torch.compile`."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders import transformers


def build(shape: dict[str, Any], tokens: torch.Tensor) -> Callable[[], float]:
    """A function that takes a training step on the same batch each time and returns its loss."""
    return transformers.build(shape, tokens, compiled=True)
