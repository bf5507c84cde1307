"""`packtrain train`: a prepared dataset to a run directory."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    preset: Annotated[str, typer.Argument(metavar="PRESET", help="Name of a preset, or a TOML file.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")] = None,
    # Two names: torchrun takes a --run among its program's words for short of its own --run-path, and stops.
    run: Annotated[
        Path | None, typer.Option("--run", "--run-dir", help="Folder of the run; --run-dir under torchrun.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped; safe to give always.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Train a model on a prepared dataset."""
    from packtrain.cli import screen
    from packtrain.config.load import load_run_config
    from packtrain.errors import ConfigError

    screen.route_logging()
    if run is None:
        raise ConfigError("`packtrain train` needs a folder for the run; write --run runs/NAME")
    resolved = load_run_config(preset, settings or ())
    outcome = run_training(resolved.config, run, resume=resume)
    if as_json:
        screen.print_json(outcome)
    elif outcome:
        screen.console.print(f"step {outcome['step']} of {outcome['steps']}, saved in {outcome['checkpoint']}")
        if outcome.get("val_loss") is not None:
            screen.console.print(
                f"validation loss {outcome['val_loss']:.4f} nats a token, {outcome['val_bpb']:.4f} bits a byte"
            )
        screen.console.print(f"\nnext: packtrain evaluate {run}", soft_wrap=True)


def run_training(config: Any, run: Path, *, resume: bool) -> dict[str, Any]:
    """Trains with a progress bar; gives what `train.run.train` gives, and nothing on other ranks than the main one."""
    from packtrain.cli import screen
    from packtrain.train.run import train

    with screen.training_progress() as (on_start, on_step):
        return train(config, run, resume=resume, on_start=on_start, on_step=on_step)
