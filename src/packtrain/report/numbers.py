"""Decides what of a file counts as a number, one value or a whole column at a time."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def as_numbers(values: Sequence[Any]) -> "np.ndarray":
    """`number` of each value, float64[values]."""
    import numpy as np

    if not set(map(type, values)) <= {float, int, type(None)}:
        return np.array([number(value) for value in values], dtype=np.float64)
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([number(value) for value in values], dtype=np.float64)


def number(value: Any) -> float:
    """A value from a file as a float; NaN if it is not a number (training writes a non-finite one as null)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
