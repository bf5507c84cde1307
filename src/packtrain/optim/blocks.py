"""Decides how states that share a scale block by block are divided: over ranks, and into slices for one update each."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from packtrain.errors import ConfigError
from packtrain.optim.base import Groups, Sharding

# Elements of one update on the CPU. A multiple of every block, so that slices change no number.
SLICE = 2**20
# The largest number of processes that an error message proposes.
_MOST_PROCESSES = 64


def check_division(
    optimizer: str, groups: Groups, is_quantised: Callable[[Tensor], bool], block: int, sharding: Sharding
) -> None:
    """Raises ConfigError if a border between two ranks' parts cuts a block, whose one scale needs all of its elements.

    `is_quantised` says which parameters of `groups` have such blocks.
    """
    quantised = {
        name: p for group in groups for name, p in zip(group["names"], group["params"], strict=True) if is_quantised(p)
    }
    cut = next((name for name, p in quantised.items() if _cuts(p, sharding.num_shards(p), block)), None)
    if cut is None:
        return
    p = quantised[cut]
    even = (n for n in range(2, _MOST_PROCESSES + 1) if p.shape[0] % n == 0)
    fitting = [n for n in even if not any(_cuts(each, n, block) for each in quantised.values())]
    here = [n for n in fitting if sharding.num_ranks(p) % n == 0]
    if here:
        remedy = f"write parallel.shard_size={_join(here)}"
    elif fitting:
        remedy = f"start a multiple of {_join(fitting)} processes and write that number as parallel.shard_size"
    else:
        remedy = "write parallel.mode=ddp"
    raise ConfigError(
        f"optim.name={optimizer} keeps its states in blocks of {block} numbers, and {cut} of shape {list(p.shape)} cannot be "
        f"divided over {sharding.num_shards(p)} processes without cutting a block; {remedy}, or write optim.name=adamw"
    )


def iterate_slices(num_elements: int, device: torch.device) -> Iterator[slice]:
    """Ranges of a flat tensor to update one after another. Short on the CPU, where an update makes several copies."""
    size = SLICE if device.type == "cpu" else max(1, num_elements)
    for start in range(0, num_elements, size):
        yield slice(start, min(start + size, num_elements))


def _cuts(p: Tensor, num_shards: int, block: int) -> bool:
    rows = math.ceil(p.shape[0] / num_shards)
    return rows < p.shape[0] and rows * p.shape[1:].numel() % block != 0


def _join(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
