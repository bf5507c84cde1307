"""Decides where an axis begins and ends, which of its values get labels and where, and which points are drawn."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Values that differ by a smaller share than this are drawn as equal: floats could not tell their ticks apart.
_SAME = 1e-9
_LABEL_GAP_PX = 14.0


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, linear or logarithmic, with its labelled values."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Position along the axis: 0 at `low`, 1 at `high`."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float | None) -> bool:
        """Whether the value can be drawn: finite, and positive on a logarithmic axis."""
        return value is not None and math.isfinite(value) and (value > 0 or not self.is_log)

    @property
    def tick_step(self) -> float:
        """Smallest distance between two labelled values; it decides how many decimals a label needs."""
        gaps = [b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)]
        return min(gaps, default=self.high - self.low)


def linear(low: float, high: float, *, num_ticks: int = 5, room: float = 0.0) -> Scale:
    """A linear axis over [low, high], with ticks at round values.

    It extends by the share `room` of its length at either end, but not below 0 if it begins there.
    """
    # The logarithm of a difference below the smallest normal number would give no usable step.
    if high - low <= max(_SAME * max(abs(low), abs(high)), sys.float_info.min * num_ticks):
        pad = abs(low) / 10 or 1.0
        low, high = low - pad if low else 0.0, high + pad
    span = high - low
    low, high = low - room * span if low else low, high + room * span
    step = _round_step(span / num_ticks)
    return Scale(low, high, False, _multiples(step, low, high))


def logarithmic(low: float, high: float, *, num_ticks: int = 6) -> Scale:
    """A logarithmic axis over [low, high], both positive, with a little room at either end."""
    room = (high / low) ** 0.04 if high > low * (1 + _SAME) else 1.25
    low, high = low / room, high * room
    ticks: tuple[float, ...] = ()
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = tuple(v for k in _decades(low, high) for m in digits if low <= (v := m * 10.0**k) <= high)
        if len(ticks) <= num_ticks + 1:
            break
    if len(ticks) < 3:
        ticks = tuple(t for t in _multiples(_round_step((high - low) / num_ticks), low, high) if t > 0)
    return Scale(low, high, True, ticks[:: 1 + len(ticks) // (num_ticks + 2)])


def count_finite(values: "Sequence[float] | np.ndarray") -> int:
    """How many of the values are finite."""
    import numpy as np

    return int(np.isfinite(np.asarray(values, dtype=np.float64)).sum())


def find_range(values: "Sequence[float] | np.ndarray") -> tuple[float, float]:
    """The lowest and the highest finite value; NaN for both if there is none."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)


def thin(values: "Sequence[float] | np.ndarray", limit: int) -> list[int]:
    """Indices of about `limit` points that look like the whole series: each stretch keeps its extremes and one gap."""
    import numpy as np

    if len(values) <= limit:
        return list(range(len(values)))
    numbers = np.asarray(values, dtype=np.float64)
    is_finite = np.isfinite(numbers)
    num_stretches = limit // 2
    edges = np.arange(num_stretches + 1) * len(numbers) // num_stretches
    # A row for each stretch. The shorter ones end with what is never chosen: a finite value that is no extreme.
    at = edges[:-1, None] + np.arange(int(np.diff(edges).max()))
    is_inside = at < edges[1:, None]
    at = np.where(is_inside, at, 0)
    finite = is_finite[at] | ~is_inside
    is_value = is_finite[at] & is_inside
    lows, highs = np.where(is_value, numbers[at], np.inf), np.where(is_value, numbers[at], -np.inf)
    has_gap, has_value = ~finite.all(axis=1), is_value.any(axis=1)
    kept = [
        np.array([0, len(numbers) - 1]),
        (edges[:-1] + finite.argmin(axis=1))[has_gap],
        (edges[:-1] + lows.argmin(axis=1))[has_value],
        (edges[:-1] + highs.argmax(axis=1))[has_value],
    ]
    return [int(index) for index in np.unique(np.concatenate(kept))]


def running_mean(values: "Sequence[float] | np.ndarray", half_width: int) -> "np.ndarray":
    """Mean over `half_width` values before each value and as many after it, float64[values]; non-finite values are skipped.

    Near the beginning both sides shrink equally, so that the mean does not lag behind a steep fall, as an exponential
    mean does. Near the end only the later side shrinks, so that the last mean still covers several values.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    is_finite = np.isfinite(numbers)
    sums = np.concatenate(([0.0], np.cumsum(np.where(is_finite, numbers, 0.0))))
    counts = np.concatenate(([0], np.cumsum(is_finite)))
    at = np.arange(len(numbers))
    reach = np.minimum(half_width, at)
    first, stop = at - reach, np.minimum(at + reach + 1, len(numbers))
    count = counts[stop] - counts[first]
    return np.where(count > 0, (sums[stop] - sums[first]) / np.maximum(count, 1), np.nan)


def spread_labels(positions: Sequence[float], lowest: float) -> list[float]:
    """Label positions moved apart so that none covers another. They keep their order and, if there is room, their place."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = list(positions)
    for before, after in zip(order, order[1:], strict=False):
        placed[after] = max(placed[after], placed[before] + _LABEL_GAP_PX)
    if order and placed[order[-1]] > lowest:
        placed[order[-1]] = lowest
        for after, before in zip(reversed(order), list(reversed(order))[1:], strict=False):
            placed[before] = min(placed[before], placed[after] - _LABEL_GAP_PX)
    return placed


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))


def _multiples(step: float, low: float, high: float) -> tuple[float, ...]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(i * step for i in range(first, last + 1))


def _decades(low: float, high: float) -> range:
    return range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
