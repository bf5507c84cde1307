"""Decides who this process is among those that torchrun started, and offers the few collectives that a run needs."""

import contextlib
import gc
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from packtrain.errors import ConfigError, Interrupted, PacktrainError, RankLostError


@dataclass(eq=False)
class Channel:
    """A line between the processes' main memories. A thread that talks to its like in other processes needs one of its own."""

    group: Any = None
    """None: of this process alone."""

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, in their order. Waits for all of them."""
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
        """Lets go of the other processes."""
        self.group = None


@dataclass(frozen=True)
class Ranks:
    """This process's place. Alone, every collective is the identity."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    channel: Channel = field(default_factory=Channel)
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False, compare=False)
    """What lets go of the processes' groups before they end."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, value_N: Tensor) -> Tensor:
        """`value_N` summed over all ranks, the same on each. Waits for all of them."""
        if self.world_size > 1:
            dist.all_reduce(value_N)
        return value_N

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank. Waits for all of them, and not for what their devices are at."""
        return self.channel.any(flag)

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, in their order. Waits for all of them."""
        return self.channel.gather(value)

    def new_channel(self) -> Channel:
        """A further line between the processes; every rank has to ask for it."""
        if self.world_size == 1:
            return Channel()
        channel = _new_channel()
        self.at_end.callback(channel.close)
        return channel

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Waits at the end of the block for all ranks: where one fails in it with an error of ours, all raise that error."""
        error: PacktrainError | None = None
        try:
            yield
        except PacktrainError as raised:
            error = raised
        errors = [each for each in self.gather(error) if each is not None]
        if errors:
            errors[0].is_reported = not self.is_main
            raise errors[0]


def launched_by_torchrun() -> bool:
    return "WORLD_SIZE" in os.environ and _place("WORLD_SIZE") > 1


def _place(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise ConfigError(
            f"{name}={value or 'nothing'} in the environment is no number, which processes that train together need; start them "
            "by torchrun or examples/slurm.sh, or unset WORLD_SIZE"
        )
    return int(value)


@contextlib.contextmanager
def joined(device_type: str, timeout: timedelta = timedelta(minutes=30)) -> Iterator[Ranks]:
    """The process group for the length of the block, from the environment that torchrun sets; alone without it.

    All leave it together, except where one fails. What was made in the block and speaks to the other processes (a model
    that is spread over them) must not be held from outside of it when it ends.
    """
    if not launched_by_torchrun():
        yield Ranks()
        return
    place: dict[str, Any] = {
        key: _place(key.upper()) for key in ("rank", "local_rank", "world_size", "local_world_size")
    }
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={place['world_size']} is set and {missing[0]} is not, so the processes cannot find each other; start "
            "them by torchrun or examples/slurm.sh, or unset WORLD_SIZE"
        )
    if device_type == "cuda":
        torch.cuda.set_device(place["local_rank"])
    with _others_lost():
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=timeout)
        ranks = Ranks(**place, channel=_new_channel())
        try:
            yield ranks
        except Interrupted as error:
            # All ranks raise this one.
            _drop_frames(error)
            _leave_together(ranks)
            raise
        except BaseException:
            # The others may wait for this rank, and it not for them: a thread that still sends to one would not end.
            dist.destroy_process_group()
            raise
        _leave_together(ranks)


def _leave_together(ranks: Ranks) -> None:
    """Ends the groups and their threads.

    A thread of gloo's may hold the tensor that it sent last until long after that has arrived, and must ask the interpreter
    to let it go. From an interpreter that is ending meanwhile the answer is the end of the thread, within a destructor,
    and so that of the process by SIGABRT. So the threads end before, which they do with the last reference to their group.
    """
    # What averages gradients refers to the group from within cycles. It goes first, as a group that ended with it would
    # wait for its threads without letting them have the interpreter.
    gc.collect()
    # By now all is saved. A rank that is gone has said why.
    with contextlib.suppress(RuntimeError):
        dist.barrier(ranks.channel.group)
    ranks.channel.close()
    ranks.at_end.close()
    dist.destroy_process_group()


def _drop_frames(error: BaseException) -> None:
    """Lets go of what the functions that an error has come through still hold."""
    raised: BaseException | None = error
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__cause__ or raised.__context__


def _new_channel() -> Channel:
    return Channel(dist.new_group(backend="gloo"))


@contextlib.contextmanager
def _others_lost() -> Iterator[None]:
    """Says in one sentence that another process is gone, which the library tells as a broken connection."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise RankLostError(
            f"another process of the run is gone ({reason}); what it said last has the cause, and the same command with "
            "--resume goes on from the last checkpoint"
        ) from error
