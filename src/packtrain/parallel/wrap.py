"""Decides how the model is divided over the ranks: a copy on each (DDP), or a shard of each parameter (FSDP)."""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from packtrain.config.parallel import ParallelConfig
from packtrain.errors import ConfigError
from packtrain.parallel.ranks import Ranks


def must_shard(config: ParallelConfig, ranks: Ranks) -> bool:
    """Whether the ranks share a copy of the model. Raises ConfigError if they cannot be divided as configured."""
    if config.shard_size is not None:
        if config.mode != "fsdp":
            raise ConfigError(
                f"parallel.shard_size={config.shard_size} needs sharded training; add parallel.mode=fsdp, or leave it out"
            )
        if ranks.world_size > 1 and ranks.world_size % config.shard_size:
            raise ConfigError(
                f"the number of processes, {ranks.world_size}, is not a multiple of parallel.shard_size={config.shard_size}; "
                f"write a divisor of {ranks.world_size}, or leave it out to shard over all"
            )
    return config.mode == "fsdp" and ranks.world_size > 1


def replicate(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model with its gradients averaged over the ranks; the model itself if there is one process."""
    if ranks.world_size == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
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
    """Shards every parameter by rows over the ranks, in place (FSDP2); gradients and optimizer states follow.

    Each block is all-gathered when it is needed, the rest of the model once a step. With `shard_size`, that many ranks
    share a copy of the model, and there are several copies (hybrid sharding). The blocks' parameters are sent and
    multiplied in `dtype` if given; gradients are summed in float32.
    """
    if shard_size is None or shard_size == ranks.world_size:
        mesh = init_device_mesh(device_type, (ranks.world_size,), mesh_dim_names=("shard",))
    else:
        shape = (ranks.world_size // shard_size, shard_size)
        mesh = init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))
    # DTensor caches the mesh until the process ends, and newer versions of the mesh refer to their groups.
    ranks.at_end.callback(getattr(mesh, "_pg_registry", {}).clear)
    # The residual stream keeps its type, as it does under autocast alone.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))


def reshard_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by name as this rank holds them between steps: its part of each if the model is sharded."""
    if isinstance(model, FSDPModule):
        # After a forward pass without a backward pass, parameters outside the blocks are still gathered.
        model.reshard()
    return dict(model.named_parameters())


def defer_sync(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Sums gradients over the ranks once a step, with the last micro-batch, if that needs no extra memory."""
    if isinstance(model, FSDPModule):
        # Whole gradients of a sharded model would not fit: each micro-batch's are reduced to shards at once. Only the sum
        # over copies of a shard waits for the last.
        model.set_requires_all_reduce(is_last)
    elif isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return contextlib.nullcontext()
