"""Decides how to look at a tensor that may be spread over ranks: what of it lies here, and where that belongs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from packtrain.parallel.ranks import Ranks


@dataclass(frozen=True)
class Shard:
    """What this rank holds of a tensor of shape `shape`: the box of `local`'s shape at `offset`.

    `holder` of `num_holders` ranks that hold the same box, counted from 0.
    """

    local: Tensor
    shape: torch.Size
    offset: torch.Size
    holder: int
    num_holders: int


@dataclass(frozen=True)
class Blocks:
    """The part of a vector of `total` numbers, one for each block of a spread tensor's elements, that belongs here."""

    total: int
    first: int
    num: int


def is_spread(tensor: Tensor) -> bool:
    """Whether the ranks hold different parts of `tensor`."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds, as a plain tensor in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank. Waits for all ranks where it is spread."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_of(tensor: Tensor, ranks: Ranks) -> Shard:
    """This rank's part. A plain tensor is taken for one that every rank holds."""
    if not isinstance(tensor, DTensor):
        origin = torch.Size([0] * tensor.dim())
        return Shard(tensor, tensor.shape, origin, ranks.rank, ranks.world_size)
    mesh = tensor.device_mesh
    _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    copies = [dim for dim, placement in enumerate(tensor.placements) if isinstance(placement, Replicate)]
    holder, num_holders = 0, 1
    for dim in copies:
        holder = holder * mesh.size(dim) + mesh.get_local_rank(dim)
        num_holders *= mesh.size(dim)
    return Shard(tensor.to_local(), tensor.shape, torch.Size(offset), holder, num_holders)


def spread_like(tensor: Tensor, local_part: Tensor) -> Tensor:
    """`local_part` as this rank's part of a tensor that is spread as `tensor` is, of the same shape."""
    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        local_part,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def blocks_of(tensor: Tensor, block_size: int, ranks: Ranks) -> Blocks:
    """Which blocks of `block_size` elements lie here. The tensor is spread by rows, and no block over two ranks."""
    shard = shard_of(tensor, ranks)
    row = shard.shape[1:].numel()
    start, num = shard.offset[0] * row, shard.local.numel()
    assert num == 0 or start % block_size == 0, "a block lies on two ranks"
    total = -(-shard.shape.numel() // block_size)
    return Blocks(total, min(start // block_size, total), -(-num // block_size))


@torch.no_grad()
def fill(parameter: nn.Parameter, values: Tensor) -> None:
    """Makes `values`, the whole tensor, the content of the parameter; each rank takes its part."""
    if not isinstance(parameter, DTensor):
        parameter.copy_(values)
        return
    part = parameter.to_local()
    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    if part.numel():
        part.copy_(values[tuple(slice(start, start + size) for start, size in zip(offset, part.shape, strict=True))])
