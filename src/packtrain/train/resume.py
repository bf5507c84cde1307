"""Decides which settings may differ when a run goes on: those that change what the run is are refused, the rest are named."""

import logging

from packtrain.config.load import flatten
from packtrain.config.run import RunConfig
from packtrain.errors import RunError

_log = logging.getLogger("packtrain")

# What the weights, the rows or the optimizer's state are made of.
_FIXED = (
    "model.",
    "data.seq_len",
    "data.packing",
    "data.document_mask",
    "train.seed",
    "train.global_batch_tokens",
    "optim.name",
)
# What leaves every number of the run as it is.
_FREE = (
    "data.dataset",
    "checkpoint.",
    "guard.stall_",
    "log.",
    "track.",
    "evaluate.prompts",
    "evaluate.sample_tokens",
    "parallel.",
)


def check_same_run(saved: RunConfig, given: RunConfig, folder: str) -> None:
    """Raises RunError where `given` would make another run of the one in `folder`; warns where it bends it."""
    old, new = dict(flatten(saved)), dict(flatten(given))
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if before == now or key.startswith(_FREE):
            continue
        if key.startswith(_FIXED):
            raise RunError(
                f"{folder} was trained with {key}={before} and cannot go on with {key}={now}; "
                f"write {key}={before}, or give another --run folder"
            )
        _log.warning(
            "%s was %s and is now %s: the run is no longer one that could have gone through unbroken", key, before, now
        )
