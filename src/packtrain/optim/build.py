"""Decides which optimizer steps the weights, which of them decay, and how its state is named in a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from packtrain.config.optim import OptimConfig
from packtrain.errors import DeviceError

# Roles of `model.roles` that decay: AdamW shrinks what multiplies activations, not gains and offsets.
DECAYED = frozenset({"embedding", "output", "matrix"})


def build_optimizer(config: OptimConfig, parameters: Mapping[str, Parameter], roles: Mapping[str, str]) -> Optimizer:
    """The optimizer over the named `parameters`, in two groups by role: decayed and not.

    Each group carries the names of its parameters under `names`, which is what a checkpoint knows them by.
    Raises DeviceError where the optimizer's library is not installed or cannot work on the device.
    """
    decayed = {name: p for name, p in parameters.items() if roles[name] in DECAYED}
    others = {name: p for name, p in parameters.items() if name not in decayed}
    groups = [
        {"params": list(group.values()), "names": list(group), "weight_decay": decay}
        for group, decay in ((decayed, config.weight_decay), (others, 0.0))
        if group
    ]
    return _OPTIMIZERS[config.name](config, groups)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def export_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors named `parameter/entry`, and the entries that are plain numbers under such names."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in _named(optimizer):
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # A clone, because bitsandbytes shares one table of quantiles between all parameters.
                tensors[f"{name}/{entry}"] = value.detach().clone() if value.numel() <= 256 else value.detach()
            else:
                numbers[f"{name}/{entry}"] = value
    return tensors, numbers


def import_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Puts back what `export_state` gave, bit for bit. Settings such as weight decay stay those of `optimizer`.

    Tensors are placed as they are: `Optimizer.load_state_dict` would cast low-bit states to the parameter's type.
    """
    parameters = dict(_named(optimizer))
    for key, value in (*tensors.items(), *numbers.items()):
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][entry] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _named(optimizer: Optimizer) -> Iterable[tuple[str, Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def _adamw(config: OptimConfig, groups: list[dict[str, Any]]) -> Optimizer:
    # fused: one pass over memory; on the CPU it is several times faster than the default.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _adamw8bit(config: OptimConfig, groups: list[dict[str, Any]]) -> Optimizer:
    try:
        from packtrain.optim.adamw8bit import SlicedAdamW8bit
    except ImportError:
        raise DeviceError(
            "optim.name=adamw8bit needs bitsandbytes, which is not installed; "
            "run `pip install 'packtrain[lowbit]'` or write optim.name=adamw"
        ) from None
    return SlicedAdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)


_OPTIMIZERS: dict[str, Callable[[OptimConfig, list[dict[str, Any]]], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}
