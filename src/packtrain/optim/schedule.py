"""Decides the learning rate of a step: a pure function of the step, so that a checkpoint need not save it."""

import math
from collections.abc import Callable

from packtrain.config.optim import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: int, num_steps: int) -> float:
    """Learning rate of optimizer update `step`, counted from 1 to `num_steps`.

    Rises linearly over the first `warmup(config, num_steps)` updates to `peak`, then follows the named shape down to
    `peak * min_lr_ratio`, which the last update reaches (`constant` stays at the peak).
    """
    warm = warmup(config, num_steps)
    if step <= warm:
        return peak * step / warm
    floor = config.min_lr_ratio
    share = _SHAPES[config.name](config, step - warm, num_steps - warm)
    return peak * (floor + (1 - floor) * share)


def warmup(config: ScheduleConfig, num_steps: int) -> int:
    """Warm-up steps of a run: as configured, or a tenth of the run if it is not longer than that."""
    return config.warmup_steps if config.warmup_steps < num_steps else num_steps // 10


def _cosine(_: ScheduleConfig, step: int, num_steps: int) -> float:
    """SGDR, arXiv 1608.03983, eq. 5, without restarts."""
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _linear(_: ScheduleConfig, step: int, num_steps: int) -> float:
    return 1 - step / num_steps


def _wsd(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Warm-up, stable, decay: MiniCPM, arXiv 2404.06395, section 4."""
    decay_steps = max(1, round(config.decay_fraction * num_steps)) if config.decay_fraction else 0
    left = num_steps - step
    return left / decay_steps if left < decay_steps else 1.0


def _constant(_: ScheduleConfig, __: int, ___: int) -> float:
    return 1.0


# Each takes the step after the warm-up and the number of such steps; it returns 1 at the peak and 0 at the floor.
_SHAPES: dict[str, Callable[[ScheduleConfig, int, int], float]] = {
    "cosine": _cosine,
    "wsd": _wsd,
    "linear": _linear,
    "constant": _constant,
}
