"""Decides what a checkpoint of a run contains, and how it is restored for another number of ranks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from packtrain.errors import CheckpointError
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.fp8 import without_fp8
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.optim.base import ShardedOptimizer
from packtrain.optim.build import export_state, import_state
from packtrain.parallel.parts import StoredTensor, TensorPart
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.shards import (
    gather_whole,
    is_sharded,
    locate_blocks,
    locate_holder,
    locate_part,
    shard_like,
    take_local,
)
from packtrain.parallel.wrap import reshard_parameters
from packtrain.runs.checkpoint import AVERAGE, ENTRY, Checkpoint, check_fits
from packtrain.runs.configuration import USE_ANOTHER
from packtrain.train.average import Average


def collect(
    model: nn.Module, optimizer: ShardedOptimizer, ranks: Ranks, average: Average | None = None
) -> tuple[dict[str, TensorPart], dict[str, Any]]:
    """The parts of weights, optimizer state and averages that this rank writes, and the numbers of the state.

    Each tensor that several ranks hold is written by one of them, in turn. The parts are views: they change with the run.
    """
    parameters = reshard_parameters(model)
    tensors, numbers = export_state(optimizer)
    if average is not None and average.count:
        tensors |= {f"{name}{ENTRY}{AVERAGE}": mean for name, mean in average.weights.items()}
    mine = {}
    for index, (name, tensor) in enumerate(sorted({**parameters, **tensors}.items())):
        parameter_name, _, entry = name.partition(ENTRY)
        owner, block = parameters[parameter_name], optimizer.elements_per_number(entry, parameters[parameter_name])
        holder, num_holders = locate_holder(tensor if block is None else owner, ranks)
        if index % num_holders == holder:
            mine[name] = _part(owner, block, tensor)
    return mine, numbers


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: ShardedOptimizer,
    scaler: torch.amp.GradScaler,
    average: Average | None = None,
) -> None:
    """Restores weights, optimizer state, loss scale and averages from `checkpoint`, bit for bit, for any number of ranks.

    An average begins again if the checkpoint has none of its kind.

    Raises CheckpointError if it is of another model, or lacks a part of the optimizer's state.
    """
    parameters = reshard_parameters(model)
    check_fits(checkpoint, {name: parameter.shape for name, parameter in parameters.items()})
    numbers = checkpoint.state.get("optimizer_numbers", {})
    _check_entries(checkpoint, parameters, numbers, optimizer)
    parts: dict[str, TensorPart] = {}
    state = {}
    if average is not None:
        parts |= _average_parts(checkpoint, average)
    for name, stored in checkpoint.stored.items():
        parameter_name, _, entry = name.partition(ENTRY)
        if entry == AVERAGE:
            continue
        owner, block = parameters[parameter_name], optimizer.elements_per_number(entry, parameters[parameter_name])
        tensor = owner.detach() if not entry else _empty(owner, block, stored.shape, stored.dtype)
        parts[name] = _part(owner, block, tensor)
        if entry:
            state[name] = tensor
    checkpoint.read_into(parts)
    import_state(optimizer, state, numbers)
    if scaling := checkpoint.state.get("scaler"):
        scaler.load_state_dict(scaling)


def _average_parts(checkpoint: Checkpoint, average: Average) -> dict[str, TensorPart]:
    """This rank's parts of the averages that `checkpoint` holds, to be filled; none if an average is to begin again."""
    saved = checkpoint.state.get("average")
    if saved is None or not average.continues(saved):
        average.count = 0
        return {}
    for name, mean in average.weights.items():
        stored = checkpoint.stored.get(f"{name}{ENTRY}{AVERAGE}")
        if stored is None or stored.shape != mean.shape or stored.dtype != torch.float32:
            raise CheckpointError(f"{checkpoint.folder} has no average of {name} that fits it; {USE_ANOTHER}")
    average.count = saved["count"]
    return {f"{name}{ENTRY}{AVERAGE}": locate_part(mean) for name, mean in average.weights.items()}


