"""Decides who this process is among those that torchrun started, and offers the few collectives that a run needs."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process's place. Alone, every collective is the identity."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value_N: Tensor) -> Tensor:
        """`value_N` summed over all ranks, the same on each. Waits for all of them."""
        if self.world_size > 1:
            dist.all_reduce(value_N)
        return value_N

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether `flag` is set on any rank. Waits for all of them."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def launched_by_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined(device_type: str, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """The process group for the length of the block, from the environment that torchrun sets; alone without it."""
    if not launched_by_torchrun():
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))
    if device_type == "cuda":
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timeout)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
