"""Decides how to see a tensor that may be sharded over ranks: which part of it this rank holds, and where that belongs."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from packtrain.parallel.parts import TensorPart
from packtrain.parallel.ranks import Ranks

# It warns that gloo gathers where NCCL exchanges.
logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)


@dataclass(frozen=True)
class BlockRange:
    """This rank's part of a vector of `total` numbers, one for each block of a sharded tensor's elements."""

    total: int
    first: int
    num: int


def is_sharded(tensor: Tensor) -> bool:
    """Whether the ranks hold different parts of `tensor`."""
    return isinstance(tensor, DTensor)


def num_shards(tensor: Tensor) -> int:
    """How many parts `tensor` is divided into."""
    if not isinstance(tensor, DTensor):
        return 1
    return math.prod(
        tensor.device_mesh.size(dim) for dim, kind in enumerate(tensor.placements) if isinstance(kind, Shard)
    )


def num_ranks(tensor: Tensor) -> int:
    """How many ranks hold a part of `tensor`, copies included."""
    return tensor.device_mesh.size() if isinstance(tensor, DTensor) else 1


def take_local(tensor: Tensor) -> Tensor:
    """This rank's part as a plain tensor, in the same memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def gather_whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on every rank. Waits for all ranks if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def locate_part(tensor: Tensor) -> TensorPart:
    """This rank's part and its place."""
    if not isinstance(tensor, DTensor):
        return TensorPart.whole(tensor)
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return TensorPart(tensor.to_local(), tensor.shape, torch.Size(offset))


def locate_holder(tensor: Tensor, ranks: Ranks) -> tuple[int, int]:
    """This rank's number, from 0, among those that hold the same part, and their count. All ranks hold a plain tensor."""
    if not isinstance(tensor, DTensor):
        return ranks.rank, ranks.world_size
    mesh = tensor.device_mesh
    holder, num_holders = 0, 1
    for dim, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            holder = holder * mesh.size(dim) + mesh.get_local_rank(dim)
            num_holders *= mesh.size(dim)
    return holder, num_holders


def shard_like(tensor: Tensor, local_part: Tensor) -> Tensor:
    """A tensor of the shape of `tensor` and sharded like it, with `local_part` as this rank's part."""
    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        local_part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def locate_blocks(tensor: Tensor, block_size: int) -> BlockRange:
    """The blocks of `block_size` elements that this rank holds. `tensor` is sharded by rows, with whole blocks."""
    part = locate_part(tensor)
    row = part.shape[1:].numel()
    start, num = part.offset[0] * row, part.tensor.numel()
    assert num == 0 or start % block_size == 0, "a block is cut between two ranks"
    total = -(-part.shape.numel() // block_size)
    return BlockRange(total, min(start // block_size, total), -(-num // block_size))


def num_sharers(tensor: Tensor) -> int:
    """Among how many ranks `apply_whole` divides matrices like `tensor`: those that share it, or all that have a copy."""
    if isinstance(tensor, DTensor):
        return num_shards(tensor)
    return dist.get_world_size() if dist.is_initialized() else 1


def apply_whole(
    like: Sequence[Tensor], parts: list[Tensor], function: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Applies `function` to whole matrices of one shape; returns this rank's part of each result.

    `function` takes matrices in a stack, [N, rows, columns], and gives theirs in `dtype`. `parts` are those of this rank,
    of matrices that are divided as the parameters `like` are. Each rank computes different ones. Of matrices that are
    sharded by rows it gathers its own, with one exchange of rows for whole matrices, and one back, in `dtype`. Of matrices
    that every rank holds, the results are gathered. Waits for the ranks that share the matrices.
    """
    first = like[0]
    if not isinstance(first, DTensor):
        return (
            list(function(torch.stack(parts)).unbind()) if num_sharers(first) == 1 else _divide(parts, function, dtype)
        )
    by_row = tuple(Shard(1) if isinstance(kind, Shard) else kind for kind in first.placements)
    by_matrix = tuple(Shard(0) if isinstance(kind, Shard) else kind for kind in first.placements)
    shape = torch.Size([len(parts), *first.shape])

    def exchange(part: Tensor, held: tuple[Placement, ...], wanted: tuple[Placement, ...]) -> Tensor:
        stride = (first.numel(), first.shape[1], 1)
        tensor = DTensor.from_local(part, first.device_mesh, held, run_check=False, shape=shape, stride=stride)
        return tensor.redistribute(placements=wanted).to_local()

    mine = exchange(torch.stack(parts), by_row, by_matrix)
    done = function(mine) if len(mine) else mine.to(dtype)
    return list(exchange(done.contiguous(), by_matrix, by_row).unbind())


def _divide(matrices: list[Tensor], function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
    """`function` of matrices that every rank holds: each rank computes as many, and one exchange gives all to all."""
    world_size, rank = dist.get_world_size(), dist.get_rank()
    share = -(-len(matrices) // world_size)
    mine = matrices[rank * share : (rank + 1) * share]
    results = torch.zeros(world_size, share, *matrices[0].shape, dtype=dtype, device=matrices[0].device)
    if mine:
        results[rank, : len(mine)] = function(torch.stack(mine))
    # As bytes, because gloo does not know bfloat16.
    dist.all_gather_into_tensor(results.view(torch.uint8).flatten(), results[rank].clone().view(torch.uint8).flatten())
    return list(results.flatten(0, 1)[: len(matrices)].unbind())


def gather_rows(like: Tensor, numbers_NR: Tensor) -> Tensor:
    """Numbers for every row of N matrices, on each rank, from those for this rank's rows, `numbers_NR`.

    The matrices are divided as the parameter `like` is. Waits for the ranks that share them.
    """
    if not isinstance(like, DTensor):
        return numbers_NR
    placements = tuple(Shard(1) if isinstance(kind, Shard) else kind for kind in like.placements)
    shape, stride = torch.Size([len(numbers_NR), like.shape[0]]), (like.shape[0], 1)
    return DTensor.from_local(
        numbers_NR, like.device_mesh, placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()


@torch.no_grad()
def fill(parameter: nn.Parameter, values: Tensor) -> None:
    """Copies `values`, a whole tensor, into the parameter; each rank takes its part."""
    part = locate_part(parameter)
    box = (slice(start, start + size) for start, size in zip(part.offset, part.tensor.shape, strict=True))
    if part.tensor.numel():
        part.tensor.copy_(values[tuple(box)])
