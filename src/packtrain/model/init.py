"""Decides the initial weights."""

import hashlib
import math

import torch
from torch import nn

from packtrain.config.model import ModelConfig
from packtrain.model.llama import Llama

_SCALED = {"gpt2": ("o_proj.weight", "down_proj.weight"), "llama2c": ("o_proj.weight", "up_proj.weight")}


def build(config: ModelConfig, *, seed: int, device: torch.device | str = "cpu") -> Llama:
    """A Llama in float32 on `device`, with initial weights that depend on `seed` and each parameter's name only.

    Normal with std `initializer_range`; those that `config.init` names are scaled by 1/sqrt(2·layers), so that the
    residual stream does not grow with depth (GPT-2, section 2.3). Norms are ones. On the meta device: shapes only.
    """
    with torch.device("meta"):
        model = Llama(config)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        initialise(name, parameter, config, seed)
    return model


@torch.no_grad()
def initialise(name: str, parameter: nn.Parameter, config: ModelConfig, seed: int) -> None:
    """Fill one parameter. Drawn on the CPU, so that every device starts from the same numbers."""
    if "norm" in name:
        parameter.fill_(1.0)
        return
    values = torch.empty(parameter.shape, dtype=torch.float32)
    values.normal_(std=std_of(name, config), generator=_generator(seed, name))
    parameter.copy_(values)


def std_of(name: str, config: ModelConfig) -> float:
    """Standard deviation of the initial values of the matrix or embedding called `name`."""
    if name.endswith(_SCALED[config.init]):
        return config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
    return config.initializer_range


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
