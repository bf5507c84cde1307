"""Decides which matrix products are taken in fp8, and where that can be: those of the blocks' linear layers, by torchao."""

from importlib.util import find_spec

import torch
from torch import nn

from packtrain.config.libraries import quieten_torchao
from packtrain.errors import ConfigError
from packtrain.model.llama import Llama

# Least compute capability with fp8 units: Ada and Hopper; of AMD's, MI300.
_LEAST_CAPABILITY = (8, 9)
_LEAST_CAPABILITY_ROCM = (9, 4)
# Both sides of a matrix that the units multiply divide by it.
_BLOCK = 16


def what_is_missing(device: torch.device) -> str | None:
    """Why products on `device` cannot be taken in fp8, as the end of a sentence; None where they can."""
    if device.type != "cuda":
        return (
            "that takes an NVIDIA GPU of compute capability 8.9 or more (Ada, Hopper or newer), and this device is none"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < (_LEAST_CAPABILITY_ROCM if torch.version.hip else _LEAST_CAPABILITY):
        return (
            "that takes compute capability 8.9 or more (Ada, Hopper or newer; of AMD, MI300), and "
            f"{torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
        )
    if find_spec("torchao") is None:
        return "that takes torchao, which is not installed: `pip install 'packtrain[torchao]'`"
    return None


def use_fp8(model: Llama, *, emulate: bool = False) -> int:
    """Makes the blocks' linear layers take their three products in fp8, in place; gives how many of them do not.

    Each matrix is scaled by its largest element, anew each time (torchao's `tensorwise` recipe, its fastest): e4m3 for
    activations and weights, e5m2 for their gradients. Weights, their names and their float32 numbers stay what they are; so
    do attention, norms, embedding and output, and a layer with a side that does not divide by 16.

    With `emulate` the numbers are rounded to fp8 and multiplied in float32: slow, and on any device. Raises ConfigError where
    no layer has the sides for it.
    """
    quieten_torchao()
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig(emulate=emulate)
    linears = [module for block in model.model.layers for module in block.modules() if isinstance(module, nn.Linear)]
    num_left = sum(not _divides(linear) for linear in linears)
    if num_left == len(linears):
        raise ConfigError(
            f"train.precision=fp8 takes matrices whose sides divide by {_BLOCK}, and none of a block does with "
            f"model.hidden_size={model.config.hidden_size}; give a size that does, or write train.precision=bf16"
        )
    for block in model.model.layers:
        convert_to_float8_training(block, module_filter_fn=lambda module, _name: _divides(module), config=config)
    return num_left


def without_fp8(model: Llama) -> Llama:
    """A model of the same weights, in the same memory, whose products are taken as autocast says; itself if it is one."""
    if all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear)):
        return model
    with torch.device("meta"):
        plain = Llama(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain.train(model.training)


def _divides(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % _BLOCK == 0 and module.out_features % _BLOCK == 0
