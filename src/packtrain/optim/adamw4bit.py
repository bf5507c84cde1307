"""Decides how 4-bit AdamW steps: torchao's states and update, compiled on a GPU, a slice at a time without a compiler on the CPU."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# It tells of every kernel that this build of torch has no use for.
logging.getLogger("torchao").setLevel(logging.ERROR)

from torchao.optim import AdamW4bit  # noqa: E402
from torchao.optim.adam import single_param_adam  # noqa: E402
from torchao.optim.subclass_4bit import OptimState4bit  # noqa: E402

# Elements updated at once on the CPU; a multiple of the 128 that share a scale, so that slices change no number.
SLICE = 2**20


class SlicedAdamW4bit(AdamW4bit):
    """AdamW with 4-bit states (arXiv 2309.01507) in blocks of 128; tensors that such blocks do not fill stay in float32.

    Eagerly a whole embedding would take a dozen float32 and int64 copies of itself; compiled there are none, but a
    compiler for the CPU is not on every machine.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "the gradients are there already"
        if self.param_groups[0]["params"][0].device.type != "cpu":
            super().step()
            return
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = self._new_buffer(p, True)
                    state["exp_avg_sq"] = self._new_buffer(p, False)
                state["step"] += 1
                for weights, grad, mean, square in _slices(p, p.grad, state["exp_avg"], state["exp_avg_sq"]):
                    single_param_adam(
                        weights,
                        grad,
                        state["step"],
                        mean,
                        square,
                        None,
                        group["lr"],
                        beta1,
                        beta2,
                        group["weight_decay"],
                        group["eps"],
                        True,
                        False,
                    )


def rebuild(codes: Tensor, scale: Tensor, qmap: Tensor, *, is_signed: bool, like: Tensor) -> Tensor:
    """The state of parameter `like` from the tensors that `__tensor_flatten__` names."""
    return OptimState4bit(codes, scale, qmap, is_signed, like.shape, dtype=like.dtype)


def _slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the tensors' same elements, at most SLICE of them at a time; the first is contiguous."""
    for start in range(0, tensors[0].numel(), SLICE):
        yield tuple(_slice(t, start, min(start + SLICE, tensors[0].numel())) for t in tensors)


def _slice(tensor: Tensor, start: int, stop: int) -> Tensor:
    if not isinstance(tensor, OptimState4bit):
        return tensor.detach().view(-1)[start:stop]
    block = tensor.block_size
    return OptimState4bit(
        tensor.codes[start // 2 : stop // 2],
        tensor.scale[start // block : stop // block],
        tensor.qmap,
        tensor.signed,
        (stop - start,),
        dtype=tensor.dtype,
    )
