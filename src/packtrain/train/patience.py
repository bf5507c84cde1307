"""Decides when a run ends before its last step: its validation loss has not fallen for train.stop_after validations in a row."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

STOPPED_EARLY = "stopped_early"


class Patience(NamedTuple):
    """Where a run's validation loss stands. It follows from the lines of metrics.jsonl, so a resumed run has the same."""

    best_step: int
    best_loss: float
    """In nats per token."""
    num_since: int
    """Validations since then, none of them better."""


def find_patience(lines: Iterable[Mapping[str, Any]]) -> Patience | None:
    """How long ago the validation loss was lowest, from lines of metrics in their order; None without a finite loss.

    A loss that is not finite is not better than any other. Of equal losses, the first counts.
    """
    found: Patience | None = None
    for line in lines:
        if "val_loss" not in line:
            continue
        loss = line["val_loss"]
        is_finite = isinstance(loss, int | float) and math.isfinite(loss)
        if is_finite and (found is None or loss < found.best_loss):
            found = Patience(line["step"], float(loss), 0)
        elif found is not None:
            found = found._replace(num_since=found.num_since + 1)
    return found


def describe_stop(found: Patience, num_steps: int) -> str:
    """Why a run ends early, and what it is now, in one sentence."""
    return (
        f"the run ends before its last step, {num_steps:,}, because {found.num_since} validations in a row were not better "
        f"than that of step {found.best_step:,} ({found.best_loss:.4f} nats a token); its checkpoint is kept, and `packtrain "
        "export` takes it"
    )
