"""Decides which checkpoints of a run stay: the newest, every so many steps, and the best by validation loss."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from packtrain.runs.layout import RunLayout

STATE = "state.json"


@dataclass(frozen=True)
class Retention:
    """`newest`: how many of the newest stay. `every`: those of steps that it divides stay for ever; 0: none besides."""

    newest: int
    every: int = 0

    def prune(self, layout: RunLayout, saved: int) -> None:
        """After the step `saved` was: removes what earlier saves left half-written, and the checkpoints that are not to stay.

        Those of later steps are left alone: the run went on from before them, so they were not whole, and must not take
        the place of those that are.
        """
        for aside in layout.checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(aside, ignore_errors=True)
        steps = [step for step in layout.saved_steps() if step <= saved]
        best = best_step(layout)
        for step in steps[: -self.newest]:
            if step != best and not (self.every and step % self.every == 0):
                remove(layout.checkpoint(step))


def best_step(layout: RunLayout) -> int | None:
    """The saved step with the lowest validation loss, or None where no saved step was validated."""
    losses = {}
    for step in layout.saved_steps():
        loss = _saved_val_loss(layout.checkpoint(step))
        if loss is not None:
            losses[step] = loss
    return min(losses, key=lambda step: (losses[step], -step)) if losses else None


def remove(folder: Path) -> None:
    """Takes a checkpoint away under another name first, so that a kill in between leaves no torn one under its own."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old.tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _saved_val_loss(folder: Path) -> float | None:
    try:
        loss = json.loads((folder / STATE).read_text()).get("val_loss")
    except (OSError, ValueError):
        return None
    return None if loss is None else float(loss)
