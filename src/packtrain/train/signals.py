"""Decides what a signal does: the first SIGTERM or SIGINT asks the run to save and stop, the second ends it at once.

A program that trains can ask too, by what its callback returns.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import numpy as np

from packtrain.parallel.ranks import launched_by_torchrun

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# torchrun forwards signals, so one Ctrl-C in a terminal reaches its processes twice.
_SAME_REQUEST_S = 3.0


class StopRequest:
    """Whether a signal or the program asked the run to stop while the block runs. Watches no signals outside the main thread."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.is_asked = False
        """Whether the program's own callback asked."""
        self._asked_at = 0.0
        self._repeats_s = _SAME_REQUEST_S if launched_by_torchrun() else 0.0
        self._is_main = os.environ.get("RANK", "0") == "0"
        self._former: dict[signal.Signals, object] = {}

    @property
    def is_set(self) -> bool:
        return self.is_asked or self.signal is not None

    @property
    def who(self) -> str:
        """Who asked, for a sentence."""
        if self.signal is not None:
            return self.signal.name
        return "its callback" if self.is_asked else "a signal on another rank"

    def heed(self, on_step: Callable[[dict[str, Any]], object] | None) -> Callable[[dict[str, Any]], None] | None:
        """A callback that calls `on_step`, and asks to stop if that returns True."""
        if on_step is None:
            return None

        def call(record: dict[str, Any]) -> None:
            answer = on_step(record)
            if isinstance(answer, bool | np.bool_) and answer:
                self.is_asked = True

        return call

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._asked_at = signal.Signals(number), now
            self._acknowledge()
            if not self._repeats_s:
                # From now on the system handles them, without waiting for the interpreter.
                for each in _SIGNALS:
                    signal.signal(each, signal.SIG_DFL)
        elif now - self._asked_at >= self._repeats_s:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _acknowledge(self) -> None:
        """Says at once that the signal has arrived: the step that runs may take minutes."""
        if self._is_main:
            again = "; press Ctrl-C again to stop at once" if self.signal == signal.SIGINT else ""
            # Not print: the signal may have come in the middle of one.
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping: this step is finished and saved first{again}\n".encode())

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {each: signal.signal(each, self._on_signal) for each in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._former.items():
            signal.signal(each, handler)  # type: ignore[arg-type]
