"""Decides the command that continues a run: the `resume` verb, started the way this process was started."""

import os
import shutil
import sys
from pathlib import Path

from packtrain.cli.following import quote, write_command

_MODULES = ("torch.distributed.run", "torch.distributed.launch")


def continue_command(run: Path) -> str:
    """What to type in the current folder to continue `run`, quoted for a shell."""
    if sys.argv[1:2] == ["demo"]:
        # It continues by itself, and does the steps after training too.
        return write_command(*sys.argv[1:])
    torchrun = _torchrun()
    if torchrun is None:
        return write_command("resume", run)
    return " ".join(quote(word) for word in [*torchrun, "resume", str(run)])


def _torchrun() -> list[str] | None:
    """How torchrun starts this program, with its options as they were given; None without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    words = _options_of_parent()
    if words is None:
        # Some other program has started torchrun's agent.
        nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
        words = ["--nnodes", nodes] if nodes != "1" else []
        words += ["--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "packtrain"]
    torchrun = ["torchrun"] if shutil.which("torchrun") else [sys.executable, "-m", _MODULES[0]]
    return torchrun + words


def _options_of_parent() -> list[str] | None:
    """The words between torchrun and the verb on the command line of the process that started this one."""
    import psutil

    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError, OSError):
        return None
    first = next((i for i, word in enumerate(words) if Path(word).name == "torchrun" or word in _MODULES), None)
    if first is None:
        return None
    verb = next((i for i in range(first + 1, len(words)) if words[i] == sys.argv[1] and _is_ours(words[i - 1])), None)
    return None if verb is None else words[first + 1 : verb]


def _is_ours(word: str) -> bool:
    return Path(word).name in ("packtrain", "__main__.py")
