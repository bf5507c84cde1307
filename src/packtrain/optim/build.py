"""Decides which optimizer steps the weights, which of them decay, and how its state is named in a checkpoint."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from packtrain.config.optim import OptimConfig
from packtrain.errors import DeviceError
from packtrain.optim.base import WHOLE, ShardedOptimizer, Sharding
from packtrain.optim.schedule import momentum, weight_decay


def build_optimizer(
    config: OptimConfig,
    parameters: Mapping[str, Parameter],
    roles: Mapping[str, str],
    dtype: torch.dtype | None = None,
    sharding: Sharding = WHOLE,
) -> ShardedOptimizer:
    """The optimizer of the named `parameters`, in groups of one learning rate and weight decay; matrices that are orthogonalised apart.

    Each group has the names of its parameters under `names`; a checkpoint uses them. `dtype` is the type of the run's
    matrix products (None: float32); Muon uses it for its own if its range is wide enough. `sharding` is needed if
    parameters are sharded. All but `adamw` free a gradient (set it to None) as soon as its parameter is updated; `adamw`
    keeps them, because its one fused update of all parameters needs no memory beside them. Raises DeviceError if the
    optimizer's library is not installed or cannot work on the device, ConfigError if a division over processes cuts its states.
    """
    orthogonalises = config.kind.orthogonalises
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        is_orthogonal = orthogonalises and roles[name] == "matrix"
        # Biases are treated as gains are.
        role = "norm" if roles[name] == "bias" else roles[name]
        decay, rate = getattr(config.decay_scale, role), getattr(config.lr_scale, role)
        group = groups.setdefault((is_orthogonal, decay, rate), {"params": [], "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
        group |= {"weight_decay": config.weight_decay * decay, "decay_scale": decay, "lr_scale": rate}
        if orthogonalises:
            group["is_orthogonal"] = is_orthogonal
    # Small tensors, which do not decay, go first and Muon's matrices last: by then the embedding's gradient is free, and its
    # memory serves the matrices' temporaries. Sharded gradients of a block share one buffer, which is freed with the last.
    ordered = [groups[key] for key in sorted(groups)]
    try:
        module = importlib.import_module(f"packtrain.optim.{config.name}")
    except ImportError:
        if config.kind.library is None:
            raise
        raise DeviceError(
            f"optim.name={config.name} needs {config.kind.library}, which is not installed; run "
            f"`pip install 'packtrain[{config.kind.extra}]'` or write optim.name=adamw"
        ) from None
    return module.build(config, ordered, dtype or torch.float32, sharding)


def set_pace(optimizer: Optimizer, config: OptimConfig, step: int, num_steps: int, *, lr: float) -> None:
    """Sets what of the optimizer changes from step to step, for update `step`, counted from 1 to `num_steps`."""
    set_learning_rate(optimizer, lr)
    decay = weight_decay(config, step, num_steps, lr)
    for group in optimizer.param_groups:
        group["weight_decay"] = decay * group["decay_scale"]
        if "momentum" in group:
            group["momentum"] = momentum(config, step)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of each group to its multiple of `lr`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's: a compiled update sees it change
            group["lr"].fill_(lr * group["lr_scale"])
        else:
            group["lr"] = lr * group["lr_scale"]


def export_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state: tensors named `parameter/entry`, and entries that are plain numbers, named likewise."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in _named(optimizer.param_groups):
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # Cloned, because bitsandbytes shares one table of quantiles among all parameters.
                tensors[f"{name}/{entry}"] = value.detach().clone() if value.numel() <= 256 else value.detach()
            else:
                numbers[f"{name}/{entry}"] = value
    return tensors, numbers


def import_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Restores what `export_state` gave, bit for bit. Settings such as weight decay stay those of `optimizer`.

    Tensors keep their types: `Optimizer.load_state_dict` would cast low-bit states to the parameter's type.
    """
    parameters = dict(_named(optimizer.param_groups))
    optimizer.state.clear()
    for key, value in (*tensors.items(), *numbers.items()):
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][entry] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _named(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Parameter]]:
    for group in groups:
        yield from zip(group["names"], group["params"], strict=True)
