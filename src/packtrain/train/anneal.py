"""Decides how an annealing run begins: with the weights, optimizer state and data position of another run's constant phase."""

import dataclasses
import math

from packtrain.config.run import RunConfig
from packtrain.errors import RunError
from packtrain.optim.schedule import learning_rate
from packtrain.parallel.ranks import Ranks
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.configuration import config_of
from packtrain.runs.manifest import read_manifest
from packtrain.runs.metrics import read_events
from packtrain.train.predecessor import find_checkpoint
from packtrain.train.resume import refuse_another
from packtrain.train.rollback import apply_rollback


def annealing_start(config: RunConfig, ranks: Ranks) -> Checkpoint:
    """The checkpoint that train.anneal_from names, as step 0 of the annealing run; the count of tokens continues.

    Raises CheckpointError if there is none, RunError if its run has another model, rows, optimizer or learning rate, or was
    no longer in its constant phase.
    """
    assert config.train.anneal_from is not None
    layout, found = find_checkpoint(config.train.anneal_from, "train.anneal_from", "anneal", ranks)
    saved = config_of(layout, found.folder)
    refuse_another(saved, config, str(layout.folder))
    if saved.optim.lr != config.optim.lr:
        raise RunError(
            f"{layout.folder} was trained at optim.lr={saved.optim.lr:g}, where annealing must start; "
            f"write optim.lr={saved.optim.lr:g}"
        )
    # The manifest has the length at the start of the run, but the run may have been made longer since.
    lengths = [
        event["steps"] for event in read_events(layout.events) if event["event"] == "resumed" and "steps" in event
    ]
    num_steps = saved.given_steps or (lengths[-1] if lengths else read_manifest(layout).get("steps"))
    if num_steps is None:
        raise RunError(f"{layout.manifest} does not say how many steps the run has; restore a copy of it")
    rate = learning_rate(saved.effective_schedule, saved.optim.lr, found.step, num_steps)
    if not math.isclose(rate, saved.optim.lr):
        raise RunError(
            f"{found.folder} is not from a constant phase (its learning rate is {rate:.3g}, the peak {saved.optim.lr:g}); "
            "give a checkpoint between warm-up and decay of a run with schedule.name=constant or wsd"
        )
    found = apply_rollback(layout, found)
    return dataclasses.replace(found, state=found.state | {"step": 0, "val_loss": None, "guard": {}, "average": None})
