"""Decides what a folder that was given is, and which of a run's checkpoints is meant."""

from pathlib import Path
from typing import Literal

from packtrain.errors import ConfigError


def which_checkpoint(step: int | None, best: bool) -> Literal["last", "best"]:
    """Which checkpoint `open_run` takes if no step is given. Raises ConfigError if both are given."""
    if best and step is not None:
        raise ConfigError(f"--best and --step {step} both choose a checkpoint; keep one")
    return "best" if best else "last"


def is_dataset(target: Path) -> bool:
    """Whether a folder is a prepared dataset: it has a manifest but, unlike a run, no configuration."""
    return (target / "manifest.json").is_file() and not (target / "config.toml").is_file()


def is_ladder(target: Path) -> bool:
    """Whether a folder is one that `packtrain ladder` wrote."""
    return (target / "ladder.json").is_file()
