"""Decides the initial weights."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.model.llama import Llama

_OUT = ("o_proj.weight", "down_proj.weight")
# Which weights `config.init` scales.
_SCALED = {"gpt2": _OUT, "llama2c": ("o_proj.weight", "up_proj.weight"), "depth": _OUT, "zero_out": _OUT}


ReadWeight = Callable[[str], Tensor]
"""Gives a weight by its parameter's name, in float32 on the CPU."""


def build(
    config: ModelConfig, *, seed: int, device: torch.device | str = "cpu", read: ReadWeight | None = None
) -> Llama:
    """A Llama in float32 on `device`. Its initial weights depend only on `seed` and on each parameter's name.

    They are normal with std `initializer_range`, the embedding's with `embedding_range` if given. `config.init` names those
    scaled by 1/sqrt(2·layers), which keeps the residual stream from growing with depth (GPT-2, section 2.3), by 1/sqrt(2·n) in
    block n (torchtitan's `depth_init`), or by zero. Norms are ones. On the meta device there are only shapes.
    `read` gives the weights instead, if there are others.
    """
    with torch.device("meta"):
        model = Llama(config)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = initial_values(name, parameter.shape, config, seed) if read is None else read(name)
            parameter.copy_(values)
    return model


def initial_values(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """A parameter's initial values, float32. Drawn on the CPU, so that every device starts from the same numbers."""
    if "norm" in name:
        return torch.ones(shape)
    std = config.initializer_range
    if name.endswith("embed_tokens.weight") and config.embedding_range is not None:
        std = config.embedding_range
    if name.endswith(_SCALED[config.init]):
        if config.init == "zero_out":
            return torch.zeros(shape)
        std /= math.sqrt(2 * (_number_of_block(name) if config.init == "depth" else config.num_hidden_layers))
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.empty(shape, dtype=torch.float32).normal_(std=std, generator=generator)


def _number_of_block(name: str) -> int:
    """The number of the block that a parameter belongs to, from 1."""
    return int(name.partition("layers.")[2].partition(".")[0]) + 1
