"""Decides the rows of a micro-batch for train.micro_batch_size=auto: those that the run had before, else as many as fit."""

import logging

from packtrain.config.run import RunConfig
from packtrain.plan.rows import choose_rows_of_ranks
from packtrain.train.memory import as_placed, memory_bytes
from packtrain.train.step import Placement

_log = logging.getLogger("packtrain")


def resolve_rows(config: RunConfig, before: RunConfig | None, placement: Placement) -> RunConfig:
    """`config` with a number in place of `auto`, the same on all ranks. Waits for all ranks.

    `before`: the run's settings when it was last started. `placement` has no micro-batch yet.
    """
    if config.train.micro_batch_size != "auto":
        return config
    ranks, device = placement.ranks, placement.device
    rows_per_rank = max(1, config.rows_per_step // ranks.world_size)
    rows, why = None if before is None else before.train.micro_batch_size, "as the run had before"
    if not isinstance(rows, int) or rows_per_rank % rows:
        available = min(ranks.gather(memory_bytes(device, ranks)))
        planned = as_placed(config, placement)
        rows = choose_rows_of_ranks(planned, ranks.world_size, available, placement.precision.name, device.type)
        why = f"the most that fit in {available / 1e9:.1f} GB by the plan" if device.type == "cuda" else "the default"
    if ranks.is_main:
        _log.info("train.micro_batch_size=auto: %d rows, %s", rows, why)
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": rows})})
