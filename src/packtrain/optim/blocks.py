"""Decides how states that share a scale block by block are cut: over ranks, and into the slices that are updated at once."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from packtrain.errors import ConfigError

# Smaller parameters have float32 states, in bitsandbytes as in torchao.
SMALLEST = 4096
# Elements updated at once on the CPU; a multiple of every block, so that slices change no number.
SLICE = 2**20
# Numbers of processes that are looked at for one that cuts no block.
_MANY = 64


def check_division(optimizer: str, parameters: Mapping[str, Tensor], block: int) -> None:
    """Raises ConfigError where the ranks' parts of a parameter cut a block of its states, whose scale neither would have.

    `parameters`: all that have such states, by name.
    """
    cut = next((name for name, p in parameters.items() if _cuts(p, num_shards(p), block)), None)
    if cut is None:
        return
    p = parameters[cut]
    assert isinstance(p, DTensor)
    even = (n for n in range(2, _MANY + 1) if p.shape[0] % n == 0)
    fitting = [n for n in even if not any(_cuts(each, n, block) for each in parameters.values())]
    world_size = p.device_mesh.size()
    here = [n for n in fitting if world_size % n == 0]
    if here:
        remedy = f"write parallel.shard_size={_listed(here)}"
    elif fitting:
        remedy = f"start a number of processes that one of {_listed(fitting)} divides, with that as parallel.shard_size"
    else:
        remedy = "write parallel.mode=ddp"
    raise ConfigError(
        f"optim.name={optimizer} keeps its states in blocks of {block} numbers, and {cut} of shape {list(p.shape)} cut over "
        f"{num_shards(p)} processes cuts one; {remedy}, or optim.name=adamw"
    )


def num_shards(p: Tensor) -> int:
    """How many parts a parameter is cut into."""
    if not isinstance(p, DTensor):
        return 1
    return math.prod(p.device_mesh.size(dim) for dim, kind in enumerate(p.placements) if isinstance(kind, Shard))


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter or of what is cut like it, in the same memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def flat(tensor: Tensor) -> Tensor:
    """The same in one dimension; a view where it is contiguous."""
    return local(tensor).reshape(-1)


def slices(num_elements: int, device: torch.device) -> Iterator[slice]:
    """Ranges of a flat tensor to update at once: on the CPU, where an update takes several copies of them, short ones."""
    size = SLICE if device.type == "cpu" else max(1, num_elements)
    for start in range(0, num_elements, size):
        yield slice(start, min(start + size, num_elements))


def _cuts(p: Tensor, num_shards: int, block: int) -> bool:
    rows = math.ceil(p.shape[0] / num_shards)
    return rows < p.shape[0] and rows * p.shape[1:].numel() % block != 0


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
