"""Decides which checkpoints of a run are kept: the newest, every n-th step, and the best by validation loss."""

import logging
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain.errors import CheckpointError
from packtrain.runs.layout import STATE, VALIDATION, RunLayout
from packtrain.storage.json_file import read_json, unseal

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Retention:
    """`newest`: how many of the newest are kept. `every`: steps that are a multiple of it are always kept; 0: none are."""

    newest: int
    every: int = 0

    def prune(self, layout: RunLayout, saved: int) -> None:
        """Removes incomplete saves and the checkpoints that are not kept, after step `saved` was written.

        Ignores later steps: the run resumed from before them, so they are damaged and must not count among the newest.
        """
        for aside in layout.checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(aside, ignore_errors=True)
        steps = [step for step in layout.saved_steps() if step <= saved]
        best = find_best_step(layout)
        for step in steps[: -self.newest]:
            if step != best and not (self.every and step % self.every == 0):
                remove(layout.checkpoint(step))


def find_best_step(layout: RunLayout) -> int | None:
    """The saved step with the lowest validation loss, the later of equals; None if no saved step was validated."""
    found = {step: read_val_loss(layout.checkpoint(step)) for step in layout.saved_steps()}
    losses = {step: loss for step, loss in found.items() if loss is not None}
    return min(losses, key=lambda step: (losses[step], -step)) if losses else None


def remove(folder: Path) -> None:
    """Renames a checkpoint, then deletes it, so that a kill in between does not leave a damaged one under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old.tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def read_val_loss(folder: Path) -> float | None:
    """The validation loss of a checkpoint, in nats per token; None if it was not validated, or its files are damaged."""
    try:
        if (folder / VALIDATION).exists():
            return _finite(unseal(read_json(folder / VALIDATION, CheckpointError)).get("val_loss"))
    except (CheckpointError, ValueError) as error:
        _log.warning("%s is not used: %s", folder / VALIDATION, error)
        return None
    try:
        state = read_json(folder / STATE, CheckpointError)
    except CheckpointError:
        return None
    # Earlier versions wrote it there.
    return _finite(state.get("val_loss")) if isinstance(state, dict) else None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        return None
    return float(value) if math.isfinite(value) else None
