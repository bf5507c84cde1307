"""Decides how the threads of a CPU process share a micro-batch: in lanes, which are groups of threads with rows of their own.

Threads that share each operation wait for each other hundreds of times a step; lanes wait once.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Lanes(nn.Module):
    """A model whose forward and backward passes run in `count` lanes, among which torch's threads are divided.

    Each lane gets an equal share of the rows of a batch [B, ...], and the result is the sum of theirs: for a model that
    returns a sum over rows, such as a loss. The lanes' gradients are added in a fixed order, so that the sums have the same
    bits every time. Each lane after the first needs memory for gradients of its own during the backward pass.
    """

    def __init__(self, model: nn.Module, count: int):
        super().__init__()
        self.model = model
        # In a tuple, which hides them from nn.Module: they share the weights of `model`.
        self._lanes = (model, *(_copy_for_lane(model) for _ in range(count - 1)))
        threads = max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, "lane", initializer=torch.set_num_threads, initargs=(threads,))

    def forward(self, *batch: Tensor, **arguments: Any) -> Tensor:
        """The sum of the lanes' results. Tensors are split among the lanes; each gets every other argument."""
        count = len(self._lanes)
        # These are states of a thread; the lanes' threads need the same.
        is_wanted = torch.is_grad_enabled()
        dtype, is_autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        parts = zip(*(x.chunk(count) for x in batch), strict=True)
        named = [
            {key: value.chunk(count)[k] if isinstance(value, Tensor) else value for key, value in arguments.items()}
            for k in range(count)
        ]

        def pass_forward(lane: nn.Module, part: tuple[Tensor, ...], own: dict[str, Any]) -> Tensor:
            with torch.set_grad_enabled(is_wanted), torch.autocast("cpu", dtype, enabled=is_autocast):
                return lane(*part, **own)

        sums = self._each(pass_forward, self._lanes, parts, named)
        # Without an input that requires a gradient there would be no backward pass.
        anchor = torch.empty((), requires_grad=is_wanted)
        return _Joined.apply(anchor, sums, self._backward)

    def _backward(self, sums: list[Tensor], d_total: Tensor) -> None:
        self._each(lambda total: total.backward(d_total), sums)
        own = list(self.model.parameters())
        for lane in self._lanes[1:]:
            for parameter, twin in zip(own, lane.parameters(), strict=True):
                if twin.grad is not None:
                    assert parameter.grad is not None, "every lane uses the same weights"
                    parameter.grad += twin.grad
                    twin.grad = None

    def _each(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        futures = [self._pool.submit(work, *values) for values in zip(*arguments, strict=True)]
        # Raise an error only after all lanes have stopped.
        wait(futures)
        return [future.result() for future in futures]


def split_into_lanes(model: nn.Module, count: int) -> nn.Module:
    """The model in `count` lanes; the model itself if that is one."""
    return Lanes(model, count) if count > 1 else model


def _copy_for_lane(model: nn.Module) -> nn.Module:
    """A copy of the model that shares its weights and has its own gradients."""
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach()) for p in model.parameters()})


class _Joined(torch.autograd.Function):
    """The sum of scalars of several graphs, whose backward pass is `backward(scalars, gradient)`."""

    @staticmethod
    def forward(
        ctx: Any, _anchor: Tensor, sums: list[Tensor], backward: Callable[[list[Tensor], Tensor], None]
    ) -> Tensor:
        ctx.sums, ctx.backward_of_lanes = sums, backward
        return torch.stack([total.detach() for total in sums]).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[None, None, None]:
        ctx.backward_of_lanes(ctx.sums, d_total)
        ctx.sums = None
        return None, None, None
