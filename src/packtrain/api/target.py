"""Decides what a folder that was given is, and which of a run's checkpoints is meant."""

import logging
from pathlib import Path
from typing import Literal

from packtrain.errors import CheckpointError, ConfigError

_log = logging.getLogger("packtrain")


def which_checkpoint(target: Path, step: int | None, best: bool, last: bool = False) -> Literal["last", "best"]:
    """Which checkpoint `open_run` takes if no step is given: of a run with train.stop_after the best, as the log then says.

    Raises ConfigError if two are given.
    """
    from packtrain.runs.configuration import read_made_by
    from packtrain.runs.layout import RunLayout
    from packtrain.runs.retention import find_best_step, read_val_loss

    given = [
        *(["--last"] if last else []),
        *(["--best"] if best else []),
        *([] if step is None else [f"--step {step}"]),
    ]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} both choose a checkpoint; keep one")
    layout = RunLayout(target)
    steps = layout.saved_steps()
    if given or not steps:
        return "best" if best else "last"
    try:
        config = read_made_by(layout.checkpoint(steps[-1]))
    except CheckpointError:
        # Opening it says what is wrong.
        return "last"
    chosen = find_best_step(layout)
    if config is None or config.train.stop_after is None or chosen is None:
        return "last"
    if chosen != steps[-1]:
        _log.info(
            "using step %s, whose validation loss of %.4f is the lowest, because the run has train.stop_after=%d; write "
            "--last for step %s",
            f"{chosen:,}",
            read_val_loss(layout.checkpoint(chosen)),
            config.train.stop_after,
            f"{steps[-1]:,}",
        )
    return "best"


def is_dataset(target: Path) -> bool:
    """Whether a folder is a prepared dataset: it has a manifest but, unlike a run, no configuration."""
    return (target / "manifest.json").is_file() and not (target / "config.toml").is_file()


def is_ladder(target: Path) -> bool:
    """Whether a folder is one that `packtrain ladder` wrote."""
    return (target / "ladder.json").is_file()
