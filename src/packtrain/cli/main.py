"""Decides how errors end the program."""

import errno
import os
import sys

import typer

from packtrain import __version__
from packtrain.cli import screen
from packtrain.cli.completion import COMPLETED_BY
from packtrain.cli.first_screen import ABOUT
from packtrain.cli.interrupts import describe_stop
from packtrain.cli.usage import UsageError, refusal
from packtrain.cli.verbs import Verbs
from packtrain.errors import DiskFullError, Interrupted, PacktrainError, UserError

# Errors that come from the user's files, folders or disk.
_NOT_OURS = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ESTALE),
}

# What the library makes of a KeyboardInterrupt outside of a verb.
_INTERRUPTED_PARSER = 130

app = typer.Typer(
    name="packtrain",
    cls=Verbs,
    help=ABOUT,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    if version:
        print(f"packtrain {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UserError.exit_code)


def main() -> None:
    """Entry point of the `packtrain` command. Exit codes are those of `errors`; 1 is our own bug, with its traceback."""
    if COMPLETED_BY in os.environ:
        from typer.completion import completion_init

        completion_init()
    try:
        code = app(prog_name="packtrain", standalone_mode=False) or 0
        if code == _INTERRUPTED_PARSER:
            raise KeyboardInterrupt
        sys.exit(code)
    except PacktrainError as error:
        sys.exit(_refuse(error))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(_refuse(Interrupted(describe_stop())))
    except UsageError as error:
        sys.exit(_refuse(refusal(error)))
    except BrokenPipeError:
        # Whatever read our output has ended, as `head` does.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        refused = _of_the_system(error)
        if refused is None:
            raise
        sys.exit(_refuse(refused))


def _of_the_system(error: OSError) -> PacktrainError | None:
    """What to say of a system error that nothing else has explained; None if it looks like a bug of ours."""
    if error.errno == errno.ENOSPC:
        return DiskFullError(
            f"the disk is full ({error.filename or 'no file named'}); free some space and run the command again"
        )
    if error.filename is None or error.errno not in _NOT_OURS:
        return None
    return UserError(
        f"{os.fsdecode(error.filename)} cannot be read or written ({os.strerror(error.errno)}); fix that, or name another "
        "file or folder"
    )


def _refuse(error: PacktrainError) -> int:
    # All processes of a run stop together; one of them says why.
    if isinstance(error, Interrupted):
        if screen.is_main_rank():
            screen.stopped(str(error), error.command)
    elif not error.is_reported:
        screen.error(str(error))
    return error.exit_code
