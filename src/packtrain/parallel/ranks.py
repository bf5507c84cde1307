"""Decides which of torchrun's processes this one is, and has the few collectives that a run needs."""

import contextlib
import gc
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from packtrain.config.parallel import ParallelConfig
from packtrain.errors import ConfigError, DeviceError, Interrupted, PacktrainError, RankLostError


@dataclass(eq=False)
class Channel:
    """A connection of the processes through main memory. Each thread that uses collectives needs its own."""

    group: Any = None
    """None: this process alone."""

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in their order. Waits for all of them."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. Waits for all of them."""
        if self.group is None:
            return flag
        count = torch.tensor(int(flag))
        dist.all_reduce(count, group=self.group)
        return bool(count)

    def close(self) -> None:
        """Frees the process group."""
        self.group = None


@dataclass(frozen=True)
class Ranks:
    """This process's place among the others. With one process every collective is the identity."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    channel: Channel = field(default_factory=Channel)
    timeout: timedelta | None = None
    """How long a collective may wait for the others."""
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False, compare=False)
    """Frees what refers to process groups, before the groups end."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value_N: Tensor) -> Tensor:
        """`value_N` summed over all ranks, the same on each. Waits for all of them."""
        if self.world_size > 1:
            dist.all_reduce(value_N)
        return value_N

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. Waits for all of them, but not for their devices."""
        return self.channel.any(flag)

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in their order. Waits for all of them."""
        return self.channel.gather(value)

    def new_channel(self) -> Channel:
        """Another channel. Every rank must call this."""
        if self.world_size == 1:
            return Channel()
        channel = Channel(dist.new_group(backend="gloo", timeout=self.timeout))
        self.at_end.callback(channel.close)
        return channel

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Waits at the end of the block for all ranks. If one raises a PacktrainError in it, all raise that error."""
        error: PacktrainError | None = None
        try:
            yield
        except PacktrainError as raised:
            error = raised
        errors = [each for each in self.gather(error) if each is not None]
        if errors:
            errors[0].is_reported = not self.is_main
            raise errors[0]


def available_backends() -> list[str]:
    """Those of gloo and NCCL that this build of torch has."""
    return [name for name in ("gloo", "nccl") if dist.is_available() and getattr(dist, f"is_{name}_available")()]


def launched_by_torchrun() -> bool:
    return "WORLD_SIZE" in os.environ and _read_number("WORLD_SIZE") > 1


def _read_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ConfigError(
            f"{name}={value or 'nothing'} in the environment is not a number, and processes that train together need one; start "
            "them with torchrun or examples/slurm.sh, or unset WORLD_SIZE"
        )
    return int(value)


def read_local_place() -> tuple[int, int]:
    """This process's number among those that were started on its machine, and how many those are. Joins nothing."""
    if not launched_by_torchrun():
        return 0, 1
    return _read_number("LOCAL_RANK"), _read_number("LOCAL_WORLD_SIZE")


@contextlib.contextmanager
def join_processes(device: torch.device, config: ParallelConfig | None = None) -> Iterator[Ranks]:
    """Joins the process group for the length of the block, from the environment that torchrun sets; without it, one process.

    `device` is the one that this process uses, and `config` says how long it waits for the others. Raises RankLostError if
    they do not come in time, or do not answer later.
    The processes leave together unless one fails. When the block ends, nothing outside it may refer to objects made in it
    that use the other processes, such as a sharded model.
    """
    if not launched_by_torchrun():
        yield Ranks()
        return
    place: dict[str, Any] = {
        key: _read_number(key.upper()) for key in ("rank", "local_rank", "world_size", "local_world_size")
    }
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={place['world_size']} is set but {missing[0]} is not, so the processes cannot find each other; start "
            "them with torchrun or examples/slurm.sh, or unset WORLD_SIZE"
        )
    config = config or ParallelConfig()
    timeout = timedelta(seconds=config.timeout_s)
    on_gpu = device.type == "cuda"
    store = _meet(config.join_timeout_s)
    store.set_timeout(timeout)
    with _explain_lost_rank():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=place["rank"],
            world_size=place["world_size"],
            timeout=timeout,
            # NCCL connects at once, on this device, and not at the first collective, on a guess.
            device_id=device if on_gpu else None,
        )
        ranks = Ranks(**place, channel=Channel(dist.new_group(backend="gloo", timeout=timeout)), timeout=timeout)
        try:
            yield ranks
        except Interrupted as error:
            # All ranks raise this one.
            _drop_frames(error)
            _leave_together(ranks)
            raise
        except BaseException:
            # The others may wait for this rank; it must not wait for them, as a thread that still sends to one would not end.
            dist.destroy_process_group()
            raise
        _leave_together(ranks)


