"""Decides how the model is spread over the ranks: a copy on each, or each parameter cut into parts."""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from packtrain.config.parallel import ParallelConfig
from packtrain.errors import ConfigError
from packtrain.parallel.ranks import Ranks

Mode = Literal["alone", "ddp", "fsdp"]


def resolve_mode(config: ParallelConfig, ranks: Ranks) -> Mode:
    """What parallel.mode means for so many processes. Raises ConfigError for what cannot be divided so."""
    if config.shard_size is not None:
        if config.mode != "fsdp":
            raise ConfigError(
                f"parallel.shard_size={config.shard_size} is for sharded training; add parallel.mode=fsdp, or leave it out"
            )
        if ranks.world_size > 1 and ranks.world_size % config.shard_size:
            raise ConfigError(
                f"{ranks.world_size} processes do not divide into groups of parallel.shard_size={config.shard_size}; "
                "give a number that divides them, or leave it out to shard over all"
            )
    if ranks.world_size == 1:
        return "alone"
    return "fsdp" if config.mode == "fsdp" else "ddp"


def replicate(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the ranks; the model itself where there is one process."""
    if ranks.world_size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def shard(
    model: nn.Module,
    blocks: Iterable[nn.Module],
    ranks: Ranks,
    *,
    device_type: str,
    shard_size: int | None,
    dtype: torch.dtype | None,
) -> None:
    """Cuts every parameter by rows over the ranks, in place (FSDP2); gradients and optimizer states follow.

    Each block is put together when it is needed, the rest of the model for the length of a step. With `shard_size`
    that many ranks share a copy of the model, of which there are several (hybrid sharding). The blocks' parameters
    are sent and multiplied in `dtype` if given; gradients are summed in float32.
    """
    mesh = _mesh(ranks.world_size, shard_size, device_type)
    # Caches of DTensor's keep the mesh until the process ends; newer versions of it hold their groups, not their names alone.
    ranks.at_end.callback(getattr(mesh, "_pg_registry", {}).clear)
    # The stream between the blocks stays as the model makes it, as it does under autocast alone.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name as this rank holds them between steps: its part of those that are cut."""
    if isinstance(model, FSDPModule):
        # After a forward pass alone what is outside of the blocks is still whole.
        model.reshard()
    return dict(model.named_parameters())


def without_sync(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Leaves gradients of all but the last micro-batch of a step local where that costs no memory: they are summed once."""
    if isinstance(model, FSDPModule):
        # Whole gradients would not fit where models are sharded: each micro-batch's go to their ranks at once, and only
        # the copies of a part are summed at the end.
        model.set_requires_all_reduce(is_last)
    elif isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return contextlib.nullcontext()


def _mesh(world_size: int, shard_size: int | None, device_type: str) -> DeviceMesh:
    if shard_size is None or shard_size == world_size:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (world_size // shard_size, shard_size), mesh_dim_names=("replicate", "shard"))
