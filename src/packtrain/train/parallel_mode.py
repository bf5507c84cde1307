"""Decides what parallel.mode=auto means: what the run had before, else a copy per process, else shards if only those fit."""

import logging

from packtrain.config.parallel import ParallelConfig
from packtrain.config.run import RunConfig
from packtrain.plan.memory import fits, needed_bytes
from packtrain.train.memory import as_placed, memory_bytes
from packtrain.train.step import Placement

_log = logging.getLogger("packtrain")


def resolve_parallel_mode(config: RunConfig, before: ParallelConfig | None, placement: Placement) -> RunConfig:
    """`config` with parallel.mode=auto replaced by ddp or fsdp, the same on all ranks; a single process leaves it open.

    `before`: the run's settings when it was last started. `placement` is not sharded yet. Waits for all ranks.
    """
    given, ranks = config.parallel, placement.ranks
    if given.mode != "auto" or given.shard_size is not None:
        return config
    if before is not None and before.mode != "auto":
        divides = before.shard_size is None or ranks.world_size % before.shard_size == 0 or ranks.world_size == 1
        parallel = before if divides else before.model_copy(update={"shard_size": None})
        if ranks.world_size > 1:
            _log.info("parallel.mode=auto: %s, as the run was before", parallel.mode)
    elif ranks.world_size > 1:
        parallel = choose_mode(config, placement, min(ranks.gather(memory_bytes(placement.device, ranks))))
    else:
        return config
    return config.model_copy(update={"parallel": parallel})


def choose_mode(config: RunConfig, placement: Placement, memory_bytes: int) -> ParallelConfig:
    """ddp if the planner computes that a copy of the model fits into `memory_bytes`, or that not even a shard does; else fsdp."""
    single, num_shards = as_placed(config, placement), placement.ranks.world_size
    rows, precision, device_type = placement.micro_batch_size, placement.precision.name, placement.device.type
    copy_gb, shard_gb = (
        (needed_bytes(single, rows, precision, device_type, accumulates=True, num_shards=n) or 0) / 1e9
        for n in (1, num_shards)
    )
    limit_gb = memory_bytes / 1e9
    if fits(single, rows, memory_bytes, precision, device_type):
        _log.info("parallel.mode=auto: ddp; a copy of the model needs %.1f of %.1f GB (estimate)", copy_gb, limit_gb)
    elif fits(single, rows, memory_bytes, precision, device_type, num_shards=num_shards):
        _log.info(
            "parallel.mode=auto: fsdp; a copy of the model needs %.1f GB, a shard %.1f of %.1f GB (estimate)",
            copy_gb,
            shard_gb,
            limit_gb,
        )
        return config.parallel.model_copy(update={"mode": "fsdp"})
    else:
        _log.warning(
            "parallel.mode=auto: ddp, although by estimate neither a copy of the model (%.1f GB) nor a shard (%.1f GB) "
            "fits into %.1f GB",
            copy_gb,
            shard_gb,
            limit_gb,
        )
    return config.parallel.model_copy(update={"mode": "ddp"})
