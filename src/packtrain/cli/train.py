"""`packtrain train`: a prepared dataset to a run directory."""

from pathlib import Path
from typing import Annotated

import typer

from packtrain.cli.options import AsJson, Preset, Settings


def train(
    preset: Preset,
    settings: Settings = None,
    # Two names: torchrun takes a --run among its program's words for short of its own --run-path, and stops.
    run: Annotated[
        Path | None, typer.Option("--run", "--run-dir", help="Folder of the run; --run-dir under torchrun.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped; safe to give always.")] = False,
    anneal_from: Annotated[
        Path | None,
        typer.Option(
            "--anneal-from", help="Run or checkpoint of a constant phase to go down from; sets train.anneal_from."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on a prepared dataset."""
    from packtrain.cli import screen
    from packtrain.config.load import load_run_config
    from packtrain.errors import ConfigError
    from packtrain.train.run import train as train_run

    screen.route_logging()
    if run is None:
        raise ConfigError("`packtrain train` needs a folder for the run; write --run runs/NAME")
    given = [*(settings or ()), *([f"train.anneal_from={anneal_from}"] if anneal_from else [])]
    config = load_run_config(preset, given).config
    with screen.training_progress() as (on_start, on_step):
        outcome = train_run(config, run, resume=resume, on_start=on_start, on_step=on_step)
    if not screen.is_main_rank():
        return
    if as_json:
        screen.print_json(outcome)
    else:
        screen.console.print(f"step {outcome['step']} of {outcome['steps']}, saved in {outcome['checkpoint']}")
        if outcome.get("val_loss") is not None:
            screen.console.print(
                f"validation loss {outcome['val_loss']:.4f} nats a token, {outcome['val_bpb']:.4f} bits a byte"
            )
        screen.console.print(f"\nnext: packtrain evaluate {run}", soft_wrap=True)
