"""Decides how the command to type next is written, so that it works when it is pasted into the shell that this one came from."""

import shlex
import shutil
import sys
from pathlib import Path

from packtrain.cli import screen
from packtrain.data.tokens.visible import printable


def show_next(*commands: str) -> None:
    """Prints one command to type next, and others below it, each on a line of its own whatever the width of the terminal."""
    lines = [f"{'next' if number == 0 else '  or'}: {command}" for number, command in enumerate(commands)]
    screen.console.print("\n" + "\n".join(lines), markup=False, soft_wrap=True)


def write_command(*words: object) -> str:
    """A command of packtrain with these words, each quoted for the shell if it must be."""
    return " ".join([_program(), *(quote(str(word)) for word in words)])


def write_python(code: str) -> str:
    """A command that runs a line of Python in this environment."""
    return f"{_python()} -c {quote(code)}"


def quote(word: str) -> str:
    """A word as the shell reads it back; one with hidden characters in bash's and zsh's form for these, `$'...'`."""
    if printable(word) == word and "\n" not in word and "\t" not in word:
        return shlex.quote(word)
    escaped = "".join(
        c
        if c.isprintable() and c not in "'\\"
        else "".join(f"\\x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
        for c in word
    )
    return f"$'{escaped}'"


def dataset_setting(folder: str) -> str:
    """The setting that trains on a dataset."""
    folder = folder.removeprefix("file://")
    # A brace or bracket would begin a table of several datasets.
    return f"data.dataset={'./' if folder.startswith(('{', '[')) else ''}{folder}"


def name_of(folder: str) -> str:
    """The last part of a path or URL, to call other folders after."""
    return Path(folder.rstrip("/").rpartition("://")[2]).expanduser().resolve().name or "mine"


def new_run(name: str) -> Path:
    """A folder for a run that does not exist yet, called after `name` if that is free."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _program() -> str:
    called = Path(sys.argv[0])
    if shutil.which("packtrain") is None and "/" in sys.argv[0]:
        return f"{_python()} -m packtrain" if called.name == "__main__.py" else quote(str(called))
    return "packtrain"


def _python() -> str:
    """`python`, if the shell finds this environment's under that name."""
    found = shutil.which("python")
    is_this = found is not None and Path(found).parent == Path(sys.executable).parent
    return "python" if is_this else quote(sys.executable)
