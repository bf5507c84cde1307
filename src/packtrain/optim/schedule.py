"""Decides the learning rate, weight decay and momentum of a step: pure functions of it, so that a checkpoint need not save them."""

import math
from collections.abc import Callable

from packtrain.config.optim import OptimConfig, ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: int, num_steps: int) -> float:
    """Learning rate of optimizer update `step`, counted from 1 to `num_steps`.

    Rises linearly over the first `warmup(config, num_steps)` updates to `peak`, then follows the named shape down to
    `peak * min_lr_ratio`, which the last update reaches (`constant` stays at the peak).
    """
    warm = warmup(config, num_steps)
    if step <= warm:
        return peak * step / warm
    floor = config.min_lr_ratio
    share = _SHAPES[config.name](config, step, warm, num_steps)
    return peak * (floor + (1 - floor) * share)


def warmup(config: ScheduleConfig, num_steps: int) -> int:
    """Warm-up steps of a run: as configured, or a tenth of the run if it is not longer than that."""
    return config.warmup_steps if config.warmup_steps < num_steps else num_steps // 10


def decay_steps(config: ScheduleConfig, num_steps: int) -> int:
    """Steps in which `wsd` decays: `decay_fraction` of all steps, or those after the warm-up if they are fewer."""
    if not config.decay_fraction:
        return 0
    return min(max(1, round(config.decay_fraction * num_steps)), num_steps - warmup(config, num_steps))


def weight_decay(config: OptimConfig, step: int, num_steps: int, lr: float) -> float:
    """Weight decay at optimizer update `step`, counted from 1 to `num_steps`, whose learning rate is `lr`.

    The update multiplies it by `lr` whatever the schedule: with `lr`, it falls with the square of the learning rate.
    """
    if config.decay_schedule == "lr":
        return config.weight_decay * (lr / config.lr)
    if config.decay_schedule == "cosine":
        return config.weight_decay * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return config.weight_decay


def momentum(config: OptimConfig, step: int) -> float:
    """Muon's momentum at optimizer update `step`, counted from 1: in a straight line from `momentum_start` to `momentum`.

    As in Keller Jordan's runs (github.com/KellerJordan/modded-nanogpt), which rise from 0.85 to 0.95 over 300 steps.
    """
    if step > config.momentum_warmup_steps:
        return config.momentum
    share = (step - 1) / config.momentum_warmup_steps
    return (1 - share) * config.momentum_start + share * config.momentum


def _cosine(_: ScheduleConfig, step: int, warm: int, num_steps: int) -> float:
    """SGDR, arXiv 1608.03983, eq. 5, without restarts."""
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (num_steps - warm)))


def _linear(_: ScheduleConfig, step: int, warm: int, num_steps: int) -> float:
    return 1 - (step - warm) / (num_steps - warm)


def _wsd(config: ScheduleConfig, step: int, _: int, num_steps: int) -> float:
    """Warm-up, stable, decay: MiniCPM, arXiv 2404.06395, section 4."""
    left, decay = num_steps - step, decay_steps(config, num_steps)
    return _DECAYS[config.decay_shape](left / decay) if left < decay else 1.0


# By the share of the decay that is left, in [0, 1[.
_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    # "1-sqrt": arXiv 2405.18392, section 4.
    "sqrt": lambda left: 1 - math.sqrt(1 - left),
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
}


def _constant(_: ScheduleConfig, __: int, ___: int, ____: int) -> float:
    return 1.0


# Each takes a step after the warm-up, the steps of the warm-up and of the run; it returns 1 at the peak and 0 at the floor.
_SHAPES: dict[str, Callable[[ScheduleConfig, int, int, int], float]] = {
    "cosine": _cosine,
    "wsd": _wsd,
    "linear": _linear,
    "constant": _constant,
}
