"""Decides the arguments and options that several verbs share, so that they are spelt and explained alike."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from packtrain.errors import ConfigError

Preset = Annotated[str, typer.Argument(metavar="PRESET", help="Name of a preset, or a TOML file.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a TOML file.")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `packtrain train` wrote.")]
Step = Annotated[int | None, typer.Option("--step", help="The checkpoint of this step.")]
Best = Annotated[bool, typer.Option("--best", help="The checkpoint of the lowest validation loss, not the last.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def which_checkpoint(step: int | None, best: bool) -> Literal["last", "best"]:
    """What `open_run` is to take where no step is named. Raises ConfigError where both say which."""
    if best and step is not None:
        raise ConfigError(f"--best and --step {step} both pick a checkpoint; keep one")
    return "best" if best else "last"


def is_dataset(target: Path) -> bool:
    """Whether a folder is a prepared dataset: it has a manifest but, unlike a run, no configuration."""
    return (target / "manifest.json").is_file() and not (target / "config.toml").is_file()
