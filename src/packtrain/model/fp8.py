"""Decides which matrix products run in fp8, and on which devices: those of the blocks' linear layers, by torchao."""

from importlib.util import find_spec

import torch
from torch import nn

from packtrain.config.libraries import quieten_torchao
from packtrain.errors import ConfigError
from packtrain.model.llama import Llama

# The units multiply matrices whose sides are multiples of this.
_BLOCK = 16


def what_is_missing(device: torch.device) -> str | None:
    """Why `device` cannot multiply in fp8, as the end of a sentence; None if it can."""
    if device.type != "cuda":
        return "it needs an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper or newer), and this device is not one"
    capability = torch.cuda.get_device_capability(device)
    # The first with fp8 units: AMD's MI300, and Ada.
    if capability < ((9, 4) if torch.version.hip else (8, 9)):
        return (
            "it needs compute capability 8.9 or more (Ada, Hopper or newer; AMD's MI300), and "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        )
    if find_spec("torchao") is None:
        return "it needs torchao, which is not installed: `pip install 'packtrain[torchao]'`"
    return None


def use_fp8(model: Llama, *, emulate: bool = False) -> int:
    """Make the blocks' linear layers take their three products in fp8, in place. Returns how many layers cannot.

    Each matrix is scaled by its largest element, again in every step (torchao's `tensorwise` recipe, its fastest): e4m3 for
    activations and weights, e5m2 for their gradients. Nothing else changes: weights, their names and their type, attention,
    norms, embedding, output, and layers with a side that is not a multiple of 16.

    `emulate` rounds the numbers to fp8 and multiplies in float32: slow, and on any device. Raises ConfigError if no layer
    fits.
    """
    quieten_torchao()
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(emulate=emulate)
    linears = [module for block in model.model.layers for module in block.modules() if isinstance(module, nn.Linear)]
    num_left = sum(not _fits(linear) for linear in linears)
    if num_left == len(linears):
        raise ConfigError(
            f"train.precision=fp8 needs matrices whose sides are multiples of {_BLOCK}, and a block has none with "
            f"model.hidden_size={model.config.hidden_size}; write a multiple of {_BLOCK}, or train.precision=bf16"
        )
    for block in model.model.layers:
        convert_to_float8_training(block, module_filter_fn=lambda module, _name: _fits(module), config=config)
    return num_left


def without_fp8(model: Llama) -> Llama:
    """A model on the same weights, in the same memory, that multiplies in autocast's type; `model` itself if it has no fp8."""
    if all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear)):
        return model
    with torch.device("meta"):
        plain = Llama(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain.train(model.training)


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % _BLOCK == 0 and module.out_features % _BLOCK == 0
