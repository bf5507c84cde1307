"""`packtrain train`: a dataset to a run."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli import screen, speak
from packtrain.cli.options import AsJson, Change, Preset, Settings
from packtrain.errors import ConfigError


def train(
    preset: Preset,
    settings: Settings = None,
    # Two names, because torchrun takes --run for an abbreviation of its own --run-path.
    run: Annotated[
        Path | None,
        typer.Option("--run", "--run-dir", metavar="FOLDER", help="Folder of the run; write --run-dir under torchrun."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the run stopped; a new run starts as without it.")
    ] = False,
    change: Change = None,
    anneal_from: Annotated[
        Path | None,
        typer.Option(
            "--anneal-from",
            metavar="RUN",
            help="Anneal from this run or checkpoint, whose learning rate is constant; sets train.anneal_from.",
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from",
            metavar="MODEL",
            help="Start from a Llama or Qwen3: a Hugging Face folder, a GGUF or a llama2.c file.",
        ),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option(
            "--continue-from",
            metavar="RUN",
            help="Start a new run from the weights of this run or checkpoint, with other data, settings or length.",
        ),
    ] = None,
    extend_vocab: Annotated[
        bool, typer.Option("--extend-vocab", help="Take the dataset's tokenizer; new tokens start as the mean of all.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on a dataset, or resume a run.

    With --resume, settings that are not typed come from the run.
    """
    from packtrain.train.origin import resolve_config

    screen.route_logging()
    if run is None:
        raise ConfigError("`packtrain train` needs a folder for the run; write --run runs/NAME")
    from_where = {"anneal_from": anneal_from, "init_from": init_from, "continue_from": continue_from}
    given = [*(settings or ()), *(f"train.{key}={path}" for key, path in from_where.items() if path)]
    given += ["train.extend_vocab=true"] if extend_vocab else []
    changed = change or ()
    if changed and not resume:
        raise ConfigError(f"--change {changed[0]} is for a run that is resumed; write {changed[0]}, or add --resume")
    config = resolve_config(preset, given, run, resume=resume, changed=changed)
    speak.train_aloud(config, run, resume=resume, preset=preset, as_json=as_json)
