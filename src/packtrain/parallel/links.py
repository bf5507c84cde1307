"""Decides whether what devices send each other arrives: copies between them and an all-reduce, compared number by number.

With the IOMMU on, or with a driver that was patched to open direct copies between consumer cards, they come out as zeros
without an error. Run as a module, this is one of the processes in which `doctor` tries an all-reduce.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from packtrain.errors import DeviceError
from packtrain.parallel.ranks import Ranks

NO_DIRECT_COPIES = "NCCL_P2P_DISABLE"
WAIT_S = 60.0
"""Seconds after which an all-reduce that has not ended hangs; the first one also connects the devices."""
# How many numbers are sent: libraries send few of them in another way than many.
_COUNTS = {"cpu": (2**10,), "cuda": (2**10, 2**22)}
# What the target holds before: neither zero nor a number that is sent.
_BEFORE = -1
_LEAVING_S = 30.0


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def copy_between(
    devices: Sequence[torch.device], copy: Callable[[Tensor, Tensor], object] = _copy
) -> dict[tuple[int, int], str]:
    """What is wrong with a copy from one of `devices` to another, by their places; empty if each arrives whole, both ways."""
    wrong: dict[tuple[int, int], str] = {}
    for first, source in enumerate(devices):
        for second, target in enumerate(devices):
            if first != second and (found := _try_copy(source, target, copy)):
                wrong[first, second] = found
    return wrong


def _try_copy(source: torch.device, target: torch.device, copy: Callable[[Tensor, Tensor], object]) -> str | None:
    for count in _COUNTS[source.type]:
        sent = _numbers(count)
        try:
            arrived = torch.full((count,), _BEFORE, dtype=torch.int32, device=target)
            copy(sent.to(source), arrived)
            found = describe_difference(sent, arrived.cpu())
        except RuntimeError as error:
            found = f"an error: {str(error).splitlines()[0][:200]}"
        if found:
            return found
    return None


def sum_over_ranks(rank: int, world_size: int, device: torch.device, wait_s: float = WAIT_S) -> str | None:
    """What is wrong with this rank's result of an all-reduce; None if every number is right. Every rank must call this.

    Waits `wait_s` seconds at most. Of two sizes on a GPU: up to 16 MB, some milliseconds once the ranks are connected.
    """
    end = time.monotonic() + wait_s
    for count in _COUNTS[device.type]:
        value = _numbers(count).to(device) * (rank + 1)
        work = dist.all_reduce(value, async_op=True)
        while not work.is_completed():
            if time.monotonic() > end:
                return f"nothing within {wait_s:g} s"
            time.sleep(0.001)
        # Raises what went wrong on the way.
        work.wait()
        if found := describe_difference(_numbers(count) * (world_size * (world_size + 1) // 2), value.cpu()):
            return found
    return None


def describe_difference(expected: Tensor, found: Tensor) -> str | None:
    """What arrived in place of `expected`, in words; None if they are equal."""
    if torch.equal(expected, found):
        return None
    if not found.any():
        return "zeros"
    if (found == _BEFORE).all():
        return "nothing"
    return f"{int((expected != found).sum()):,} of {expected.numel():,} numbers wrong"


def check_links(ranks: Ranks, device: torch.device, wait_s: float = WAIT_S) -> None:
    """Raises DeviceError, on every rank, if an all-reduce over them gives wrong numbers or does not end. Waits for all ranks."""
    if ranks.world_size == 1:
        return
    wrong = sum_over_ranks(ranks.rank, ranks.world_size, device, wait_s)
    if wrong and wrong.startswith("nothing"):
        # The group waits for the all-reduce when it ends, and the process for the group.
        _end_within(_LEAVING_S)
    places = {rank: found for rank, found in enumerate(ranks.gather(wrong)) if found}
    if places:
        rank, found = next(iter(places.items()))
        set_already = os.environ.get(NO_DIRECT_COPIES) == "1"
        cure = "run `packtrain doctor`" if set_already else f"set {NO_DIRECT_COPIES}=1, or run `packtrain doctor`"
        error = DeviceError(
            f"an all-reduce over {ranks.world_size} processes gave {found} on process {rank} (wrong on {len(places)} of them), "
            f"so they cannot train together: what one {device.type} device sends does not arrive at the other; {cure} on each "
            "machine to find the cause"
        )
        error.is_reported = not ranks.is_main
        raise error


def _numbers(count: int) -> Tensor:
    """Numbers from 1 to 65,521, none of them zero: few enough that sums over many ranks are exact."""
    return torch.arange(count, dtype=torch.int32) % 65_521 + 1


def _end_within(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (DeviceError.exit_code,))
    timer.daemon = True
    timer.start()


def _main() -> None:
    """One process of an all-reduce, alone with the others: prints what is wrong with its result as JSON."""
    store, rank, world_size, kind, wait_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    on_gpu = kind == "cuda"
    device = torch.device(kind, rank) if on_gpu else torch.device(kind)
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=2 * float(wait_s)),
        device_id=device if on_gpu else None,
    )
    found = sum_over_ranks(rank, world_size, device, float(wait_s))
    print(json.dumps({"wrong": found}), flush=True)
    # A group whose all-reduce hangs does not end, and one that ends early takes away what the others still read.
    if found is None:
        dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    _main()
