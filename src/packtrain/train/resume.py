"""Decides which settings may change when a run resumes: some are refused, some warned of, the rest change nothing."""

import logging

from packtrain.config.run import RunConfig
from packtrain.errors import RunError
from packtrain.runs.configuration import changes

_log = logging.getLogger("packtrain")

# Settings that weights, rows or optimizer state depend on.
_FIXED = (
    "model.",
    "data.seq_len",
    "data.packing",
    "data.document_mask",
    "train.seed",
    "train.global_batch_tokens",
    "optim.name",
)
# Settings that change no number of the run.
_FREE = (
    "data.dataset",
    "data.verify",
    "checkpoint.",
    "guard.stall_",
    "train.activation_gb",
    "log.",
    "track.",
    "evaluate.prompts",
    "evaluate.sample_tokens",
    "parallel.",
)


def check_same_run(saved: RunConfig, given: RunConfig, folder: str) -> None:
    """Raises RunError if `given` does not fit the run in `folder`; warns of settings that change its numbers."""
    refuse_another(saved, given, folder, (*_FIXED, "train.anneal_from"))
    for key, (before, now) in changes(saved, given).items():
        if not key.startswith(_FREE):
            _log.warning(
                "%s was %s and is now %s: no uninterrupted run could give the same numbers as this one now will",
                key,
                before,
                now,
            )


def refuse_another(saved: RunConfig, given: RunConfig, folder: str, fixed: tuple[str, ...] = _FIXED) -> None:
    """Raises RunError for the first setting under `fixed` that differs: weights, rows or optimizer state would not fit."""
    for key, (before, now) in changes(saved, given).items():
        if key.startswith(fixed):
            raise RunError(
                f"{folder} was trained with {key}={before} and cannot continue with {key}={now}; "
                f"write {key}={before}, or give another --run folder"
            )
