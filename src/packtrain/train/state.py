"""Decides what of a run goes into a checkpoint, and how parts that stand somewhere else in it are put back."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.fp8 import without_fp8
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.optim.build import STATE_BLOCKS, export_state, import_state
from packtrain.parallel.ranks import Ranks
from packtrain.parallel.shards import blocks_of, is_spread, local, shard_of, spread_like, whole
from packtrain.parallel.wrap import own_parameters
from packtrain.runs.checkpoint import ENTRY, Checkpoint, check_fits
from packtrain.runs.tensors import Part


def collect(model: nn.Module, optimizer: Optimizer, ranks: Ranks) -> tuple[dict[str, Part], dict[str, Any]]:
    """The parts of weights and optimizer state that this rank writes, and the state's plain numbers.

    What several ranks hold is shared out among them. The parts are views: they change with the run.
    """
    parameters = own_parameters(model)
    tensors, numbers = export_state(optimizer)
    mine = {}
    for index, (name, tensor) in enumerate(sorted({**parameters, **tensors}.items())):
        parameter_name, _, entry = name.partition(ENTRY)
        owner = parameters[parameter_name]
        shard = shard_of(owner if entry in STATE_BLOCKS else tensor, ranks)
        if index % shard.num_holders == shard.holder:
            mine[name] = _part(owner, entry, tensor, ranks)
    return mine, numbers


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler, ranks: Ranks
) -> None:
    """Puts weights, optimizer state and loss scale where `checkpoint` left them, bit for bit, for any number of ranks.

    Raises CheckpointError where the model is another.
    """
    parameters = own_parameters(model)
    check_fits(checkpoint, {name: parameter.shape for name, parameter in parameters.items()})
    parts, state = {}, {}
    for name, stored in checkpoint.stored.items():
        parameter_name, _, entry = name.partition(ENTRY)
        owner = parameters[parameter_name]
        tensor = owner.detach() if not entry else _empty(owner, entry, stored.shape, stored.dtype, ranks)
        parts[name] = _part(owner, entry, tensor, ranks)
        if entry:
            state[name] = tensor
    checkpoint.read(parts)
    import_state(optimizer, state, checkpoint.state["optimizer_numbers"])
    scaler.load_state_dict(checkpoint.state["scaler"])


def whole_model(model: Llama, ranks: Ranks) -> Llama | None:
    """The model in one piece, without fp8: on the weights of its own where every rank holds them; else a copy, on the main
    rank only.

    Waits for all ranks where it is spread.
    """
    parameters = own_parameters(model)
    if not any(is_spread(parameter) for parameter in parameters.values()):
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
            values = whole(parameter.detach())
            if copy is not None:
                targets[name].copy_(values)
    return copy


def _part(owner: Tensor, entry: str, tensor: Tensor, ranks: Ranks) -> Part:
    if entry in STATE_BLOCKS and is_spread(owner):
        blocks = blocks_of(owner, STATE_BLOCKS[entry], ranks)
        return Part(tensor, torch.Size([blocks.total]), torch.Size([blocks.first]))
    shard = shard_of(tensor, ranks)
    return Part(shard.local, shard.shape, shard.offset)


def _empty(owner: Tensor, entry: str, shape: torch.Size, dtype: torch.dtype, ranks: Ranks) -> Tensor:
    """Room for an entry of the state of the parameter `owner`, spread as the optimizer spreads it."""
    if is_spread(owner) and entry in STATE_BLOCKS:
        shape = torch.Size([blocks_of(owner, STATE_BLOCKS[entry], ranks).num])
    elif is_spread(owner) and shape == owner.shape:
        return spread_like(owner, torch.empty_like(local(owner), dtype=dtype))
    return torch.empty(shape, dtype=dtype, device=owner.device)
