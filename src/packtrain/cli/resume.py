"""`packtrain resume`: a stopped run, continued from its own folder."""

from typing import Annotated

import typer

from packtrain.cli import screen, speak
from packtrain.cli.options import AsJson, Change, Run


def resume(
    run: Run,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Values that change no number, such as train.device=cpu; others need --change.",
        ),
    ] = None,
    change: Change = None,
    as_json: AsJson = False,
) -> None:
    """Continue a run where it stopped, with its own settings.

    Everything comes from the run's folder. It works under torchrun as well.
    """
    from packtrain.runs.layout import find_run
    from packtrain.train.resume import continue_config

    screen.route_logging()
    config = continue_config(find_run(run), settings or (), change or ())
    speak.train_aloud(config, run, resume=True, as_json=as_json)
