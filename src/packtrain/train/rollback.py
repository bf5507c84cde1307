"""Decides how a run goes back: to a good checkpoint, but past the data since; and how a resumed run does so again.

`events.jsonl` says all that is needed: each `rolled_back` event holds the step that the run went back to and the state
of the loader that it went on with. Configuration and events together give every row of every step.
"""

import dataclasses
from typing import Any

from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.runs.retention import remove

ROLLED_BACK = "rolled_back"
ANNEALING = "annealing"


def rolled_back(layout: RunLayout, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` as the run last went on from it: past the data that a rollback to it passed over, if there was one."""
    last: dict[str, Any] | None = None
    for event in read_jsonl(layout.events):
        if event["event"] == "saved" and event["step"] == checkpoint.step:
            last = None
        elif event["event"] == ROLLED_BACK and event["to_step"] == checkpoint.step:
            last = event
    if last is None:
        return checkpoint
    guard = checkpoint.state.get("guard", {}) | {"num_rollbacks": last["num_rollbacks"]}
    return dataclasses.replace(checkpoint, state=checkpoint.state | {"loader": last["loader"], "guard": guard})


def place_of_step(layout: RunLayout, step: int, *, rows_per_step: int, num_rows: int) -> int:
    """The row with which `step` of a run begins, counted from the beginning over epochs of `num_rows`."""
    # After how many steps the run stood at which row, as the last course of it has it.
    turns = [(0, 0)]
    for event in read_jsonl(layout.events):
        if event["event"] in (ANNEALING, ROLLED_BACK):
            after, loader = event.get("to_step", 0), event["loader"]
            turns = [turn for turn in turns if turn[0] < after]
            turns.append((after, loader["epoch"] * num_rows + loader["samples_consumed"]))
    after, place = [turn for turn in turns if turn[0] < step][-1]
    return place + (step - 1 - after) * rows_per_step


def abandon_after(layout: RunLayout, step: int) -> None:
    """Removes the checkpoints after `step`: they belong to a course of the run that is given up."""
    for later in layout.saved_steps():
        if later > step:
            remove(layout.checkpoint(later))
