"""Decides how a run rolls back: to a good checkpoint, but without the data since; and how a resumed run repeats that.

`events.jsonl` has all that is needed: each `rolled_back` event holds the step that the run rolled back to and the state
of the loader that it continued with. Configuration and events together give every row of every step.
"""

import dataclasses
from typing import Any

from packtrain.data.feed.course import Course
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_events
from packtrain.runs.retention import remove

ROLLED_BACK = "rolled_back"
ANNEALING, CONTINUING = "annealing", "continuing"


def apply_rollback(layout: RunLayout, checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` as the run last continued from it: after the data that a rollback to it skipped, if there was one."""
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


def trace_course(layout: RunLayout, *, rows_per_step: int, num_rows: int) -> Course:
    """The run's way through its data, with epochs of `num_rows`: what the steps that count were trained on."""
    turns, skipped = [(0, 0)], {}
    for event in read_events(layout.events):
        kind, step = event["event"], event.get("step", 0)
        if kind in (ANNEALING, CONTINUING, ROLLED_BACK):
            step, loader = event.get("to_step", 0), event["loader"]
            place = loader["epoch"] * num_rows + loader["samples_consumed"]
            turns = [*(turn for turn in turns if turn[0] < step), (step, place)]
        elif kind == "started":
            turns = [(0, 0)]
        elif kind == "resumed":
            # From a checkpoint before the turn, which may or may not happen again.
            turns = [turn for turn in turns if turn[0] <= step]
        elif kind == "saved":
            # A checkpoint written again, without the rollback.
            turns = [turn for turn in turns if turn[0] < step]
        elif kind == "skipped":
            skipped[step] = event["reason"]
            continue
        if kind != "saved":
            skipped = {number: reason for number, reason in skipped.items() if number <= step}
    return Course(rows_per_step, tuple(turns), skipped)


def abandon_after(layout: RunLayout, step: int) -> None:
    """Removes the checkpoints after `step`: the run rolls back and will not use them."""
    for later in layout.saved_steps():
        if later > step:
            remove(layout.checkpoint(later))
