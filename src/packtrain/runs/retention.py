"""Decides which checkpoints of a run are kept: the newest, every n-th step, and the best by validation loss."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from packtrain.runs.layout import RunLayout

STATE = "state.json"


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
    found = {step: _read_val_loss(layout.checkpoint(step)) for step in layout.saved_steps()}
    losses = {step: loss for step, loss in found.items() if loss is not None}
    return min(losses, key=lambda step: (losses[step], -step)) if losses else None


def remove(folder: Path) -> None:
    """Renames a checkpoint, then deletes it, so that a kill in between does not leave a damaged one under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old.tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _read_val_loss(folder: Path) -> float | None:
    try:
        loss = json.loads((folder / STATE).read_text()).get("val_loss")
    except (OSError, ValueError):
        return None
    return None if loss is None else float(loss)