def _meet(timeout_s: float) -> dist.Store:
    """The store at the first process's address, once all processes have come to it."""
    met: queue.Queue[dist.Store | Exception] = queue.Queue()
    # In a thread of its own: the library waits without end for an address that accepts a connection and never answers.
    threading.Thread(target=_rendezvous, args=(timeout_s, met), name="packtrain-join", daemon=True).start()
    cause: Exception | None = None
    try:
        # Later than the library's own limit, so that its thread has usually ended.
        result = met.get(timeout=timeout_s + min(timeout_s, 5.0))
        if not isinstance(result, Exception):
            return result
        if not isinstance(result, dist.DistError):
            raise result
        cause = result
    except queue.Empty as error:
        cause = error
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    raise RankLostError(
        f"not all processes of the run met at {where} within {timeout_s:g} s (MASTER_ADDR and MASTER_PORT, the machine of the "
        "first process); start every process, check that each machine reaches that address and port, or raise "
        "parallel.join_timeout_s if some start later"
    ) from cause


def _rendezvous(timeout_s: float, met: "queue.Queue[dist.Store | Exception]") -> None:
    deadline = time.monotonic() + timeout_s
    try:
        store, _, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
        # Under torchrun the store is there before the processes, so that connecting to it says nothing about the others.
        if store.add("packtrain/joined", 1) % world_size == 0:
            store.set("packtrain/all_joined", "1")
        store.wait(["packtrain/all_joined"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
        met.put(store)
    except Exception as error:  # noqa: BLE001  raised again by the thread that waits
        met.put(error)


def _leave_together(ranks: Ranks) -> None:
    """Ends the groups and their threads, before the interpreter ends.

    A gloo thread may hold the tensor that it sent last until long after it arrived, and needs the interpreter to free it.
    An interpreter that is shutting down kills the thread inside a destructor, and the process ends by SIGABRT. A group's
    threads end with the last reference to it.
    """
    # DDP refers to its group from reference cycles. Collect those first: a group that is freed by the collector would wait
    # for its threads while they wait for the interpreter.
    gc.collect()
    # Everything is saved by now. A rank that has ended has said why.
    with contextlib.suppress(RuntimeError):
        dist.barrier(ranks.channel.group)
    ranks.channel.close()
    ranks.at_end.close()
    dist.destroy_process_group()


def _drop_frames(error: BaseException) -> None:
    """Frees the local variables of the functions that an error passed through."""
    raised: BaseException | None = error
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__cause__ or raised.__context__


@contextlib.contextmanager
def _explain_lost_rank() -> Iterator[None]:
    """Turns the library's error of a broken connection into one sentence: another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        if "out of memory" in str(error):
            raise DeviceError(
                "NCCL finds no memory on a GPU of this machine: end the other processes on it (`nvidia-smi` lists them), or lower "
                "train.micro_batch_size"
            ) from error
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise RankLostError(
            f"another process of the run has ended ({reason}); its last messages give the cause; run the same command with "
            "--resume to continue from the last checkpoint"
        ) from error
