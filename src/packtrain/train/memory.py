"""Decides how many blocks are computed again to stay within a budget, and what is said where memory does not suffice."""

import contextlib
from collections.abc import Iterator

import psutil
import torch

from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError, DeviceError
from packtrain.model.size import Precision, activation_bytes, blocks_to_recompute, largest_micro_batch

# How torch's allocator for the CPU says it: a plain RuntimeError.
_CPU_SENTENCES = ("can't allocate memory", "not enough memory")


def num_recomputed(config: RunConfig, micro_batch_size: int, precision: Precision) -> int:
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


@contextlib.contextmanager
def out_of_memory(
    config: RunConfig, micro_batch_size: int, rows_per_rank: int, precision: Precision, device: torch.device
) -> Iterator[None]:
    """Turns an allocation that fails inside the block into a DeviceError that says which micro-batch would fit."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(config, micro_batch_size, rows_per_rank, precision, device) from error
    except RuntimeError as error:
        if not any(sentence in str(error) for sentence in _CPU_SENTENCES):
            raise
        raise _too_large(config, micro_batch_size, rows_per_rank, precision, device) from error


def _too_large(
    config: RunConfig, micro_batch_size: int, rows_per_rank: int, precision: Precision, device: torch.device
) -> DeviceError:
    available = _memory_bytes(device)
    computed = largest_micro_batch(config, available, precision, device.type)
    # The planner may think that what just failed would fit: then it is not believed, and half of it named.
    limit = min(computed, micro_batch_size // 2)
    fitting = next((rows for rows in range(limit, 0, -1) if rows_per_rank % rows == 0), 0)
    given = (
        f"train.micro_batch_size={micro_batch_size} rows of {config.data.seq_len} tokens need more memory than there is "
        f"({available / 1e9:.1f} GB on {device.type})"
    )
    if fitting:
        return DeviceError(f"{given}; write train.micro_batch_size={fitting}, by computation the largest that fits")
    return DeviceError(
        f"{given}, and by computation not even one row fits; write optim.name=adamw8bit, set train.activation_gb, or "
        "choose a smaller model"
    )


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
