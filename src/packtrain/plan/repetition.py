"""Decides what text that is read again is worth, and which model a corpus can feed.

U tokens read e times teach as much as U + U R (1 - exp(-(e - 1) / R)) tokens of new text, with R = 15.4: Muennighoff et al.,
"Scaling Data-Constrained Language Models", arXiv 2305.16264, with the R that it fits. It was fitted to runs of up to
9B parameters on web text; strong decay and dropout are not in it.
"""

import math
from collections.abc import Sequence
from typing import Any

from packtrain.plan.choice import MOST_EPOCHS, TOKENS_PER_PARAMETER

REPEATS = 15.4
"""R: after so many epochs beyond the first, a token that is read again is worth 1/e of a new one."""
# One epoch, with a last step that is filled from the next.
_ONE_EPOCH = 1.02
_EPOCHS_SHOWN = (1, 2, 4, 8, 16, 32, 64)


def count_as_new(unique_tokens: float, epochs: float) -> float:
    """New tokens that would teach as much as `unique_tokens` read `epochs` times."""
    if epochs <= 1:
        return unique_tokens * epochs
    return unique_tokens * (1 + REPEATS * (1 - math.exp(-(epochs - 1) / REPEATS)))


def find_epochs(unique_tokens: float, tokens: float) -> float | None:
    """Epochs of `unique_tokens` that teach as much as `tokens` new ones; None if no number of them does."""
    ratio = tokens / unique_tokens
    if ratio <= 1:
        return ratio
    left = 1 - (ratio - 1) / REPEATS
    return 1 - REPEATS * math.log(left) if left > 0 else None


def describe_text(
    num_parameters: int, epoch_tokens: int | None, epochs: float | None, sources: Sequence[dict[str, Any]] = ()
) -> dict[str, Any] | None:
    """What a run's text is worth to a model of that size; None if the text or the length of the run is unknown.

    `sources` are those of a mixture, each with `epoch_tokens` and `epochs`, as `length.Length` has them.
    """
    if not epoch_tokens or epochs is None:
        return None
    parts = [(source["epoch_tokens"], source["epochs"]) for source in sources] or [(epoch_tokens, epochs)]
    usable = TOKENS_PER_PARAMETER * num_parameters
    return {
        "worth_tokens": round(sum(count_as_new(*part) for part in parts)),
        "usable_tokens": usable,
        "usable_epochs": find_epochs(epoch_tokens, usable),
        "fed_parameters": round(count_as_new(epoch_tokens, MOST_EPOCHS) / TOKENS_PER_PARAMETER),
        "is_scarce": epochs > _ONE_EPOCH or epoch_tokens < usable,
        "readings": [_describe_reading(epoch_tokens, number) for number in _EPOCHS_SHOWN],
    }


def _describe_reading(epoch_tokens: int, epochs: int) -> dict[str, Any]:
    worth = count_as_new(epoch_tokens, epochs)
    return {
        "epochs": epochs,
        "tokens": epoch_tokens * epochs,
        "worth_tokens": round(worth),
        "fed_parameters": round(worth / TOKENS_PER_PARAMETER),
    }
