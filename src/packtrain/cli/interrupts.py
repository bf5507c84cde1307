"""Decides what a signal does to a command that has nothing of its own to save: it ends with exit code 3 and one sentence.

It imports next to nothing, so that `__main__` can call it first and a signal is answered from the first moment on. Training
and preparation handle signals themselves while they work.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

EXIT_CODE = 3
# torchrun forwards signals and `timeout` sends them to the process and to its group, so that one request comes twice.
_SAME_REQUEST_S = 3.0
_asked: list[tuple[int, float]] = []


def answer_signals() -> None:
    """From now on SIGTERM and SIGINT raise KeyboardInterrupt, or end the process while it imports. Only in the main thread."""
    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGTERM, signal.SIGINT):
            # A shell starts background commands with SIGINT ignored; that stays so.
            if signal.getsignal(each) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(each, _on_signal)
        # What is registered first runs last: after it, the interpreter would let the system end the process.
        atexit.register(_ignore_signals)


def keep_code(code: int) -> None:
    """From now on a signal ends the process with the code of what it has already done."""
    # Either is None if it was closed before the program began.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    for each in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(each) is _on_signal:
            signal.signal(each, lambda *_: os._exit(code))


def _ignore_signals() -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        if callable(signal.getsignal(each)):
            signal.signal(each, signal.SIG_IGN)


def describe_stop() -> str:
    """What to say after a KeyboardInterrupt of a signal."""
    name = signal.Signals(_asked[0][0]).name if _asked else "SIGINT"
    if sys.argv[1:2] in (["train"], ["resume"]):
        again = " with --resume" if sys.argv[1] == "train" and "--resume" not in sys.argv else ""
        return (
            f"stopped by {name} before the first step: nothing was trained yet, and what is there stays; the same command"
            f"{again} starts or continues the run"
        )
    return f"stopped by {name}; finished work stays, and the same command can be run again"


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _asked:
        if now - _asked[0][1] >= _SAME_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _asked.append((number, now))
    if _is_importing(frame):
        # A library may turn an exception that is raised within its import into one of its own. Nothing is open yet.
        _end_now()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_now() -> None:
    if os.environ.get("RANK", "0") == "0":
        # A progress bar hides the cursor.
        shown = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
        os.write(2, f"{shown}\n{describe_stop()}\n".encode())
    os._exit(EXIT_CODE)
