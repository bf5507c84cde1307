"""Decides which optimizer steps the weights, which of them decay, and how its state is named in a checkpoint."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from packtrain.config.optim import OptimConfig
from packtrain.errors import DeviceError
from packtrain.optim.blocks import check_division

# Roles of `model.roles` that decay: AdamW shrinks what multiplies activations, not gains and offsets.
DECAYED = frozenset({"embedding", "output", "matrix"})

# Entries of optimizer state that hold one number for each block of so many elements of their parameter. All others are
# of the parameter's shape, and cut over ranks as it is, or the same on all ranks.
STATE_BLOCKS = {
    "absmax1": 256,
    "absmax2": 256,
    "exp_avg.codes": 2,
    "exp_avg.scale": 128,
    "exp_avg_sq.codes": 2,
    "exp_avg_sq.scale": 128,
}


def build_optimizer(
    config: OptimConfig,
    parameters: Mapping[str, Parameter],
    roles: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> Optimizer:
    """The optimizer over the named `parameters`, in groups by role: decayed and not, and Muon's matrices by themselves.

    Each group carries the names of its parameters under `names`, which is what a checkpoint knows them by. `dtype` is
    that of the run's matrix products (None: float32), in which Muon takes its own where it has the range for them.
    All but `adamw` let go of a gradient (None) as soon as its parameter is updated; `adamw`, whose one fused update of all
    parameters needs no room beside them, leaves them. Raises DeviceError where the optimizer's library is not installed or
    cannot work on the device, ConfigError where a division over processes cuts its states.
    """
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        is_orthogonal = config.name == "muon" and roles[name] == "matrix"
        is_decayed = roles[name] in DECAYED
        group = groups.setdefault((is_orthogonal, is_decayed), {"params": [], "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
        group["weight_decay"] = config.weight_decay if is_decayed else 0.0
        if config.name == "muon":
            group["is_orthogonal"] = is_orthogonal
    # What does not decay, small tensors, goes first, and Muon's matrices last: their temporaries need not lie beside the
    # embedding's gradient, and sharded gradients, which are views of one buffer for each block, go when its last one does.
    return _OPTIMIZERS[config.name](config, [groups[key] for key in sorted(groups)], dtype or torch.float32)


def make_states(optimizer: Optimizer) -> None:
    """Makes the states of a new `torch.optim.AdamW` now, as its first step would, which does not find them wanting then.

    What lives as long as the run then lies together, below what comes and goes with each step: made in the first step, in the
    gaps between gradients, it leaves a CPU's heap in pieces. Does nothing for other optimizers.
    """
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for _, parameter in _named(optimizer.param_groups):
        moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        # A tensor on the device, as the fused update wants it.
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, so that a compiled update sees it change
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def export_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors named `parameter/entry`, and the entries that are plain numbers under such names."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in _named(optimizer.param_groups):
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
    parameters = dict(_named(optimizer.param_groups))
    optimizer.state.clear()
    for key, value in (*tensors.items(), *numbers.items()):
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][entry] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _named(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Parameter]]:
    for group in groups:
        yield from zip(group["names"], group["params"], strict=True)


def _adamw(config: OptimConfig, groups: list[dict[str, Any]], _: torch.dtype) -> Optimizer:
    # fused: one pass over memory; on the CPU it is several times faster than the default.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _adamw8bit(config: OptimConfig, groups: list[dict[str, Any]], _: torch.dtype) -> Optimizer:
    # It tells that a kernel for 4-bit weights is missing, which nothing here calls.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        from packtrain.optim.adamw8bit import BLOCK, SlicedAdamW8bit, is_packed
    except ImportError:
        raise DeviceError(_missing("adamw8bit", "bitsandbytes", "lowbit")) from None
    check_division("adamw8bit", {name: p for name, p in _named(groups) if is_packed(p)}, BLOCK)
    return SlicedAdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _adamw4bit(config: OptimConfig, groups: list[dict[str, Any]], _: torch.dtype) -> Optimizer:
    try:
        from packtrain.optim.adamw4bit import BLOCK, SlicedAdamW4bit, is_packed
    except ImportError:
        raise DeviceError(_missing("adamw4bit", "torchao", "torchao")) from None
    check_division("adamw4bit", {name: p for name, p in _named(groups) if is_packed(p)}, BLOCK)
    return SlicedAdamW4bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def _muon(config: OptimConfig, groups: list[dict[str, Any]], dtype: torch.dtype) -> Optimizer:
    from packtrain.optim.muon import Muon

    # float16 has not the range: a normalised matrix holds numbers whose squares it takes for zero.
    dtype = torch.float32 if dtype == torch.float16 else dtype
    return Muon(groups, lr=config.lr, betas=config.betas, eps=config.eps, momentum=config.momentum, dtype=dtype)


def _missing(name: str, library: str, extra: str) -> str:
    return (
        f"optim.name={name} needs {library}, which is not installed; run `pip install 'packtrain[{extra}]'` "
        "or write optim.name=adamw"
    )


_OPTIMIZERS: dict[str, Callable[[OptimConfig, list[dict[str, Any]], torch.dtype], Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "adamw4bit": _adamw4bit,
    "muon": _muon,
}
