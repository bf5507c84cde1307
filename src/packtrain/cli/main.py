"""Decides the verbs of the command line and how errors end it."""

import errno
import os
import sys

import typer

from packtrain import __version__
from packtrain.cli.config import config
from packtrain.cli.demo import demo
from packtrain.cli.diff import diff
from packtrain.cli.doctor import doctor
from packtrain.cli.evaluate import evaluate
from packtrain.cli.export import export
from packtrain.cli.generate import generate
from packtrain.cli.import_ import import_
from packtrain.cli.inspect import inspect
from packtrain.cli.plan import plan
from packtrain.cli.prepare import prepare
from packtrain.cli.report import report
from packtrain.cli.tokenizer import tokenizer
from packtrain.cli.train import train
from packtrain.cli.verify import verify
from packtrain.errors import DiskFullError, Interrupted, PacktrainError, UserError

# What a file, folder or disk of the user's may be like, whatever we do.
_NOT_OURS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ESTALE),
}

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
    import_,
    tokenizer,
    verify,
    inspect,
    diff,
    plan,
    train,
    evaluate,
    generate,
    export,
    report,
    config,
    doctor,
):
    app.command(_verb.__name__.rstrip("_"))(_verb)


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
        refused = _of_the_system(error)
        if refused is None:
            raise
        sys.exit(_refuse(refused))


def _of_the_system(error: OSError) -> PacktrainError | None:
    """What the user has to hear of an error that no room has words for; None if it looks like a bug of ours."""
    if error.errno == errno.ENOSPC:
        return DiskFullError(f"the disk is full ({error.filename or 'no file named'}); free some and try again")
    if error.filename is None or error.errno not in _NOT_OURS:
        return None
    return UserError(
        f"{os.fsdecode(error.filename)} cannot be read or written ({os.strerror(error.errno)}); mend that, or name another "
        "file or folder"
    )


def _refuse(error: PacktrainError) -> int:
    from packtrain.cli import screen

    # All processes of a run stop together, and one of them says so.
    if not (error.is_told or (isinstance(error, Interrupted) and not screen.is_main_rank())):
        screen.error(str(error))
    return error.exit_code
