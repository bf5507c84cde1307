"""Decides what a signal does: the first SIGTERM or SIGINT asks the run to save and stop, the second ends it at once."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether a stop was asked for, since the block was entered. Outside the main thread no signal is watched."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    @property
    def is_set(self) -> bool:
        return self.signal is not None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        # From here on the system's own handling: a second signal ends the process without saving.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {each: signal.signal(each, self._on_signal) for each in _SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for each, handler in self._former.items():
            signal.signal(each, handler)  # type: ignore[arg-type]
