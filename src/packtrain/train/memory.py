"""Decides how many blocks are recomputed to stay within a memory budget, and which advice follows a failed allocation."""

import contextlib
import logging
from collections.abc import Iterator

import psutil
import torch

from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError, DeviceError
from packtrain.parallel.ranks import Ranks
from packtrain.plan.activations import (
    Kernels,
    activation_bytes,
    blocks_to_recompute,
    choose_kernels,
    share_to_keep,
)
from packtrain.plan.memory import PROCESS_BYTES_ELSEWHERE, largest_micro_batch, needed_bytes
from packtrain.train.gpu import held_by_others
from packtrain.train.step import Placement

_log = logging.getLogger("packtrain")
# What a plain RuntimeError says of too little memory: of torch's allocator for the CPU, and of the driver and libraries of a GPU,
# which take memory beside torch's allocator.
_SENTENCES = (
    *("can't allocate memory", "not enough memory"),
    *("CUDA error: out of memory", "Triton Error [CUDA]: out of memory", "_STATUS_ALLOC_FAILED"),
)


def count_recomputed(config: RunConfig, placement: Placement) -> int:
    """Blocks to recompute under train.activation_gb; none if they are compiled, which keep a share instead.

    Raises ConfigError if recomputing all of them is not enough.
    """
    budget, precision = config.activation_budget_bytes, placement.precision.name
    tokens = placement.micro_batch_size * config.data.seq_len
    drops = config.train.dropout > 0
    count = blocks_to_recompute(config.model, tokens, precision, budget, drops, _kernels(placement))
    if count is None:
        least = activation_bytes(config.model, tokens, precision, config.model.num_hidden_layers, drops)
        raise ConfigError(
            f"train.activation_gb={config.train.activation_gb:g} is less than {placement.micro_batch_size} rows need even if "
            f"every block is recomputed; write train.activation_gb={least / 1e9 + 0.0005:.3f}, or lower train.micro_batch_size"
        )
    return count


def share_to_compile(config: RunConfig, placement: Placement) -> float:
    """What train.activation_gb means for compiled blocks: `activation_memory_budget` of torch's compiler."""
    tokens, budget = placement.micro_batch_size * config.data.seq_len, config.activation_budget_bytes
    return share_to_keep(config.model, tokens, placement.precision.name, budget, config.train.dropout > 0)


def _kernels(placement: Placement) -> Kernels:
    return choose_kernels(placement.device.type, placement.is_compiled)


def as_placed(config: RunConfig, placement: Placement) -> RunConfig:
    """`config` for the planner, with what this process does: whether it compiles, and one lane beside other processes."""
    train = config.train.model_copy(update={"compile": placement.is_compiled})
    placed = config.model_copy(update={"train": train})
    return placed if placement.ranks.world_size == 1 else without_lanes(placed)


def memory_bytes(device: torch.device, ranks: Ranks) -> int:
    """Memory for this process: of its GPU what no other holds; on a CPU its share of the free memory, and what it has already."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) - held_by_others(device)
    return int(psutil.virtual_memory().available / ranks.local_world_size + psutil.Process().memory_info().rss)


def without_lanes(config: RunConfig) -> RunConfig:
    """`config` with one lane, as each of several processes trains."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"lanes": 1})})


@contextlib.contextmanager
def explain_out_of_memory(config: RunConfig, placement: Placement, what: str = "") -> Iterator[None]:
    """Turns an allocation that fails inside the block into a DeviceError that says which micro-batch would fit.

    `what` comes first in its sentence, such as "in validation, ".
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_plain = not isinstance(error, torch.OutOfMemoryError | MemoryError)
        if is_plain and not any(sentence in str(error) for sentence in _SENTENCES):
            raise
        raise _describe_shortage(as_placed(config, placement), placement, what) from error


def warn_about_others(config: RunConfig, placement: Placement) -> None:
    """Warns if the run fits on its GPU by the planner's estimate, but not beside what other processes hold of it."""
    device, world_size = placement.device, placement.ranks.world_size
    if device.type != "cuda":
        return
    shards = (config.parallel.shard_size or world_size) if placement.is_sharded else 1
    size, name, held = placement.micro_batch_size, placement.precision.name, held_by_others(device)
    needed = needed_bytes(as_placed(config, placement), size, name, device.type, accumulates=True, num_shards=shards)
    available = memory_bytes(device, placement.ranks)
    if needed is not None and available < needed <= available + held:
        _log.warning(
            "%s has %.1f GB left beside the %.1f GB of other processes, and this run needs %.1f GB by the planner's estimate; "
            "end them (`nvidia-smi` lists them), or lower train.micro_batch_size",
            device,
            available / 1e9,
            held / 1e9,
            needed / 1e9,
        )


def _describe_others(device: torch.device) -> str:
    """Empty unless other processes hold more than the driver's own share of a GPU."""
    held = held_by_others(device) if device.type == "cuda" else 0
    return f"; others hold {held / 1e9:.1f} GB: `nvidia-smi` lists them" if held > PROCESS_BYTES_ELSEWHERE else ""


def _describe_shortage(config: RunConfig, placement: Placement, what: str = "") -> DeviceError:
    device, world_size, is_sharded = placement.device, placement.ranks.world_size, placement.is_sharded
    available, rows_per_rank = memory_bytes(device, placement.ranks), config.rows_per_step // world_size

    def find_largest(num_shards: int, at_most: int) -> int:
        computed = largest_micro_batch(config, available, placement.precision.name, device.type, num_shards=num_shards)
        return next((n for n in range(min(computed, at_most), 0, -1) if rows_per_rank % n == 0), 0)

    num_shards = (config.parallel.shard_size or world_size) if is_sharded else 1
    given = (
        f"{what}train.micro_batch_size={placement.micro_batch_size} rows of {config.data.seq_len} tokens need more memory than "
        f"a process has on {device.type} ({available / 1e9:.1f} GB{_describe_others(device)})"
    )
    # At most half of what just failed, even if the planner computes that more would fit.
    if rows := find_largest(num_shards, placement.micro_batch_size // 2):
        return DeviceError(
            f"{given}; write train.micro_batch_size={rows}, the largest that fits by the planner's estimate"
        )
    if num_shards < world_size and (rows := find_largest(world_size, placement.micro_batch_size)):
        how = "parallel.mode=fsdp" if not is_sharded else f"parallel.shard_size={world_size}"
        return DeviceError(
            f"{given}, and by the planner's estimate not even one row fits next to a full copy of the model; write {how} "
            f"and train.micro_batch_size={rows}, which fits by that estimate"
        )
    smaller = "" if config.optim.kind.is_low_bit else "write optim.name=adamw8bit, "
    return DeviceError(
        f"{given}, and by the planner's estimate not even one row fits; {smaller}set train.activation_gb, or choose a "
        "smaller model"
    )
