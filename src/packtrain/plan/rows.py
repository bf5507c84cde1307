"""Decides what train.micro_batch_size=auto means on a device: as many rows as its memory holds by the plan, with a margin."""

from packtrain.config.run import RunConfig
from packtrain.plan.activations import PrecisionName
from packtrain.plan.memory import fits, largest_micro_batch

# Of a GPU's memory, what a choice leaves free beside the plan's own reserve. Assumed: the plan has not been compared with a GPU.
MARGIN = 0.05


def choose_rows(
    config: RunConfig, rows_per_rank: int, device_bytes: int, precision: PrecisionName, device: str, num_shards: int = 1
) -> int:
    """Rows of a micro-batch on a `device` of that much memory, of whose `rows_per_rank` rows a step they are a divisor.

    The number that is set. For `auto` on CUDA the largest power of two that fits, or the largest divisor if the power is less
    than half of it; one row if none fits. For `auto` elsewhere, the largest divisor up to the default.
    """
    if config.train.micro_batch_size != "auto":
        return max(1, min(config.train.micro_batch_size, rows_per_rank))
    most = config.rows_per_pass
    if device == "cuda":
        available = round(device_bytes * (1 - MARGIN))
        most = largest_micro_batch(config, available, precision, device, num_shards=num_shards)
    divisors = [n for n in range(1, min(most, rows_per_rank) + 1) if rows_per_rank % n == 0]
    largest = max(divisors, default=1)
    power = max((n for n in divisors if n.bit_count() == 1), default=1)
    return power if device == "cuda" and 2 * power >= largest else largest


def choose_rows_of_ranks(
    config: RunConfig, num_ranks: int, device_bytes: int, precision: PrecisionName, device: str
) -> int:
    """`choose_rows` for each of `num_ranks` equal ranks: with a copy of the model on each if one row fits beside it, unless
    parallel.mode says otherwise."""
    parallel, shape = config.parallel, (config.rows_per_step // num_ranks, device_bytes, precision, device)
    shards = parallel.shard_size or num_ranks
    if parallel.mode == "auto" and parallel.shard_size is None:
        shards = 1 if num_ranks == 1 or fits(config, 1, device_bytes, precision, device) else num_ranks
    elif parallel.mode == "ddp":
        shards = 1
    return choose_rows(config, *shape, num_shards=shards)
