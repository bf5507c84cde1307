"""Decides how a run goes back: to a good checkpoint, but past the data since; and how a resumed run does so again.

`events.jsonl` says all that is needed: each `rolled_back` event holds the step that the run went back to and the state
of the loader that it went on with. Configuration and events together give every row of every step.
"""

import dataclasses
from typing import Any

from packtrain.data.feed.course import Course
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_events
from packtrain.runs.retention import remove

ROLLED_BACK = "rolled_back"
ANNEALING = "annealing"


def rolled_back(layout: RunLayout, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` as the run last went on from it: past the data that a rollback to it passed over, if there was one."""
    last: dict[str, Any] | None = None
    for event in read_events(layout.events):
        if event["event"] == "saved" and event["step"] == checkpoint.step:
            last = None
        elif event["event"] == ROLLED_BACK and event["to_step"] == checkpoint.step:
            last = event
    if last is None:
        return checkpoint
    guard = checkpoint.state.get("guard", {}) | {"num_rollbacks": last["num_rollbacks"]}
    return dataclasses.replace(checkpoint, state=checkpoint.state | {"loader": last["loader"], "guard": guard})


def course_of(layout: RunLayout, *, rows_per_step: int, num_rows: int) -> Course:
    """How the run went through its data, of `num_rows` an epoch: what its steps have been trained on in the end."""
    turns, skipped = [(0, 0)], {}
    for event in read_events(layout.events):
        kind, step = event["event"], event.get("step", 0)
        if kind in (ANNEALING, ROLLED_BACK):
            step, loader = event.get("to_step", 0), event["loader"]
            place = loader["epoch"] * num_rows + loader["samples_consumed"]
            turns = [*(turn for turn in turns if turn[0] < step), (step, place)]
        elif kind == "started":
            turns = [(0, 0)]
        elif kind == "resumed":
            # From a checkpoint before the turn: that will be taken anew, or not.
            turns = [turn for turn in turns if turn[0] <= step]
        elif kind == "saved":
            # A checkpoint of the course before the turn, made anew.
            turns = [turn for turn in turns if turn[0] < step]
        elif kind == "skipped":
            skipped[step] = event["reason"]
            continue
        if kind != "saved":
            skipped = {number: reason for number, reason in skipped.items() if number <= step}
    return Course(rows_per_step, tuple(turns), skipped)


def abandon_after(layout: RunLayout, step: int) -> None:
    """Removes the checkpoints after `step`: they belong to a course of the run that is given up."""
    for later in layout.saved_steps():
        if later > step:
            remove(layout.checkpoint(later))
