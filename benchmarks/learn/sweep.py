"""Decides which settings a sweep tries: each list of values by itself, or every combination."""

import itertools
from collections.abc import Sequence


def list_points(over: Sequence[str], *, is_grid: bool) -> list[list[str]]:
    """KEY=VALUE words of each point, from `KEY=A,B,C`. A comma inside brackets belongs to its value.

    Raises ConfigError if a word has no values.
    """
    from packtrain.config.load import split_word
    from packtrain.errors import ConfigError

    axes = []
    for word in over:
        key, raw = split_word(word)
        values = [value for value in _split(raw) if value]
        if not values:
            raise ConfigError(f"--over {word} has no values; write --over {key}=A,B")
        axes.append([f"{key}={value}" for value in dict.fromkeys(values)])
    if is_grid:
        return [list(point) for point in itertools.product(*axes)]
    return [[word] for axis in axes for word in axis]


def _split(text: str) -> list[str]:
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]
