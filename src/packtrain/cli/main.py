"""Decides the verbs of the command line and how errors end it."""

import errno
import sys

import typer

from packtrain import __version__
from packtrain.cli.config import config
from packtrain.cli.demo import demo
from packtrain.cli.doctor import doctor
from packtrain.cli.evaluate import evaluate
from packtrain.cli.export import export
from packtrain.cli.generate import generate
from packtrain.cli.inspect import inspect
from packtrain.cli.plan import plan
from packtrain.cli.prepare import prepare
from packtrain.cli.report import report
from packtrain.cli.tokenizer import tokenizer
from packtrain.cli.train import train
from packtrain.cli.verify import verify
from packtrain.errors import DiskFullError, PacktrainError

app = typer.Typer(
    name="packtrain",
    help="Raw text in, a trained Llama out, with nothing lost.\n\nFirst try: packtrain demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (
    demo,
    prepare,
    tokenizer,
    verify,
    inspect,
    plan,
    train,
    evaluate,
    generate,
    export,
    report,
    config,
    doctor,
):
    app.command(_verb.__name__)(_verb)


@app.callback(invoke_without_command=True)
def _options(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        print(f"packtrain {__version__}")
        raise typer.Exit()


def main() -> None:
    """Entry point of the `packtrain` command. Exit codes are those of `errors`; 1 is our own bug, with its traceback."""
    try:
        app()
    except PacktrainError as error:
        sys.exit(_refuse(error))
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.exit(
            _refuse(DiskFullError(f"the disk is full ({error.filename or 'no file named'}); free some and try again"))
        )


def _refuse(error: PacktrainError) -> int:
    from packtrain.cli import screen

    screen.error(str(error))
    return error.exit_code
