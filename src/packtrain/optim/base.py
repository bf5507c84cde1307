"""Decides what our optimizers have beyond torch's: how their states divide over ranks, and when they are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

# Parameter groups as torch has them, each also with the `names` of its parameters.
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Sharding:
    """Functions on parameters, gradients and states that may be sharded over ranks. The defaults are for whole ones.

    `parallel.shards` has the functions for sharded ones, and `train.setup` passes them in: this room knows nothing of ranks.
    """

    is_sharded: Callable[[Tensor], bool] = lambda _: False
    take_local: Callable[[Tensor], Tensor] = torch.Tensor.detach
    """This rank's part, in the same memory."""
    num_shards: Callable[[Tensor], int] = lambda _: 1
    num_ranks: Callable[[Tensor], int] = lambda _: 1
    """How many ranks hold the tensor, copies included."""
    num_sharers: Callable[[Tensor], int] = lambda _: 1
    """Among how many ranks `apply_whole` divides matrices like this one."""
    apply_whole: Callable[[Sequence[Tensor], list[Tensor], Callable[[Tensor], Tensor], torch.dtype], list[Tensor]] = (
        lambda _, parts, function, __: list(function(torch.stack(parts)).unbind())
    )
    """Applies a function of stacked matrices, [N, rows, columns], to the matrices of one shape whose parts on this rank are
    given, divided like the given parameters; gives this rank's part of each result, in the given type."""
    gather_rows: Callable[[Tensor, Tensor], Tensor] = lambda _, numbers_NR: numbers_NR
    """Numbers for each row of all matrices from those for this rank's rows, [N, rows]; divided like the given parameter."""

    def flatten(self, tensor: Tensor) -> Tensor:
        """This rank's part in one dimension; a view if it is contiguous."""
        return self.take_local(tensor).reshape(-1)


WHOLE = Sharding()


class ShardedOptimizer(Optimizer):
    """An optimizer whose states a checkpoint can divide again, for another number of ranks."""

    state_blocks: ClassVar[Mapping[str, int]] = {}
    """Entries of its state with one number for each block of that many elements of their parameter."""

    state_entries: ClassVar[tuple[set[str], ...]] = ({"step", "exp_avg", "exp_avg_sq"},)
    """The entries that a parameter's state may consist of."""

    def elements_per_number(self, entry: str, _parameter: Tensor) -> int | None:
        """Of how many elements of its parameter an entry has one number. None: it has its parameter's shape and is sharded
        like it, or is the same on all ranks."""
        return self.state_blocks.get(entry)

    def make_states(self) -> None:
        """Makes the states of a new optimizer now. By default its first step makes them."""

    def compile_update(self) -> None:
        """Compiles what a step computes besides elementwise updates, if it does."""
