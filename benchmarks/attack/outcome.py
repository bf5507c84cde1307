"""Decides how an attack can end, and how a command runs apart from this process so that its end can be judged."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

READ_RIGHT = "read right"
SAID = "went on and said so"
REFUSED = "refused"
STOPPED = "stopped, saved"
WRONG = "silently wrong"
TRACEBACK = "traceback"
LOST = "crashed or hung"
OUTCOMES = (READ_RIGHT, SAID, REFUSED, STOPPED, WRONG, TRACEBACK, LOST)
BAD = (WRONG, TRACEBACK, LOST)

TIMEOUT_S = 60.0


class Trial(NamedTuple):
    """One attack: what was attacked and how, in words, what came of it, and what to look at if that is bad."""

    target: str
    attack: str
    outcome: str
    detail: str = ""


class Ended(NamedTuple):
    """How a command ended: its exit code, or minus the signal that ended it, and what it printed; None if it hung."""

    code: int | None
    out: str
    err: str
    peak_bytes: int

    @property
    def has_traceback(self) -> bool:
        return self.code == 1 or "Traceback (most recent call last)" in self.err

    def judge(self, is_right: Callable[[], bool], sound: "Ended | None" = None) -> str:
        """The outcome. `is_right` says whether the result is the right one, and is asked only after exit code 0."""
        if self.has_traceback:
            return TRACEBACK
        if self.code is None or self.code < 0:
            return LOST
        if self.code in (2, 4):
            return REFUSED if "error: " in self.err else LOST
        if self.code == 3:
            return STOPPED
        if is_right():
            return READ_RIGHT
        return SAID if _warnings(self) - (_warnings(sound) if sound else set()) else WRONG


def run_command(words: Sequence[object], folder: Path, timeout_s: float = TIMEOUT_S) -> Ended:
    """Run a verb in a fork of this process, in `folder`, with one thread."""
    return run_apart(lambda: call_main([str(word) for word in words]), folder, timeout_s)


def run_apart(call: Callable[[], None], folder: Path, timeout_s: float = TIMEOUT_S) -> Ended:
    """Call something in a fork of this process, in `folder`. Its exit code is 0 unless `call` exits or raises."""
    out, err = folder / ".stdout", folder / ".stderr"
    child = os.fork()
    if child == 0:
        _become(call, folder, out, err)
    status, peak = _wait(child, timeout_s)
    printed = [path.read_text("utf-8", "replace") if path.exists() else "" for path in (out, err)]
    for path in (out, err):
        path.unlink(missing_ok=True)
    return Ended(status, printed[0], printed[1], peak)


def _become(call: Callable[[], None], folder: Path, out: Path, err: Path) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for path, descriptor in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace")
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace")
        call()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001  the parent judges what is printed
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        # Must not flush or close a second time what the parent has open.
        os._exit(code)


def call_main(words: list[str]) -> None:
    """Run a verb in this process, with one thread."""
    import torch

    from packtrain.cli.main import main

    torch.set_num_threads(1)
    sys.argv = ["packtrain", *words]
    main()


def _wait(child: int, timeout_s: float) -> tuple[int | None, int]:
    deadline = time.monotonic() + timeout_s
    pause = 0.002
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), _peak(usage)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            return None, _peak(usage)
        time.sleep(pause)
        pause = min(0.05, pause * 1.3)


def _peak(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * 1024


def _warnings(ended: Ended) -> set[str]:
    return {line for line in ended.err.splitlines() if "warning" in line.lower()}
