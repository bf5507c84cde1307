"""Decides how many blocks are computed again to stay within a budget, and what is said where a process has not the memory."""

import contextlib
from collections.abc import Iterator

import psutil
import torch

from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError, DeviceError
from packtrain.parallel.ranks import Ranks
from packtrain.plan.memory import PrecisionName, activation_bytes, blocks_to_recompute, largest_micro_batch

# How torch's allocator for the CPU says it: a plain RuntimeError.
_CPU_SENTENCES = ("can't allocate memory", "not enough memory")


def num_recomputed(config: RunConfig, micro_batch_size: int, precision: PrecisionName) -> int:
    """Blocks to compute again under train.activation_gb. Raises ConfigError where all of them are not enough."""
    budget = config.activation_budget_bytes
    tokens = micro_batch_size * config.data.seq_len
    count = blocks_to_recompute(config.model, tokens, precision, budget)
    if count is None:
        least = activation_bytes(config.model, tokens, precision, config.model.num_hidden_layers)
        raise ConfigError(
            f"train.activation_gb={config.train.activation_gb:g} is less than {micro_batch_size} rows take with every block "
            f"computed again; write train.activation_gb={least / 1e9 + 0.0005:.3f}, or lower train.micro_batch_size"
        )
    return count


def memory_bytes(device: torch.device, ranks: Ranks) -> int:
    """What this process may take in all: its device, or its share of what is free here and what it has already."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().available / ranks.local_world_size + psutil.Process().memory_info().rss)


def without_lanes(config: RunConfig) -> RunConfig:
    """`config` as several processes train by it."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"lanes": 1})})


@contextlib.contextmanager
def out_of_memory(
    config: RunConfig,
    micro_batch_size: int,
    rows_per_rank: int,
    precision: PrecisionName,
    device: torch.device,
    ranks: Ranks | None = None,
    *,
    is_sharded: bool = False,
) -> Iterator[None]:
    """Turns an allocation that fails inside the block into a DeviceError that says which micro-batch would fit.

    `is_sharded`: over `ranks`, or those of them that share a copy of the model.
    """
    ranks = ranks or Ranks()
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_plain = not isinstance(error, torch.OutOfMemoryError | MemoryError)
        if is_plain and not any(sentence in str(error) for sentence in _CPU_SENTENCES):
            raise
        config = config if ranks.world_size == 1 else without_lanes(config)
        raise _too_large(config, micro_batch_size, rows_per_rank, precision, device, ranks, is_sharded) from error


def _too_large(
    config: RunConfig,
    micro_batch_size: int,
    rows_per_rank: int,
    precision: PrecisionName,
    device: torch.device,
    ranks: Ranks,
    is_sharded: bool,
) -> DeviceError:
    available, world_size = memory_bytes(device, ranks), ranks.world_size

    def largest(num_shards: int, at_most: int) -> int:
        computed = largest_micro_batch(config, available, precision, device.type, num_shards=num_shards)
        return next((n for n in range(min(computed, at_most), 0, -1) if rows_per_rank % n == 0), 0)

    num_shards = (config.parallel.shard_size or world_size) if is_sharded else 1
    given = (
        f"train.micro_batch_size={micro_batch_size} rows of {config.data.seq_len} tokens need more memory than there is "
        f"({available / 1e9:.1f} GB for a process on {device.type})"
    )
    # The planner may think that what just failed would fit: then it is not believed, and half of it named.
    if rows := largest(num_shards, micro_batch_size // 2):
        return DeviceError(f"{given}; write train.micro_batch_size={rows}, by computation the largest that fits")
    if num_shards < world_size and (rows := largest(world_size, micro_batch_size)):
        how = "parallel.mode=fsdp" if not is_sharded else f"parallel.shard_size={world_size}"
        return DeviceError(
            f"{given}, and by computation not even one row fits beside a copy of the model; write {how} and "
            f"train.micro_batch_size={rows}, with which it fits by computation"
        )
    smaller = "" if config.optim.kind.is_low_bit else "write optim.name=adamw8bit, "
    return DeviceError(
        f"{given}, and by computation not even one row fits; {smaller}set train.activation_gb, or choose a smaller model"
    )
