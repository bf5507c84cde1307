"""Decides how parallel.mode=auto spreads a model: as the run was before, else whole on each process, else, where only parts fit, cut."""

import logging

import torch

from packtrain.config.parallel import ParallelConfig
from packtrain.config.run import RunConfig
from packtrain.parallel.ranks import Ranks
from packtrain.plan.memory import PrecisionName, fits, needed_bytes
from packtrain.train.memory import memory_bytes, without_lanes

_log = logging.getLogger("packtrain")


def resolve_parallel_mode(
    config: RunConfig,
    before: ParallelConfig | None,
    *,
    micro_batch_size: int,
    precision: PrecisionName,
    ranks: Ranks,
    device: torch.device,
) -> RunConfig:
    """`config` with what parallel.mode=auto comes to, the same on all ranks; one process alone leaves it open.

    `before`: what the run had when it was last started. Waits for all ranks.
    """
    given = config.parallel
    if given.mode != "auto" or given.shard_size is not None:
        return config
    if before is not None and before.mode != "auto":
        divides = before.shard_size is None or ranks.world_size % before.shard_size == 0 or ranks.world_size == 1
        parallel = before if divides else before.model_copy(update={"shard_size": None})
        if ranks.world_size > 1:
            _log.info("parallel.mode=auto: %s, as the run was before", parallel.mode)
    elif ranks.world_size > 1:
        memory = min(ranks.gather(memory_bytes(device, ranks)))
        parallel = choose(config, micro_batch_size, memory, precision, device.type, ranks.world_size)
    else:
        return config
    return config.model_copy(update={"parallel": parallel})


def choose(
    config: RunConfig,
    micro_batch_size: int,
    memory_bytes: int,
    precision: PrecisionName,
    device_type: str,
    world_size: int,
) -> ParallelConfig:
    """Copies of the model where one fits into the memory of a process by computation, or where not even parts do."""
    single = without_lanes(config)
    limit = (single, micro_batch_size, memory_bytes, precision, device_type)
    whole, part = (
        (needed_bytes(single, micro_batch_size, precision, device_type, accumulates=True, num_shards=n) or 0) / 1e9
        for n in (1, world_size)
    )
    if fits(*limit):
        _log.info(
            "parallel.mode=auto: ddp, a copy of the model takes %.1f GB of %.1f (computed)", whole, memory_bytes / 1e9
        )
        return config.parallel.model_copy(update={"mode": "ddp"})
    if fits(*limit, num_shards=world_size):
        _log.info(
            "parallel.mode=auto: fsdp, a copy of the model takes %.1f GB and its parts %.1f of %.1f (computed)",
            whole,
            part,
            memory_bytes / 1e9,
        )
        return config.parallel.model_copy(update={"mode": "fsdp"})
    _log.warning(
        "parallel.mode=auto: ddp, but by computation neither a copy of the model (%.1f GB) nor its parts (%.1f) fit into %.1f GB",
        whole,
        part,
        memory_bytes / 1e9,
    )
    return config.parallel.model_copy(update={"mode": "ddp"})