def _check_entries(
    checkpoint: Checkpoint, parameters: Mapping[str, Tensor], numbers: Mapping[str, Any], optimizer: ShardedOptimizer
) -> None:
    """Raises CheckpointError for an entry of the optimizer's state that is missing or does not fit its parameter.

    An optimizer would silently begin a missing entry again.
    """
    entries: dict[str, set[str]] = {name: set() for name in parameters}
    for full in (*(name for name in checkpoint.stored if ENTRY in name), *numbers):
        name, _, entry = full.rpartition(ENTRY)
        if entry == AVERAGE:
            continue
        if name not in entries:
            raise CheckpointError(
                f"{checkpoint.folder} holds the state of {name!r}, which the model does not have; {USE_ANOTHER}"
            )
        entries[name].add(entry)
        stored = checkpoint.stored.get(full)
        block = optimizer.elements_per_number(entry, parameters[name])
        if stored is not None and not _fits(entry, stored, parameters[name].shape, block):
            raise CheckpointError(
                f"{checkpoint.folder} does not fit the model: {full} has shape {list(stored.shape)} and type {stored.dtype}; "
                f"{USE_ANOTHER}"
            )
    # Some optimizers make their states at the first step that is not skipped.
    for name, found in entries.items():
        if any(entries.values()) and found not in optimizer.state_entries:
            raise CheckpointError(f"{checkpoint.folder} lacks a part of the optimizer's state of {name}; {USE_ANOTHER}")


def _fits(entry: str, stored: StoredTensor, shape: torch.Size, block: int | None) -> bool:
    """Whether a stored entry can be the state of a parameter of `shape`. Tables of quantiles have sizes of their own."""
    is_packed = entry in ("state1", "state2") or entry.endswith(".codes")
    if stored.dtype != torch.float32 and not (is_packed and stored.dtype == torch.uint8):
        return False
    if block is not None:
        return stored.shape.numel() == -(-shape.numel() // block)
    if entry == "step":
        return stored.shape.numel() == 1
    return "qmap" in entry or stored.shape == shape


def gather_model(model: Llama, ranks: Ranks) -> Llama | None:
    """The whole model without fp8. It has the weights of `model` if every rank holds them; else it is a copy on the main rank.

    Returns None on the other ranks if the model is sharded; waits for all of them.
    """
    parameters = reshard_parameters(model)
    if not any(is_sharded(parameter) for parameter in parameters.values()):
        return without_fp8(model)
    copy = None
    if ranks.is_main:
        device = next(model.parameters()).device
        copy = build(model.config, seed=0, device="meta").to_empty(device=device)
        copy.tie_weights()
        if device.type == "cpu":
            use_cpu_kernels(copy)
    targets = dict(copy.named_parameters()) if copy is not None else {}
    with torch.no_grad():
        for name, parameter in parameters.items():
            values = gather_whole(parameter.detach())
            if copy is not None:
                targets[name].copy_(values)
    return copy


def _part(owner: Tensor, block: int | None, tensor: Tensor) -> TensorPart:
    """This rank's part of `tensor`, which is the parameter `owner` or an entry of its state, in blocks of `block` if given."""
    if block is not None and is_sharded(owner):
        blocks = locate_blocks(owner, block)
        return TensorPart(tensor, torch.Size([blocks.total]), torch.Size([blocks.first]))
    return locate_part(tensor)


def _empty(owner: Tensor, block: int | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Memory for an entry of the state of the parameter `owner`, sharded as the optimizer shards it."""
    if is_sharded(owner) and block is not None:
        shape = torch.Size([locate_blocks(owner, block).num])
    elif is_sharded(owner) and shape == owner.shape:
        return shard_like(owner, torch.empty_like(take_local(owner), dtype=dtype))
    return torch.empty(shape, dtype=dtype, device=owner.device)
