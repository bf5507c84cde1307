"""Decides how the weights of a run are averaged over its steps, and when the averages take their place."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from packtrain.config.run import RunConfig
from packtrain.parallel.shards import take_local
from packtrain.parallel.wrap import reshard_parameters

# Half-life of a moving average that is not given one, as a share of the run.
_HALF_LIFE_SHARE = 0.01


class Average:
    """An average of the weights after each of `count` steps, in float32, divided over ranks as the weights are.

    With train.average=none it holds nothing. `ema`: the exponential moving average, whose weights add up to 1 from the first
    step on, as Adam's do with bias correction (arXiv 1412.6980, section 3). `tail`: the mean over the last steps (SWA, arXiv
    1803.05407, at every step).
    """

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        self._config = config
        self.weights: dict[str, Tensor] = {}
        self.count = 0
        if config.train.average != "none":
            for name, p in reshard_parameters(model).items():
                self.weights[name] = torch.zeros_like(p, requires_grad=False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has beside the tensors, if there is an average at all."""
        return {"average": {"kind": self._config.train.average, "count": self.count}} if self.weights else {}

    def continues(self, state: dict[str, Any] | None) -> bool:
        """Whether the average of a checkpoint with that `state` is one of this kind that has begun."""
        return state is not None and state["kind"] == self._config.train.average and state["count"] > 0

    @torch.no_grad()
    def update(
        self, model: nn.Module, step: int, num_steps: int, before_change: Callable[[], None] = lambda: None
    ) -> None:
        """Takes in the weights after `step` of `num_steps`. A tail begins again if the run has become longer.

        `before_change` is called just before the averages change, which a save may still read.
        """
        if not self.weights:
            return
        train = self._config.train
        if train.average == "tail" and step <= num_steps - max(1, round(train.average_share * num_steps)):
            self.count = 0
            return
        self.count += 1
        if train.average == "tail":
            weight = 1 / self.count
        else:
            decay = 0.5 ** (1 / self._half_life(num_steps))
            weight = (1 - decay) / (1 - decay**self.count)
        before_change()
        current = [take_local(p) for p in reshard_parameters(model).values()]
        torch._foreach_lerp_([take_local(mean) for mean in self.weights.values()], current, weight)

    @contextlib.contextmanager
    def in_place(self, model: nn.Module, before_change: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Puts the averages into the model for the length of the block, if they have begun. The weights come back bit for bit.

        `before_change` is called just before averages and weights change, which a save may still read.
        """
        if not self.count:
            yield
            return
        before_change()
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        for name, p in reshard_parameters(model).items():
            weight, mean = take_local(p), take_local(self.weights[name])
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def _half_life(self, num_steps: int) -> float:
        """In steps."""
        train = self._config.train
        if train.average_half_life_tokens is not None:
            return train.average_half_life_tokens / train.global_batch_tokens
        return train.average_half_life_steps or max(1.0, _HALF_LIFE_SHARE * num_steps)
