"""Decides when a step takes so long that it must be hanging, and records where each process hangs."""

import faulthandler
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Self

from packtrain.config.guard import GuardConfig
from packtrain.errors import GuardError
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import Events

_log = logging.getLogger("packtrain")

# For guard.stall_seconds=auto.
_TIMES_MEDIAN = 20
_LEAST_SECONDS = 60.0
# The first steps compile, fill caches and start the loader, so their times do not count.
_FIRST_STEPS = 3
_REMEMBERED_STEPS = 64


class StallWatch:
    """A thread that watches steps while they run; also a context manager that ends it.

    If a step takes too long, the thread writes the stacks of all threads to the rank's file under stalls/, once per step,
    and the main rank records an event. With guard.stall_action=stop it then ends the process, after giving the other ranks
    time to do the same. The thread needs only the interpreter, which is free while the process waits for a device, a disk
    or another rank.
    """

    def __init__(self, config: GuardConfig, layout: RunLayout, rank: int, events: Events | None) -> None:
        self.config = config
        self.layout = layout
        self.rank = rank
        self.events = events
        self._durations: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._num_steps = 0
        # The step, its start and its deadline. Replaced as a whole, so the thread needs no lock.
        self._current: tuple[int, float, float] | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="packtrain-stall-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Watches the block as optimizer update `step`."""
        start = time.monotonic()
        self._current = (step, start, start + self.limit_s())
        try:
            yield
        finally:
            self._current = None
            self._num_steps += 1
            if self._num_steps > _FIRST_STEPS:
                self._durations.append(time.monotonic() - start)

    def limit_s(self) -> float:
        """Seconds that the next step may take; infinite while no step has been timed."""
        if self.config.stall_seconds != "auto":
            return self.config.stall_seconds
        return max(_LEAST_SECONDS, _TIMES_MEDIAN * median(self._durations)) if self._durations else math.inf

    def _look_on(self) -> None:
        given = self.config.stall_seconds
        pause_s = min(1.0, given / 4) if given != "auto" else 1.0
        reported = None
        while not self._is_over.wait(pause_s):
            watched = self._current
            if watched is None or watched == reported:
                continue
            step, start, end = watched
            if time.monotonic() > end:
                self._report(step, time.monotonic() - start)
                reported = watched
                if self.config.stall_action == "stop":
                    self._end(watched, 2 * pause_s)

    def _end(self, watched: tuple[int, float, float], grace_s: float) -> None:
        # Other ranks reach their deadline at nearly the same time. Ended sooner, they would see only a broken connection.
        self._is_over.wait(grace_s)
        if self._current == watched:
            # An exception cannot reach a main thread that waits inside a library.
            os._exit(GuardError.exit_code)

    def _report(self, step: int, seconds: float) -> None:
        path = self.layout.stall(self.rank)
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(f"step {step} has taken {seconds:.1f} s, at {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            _log.warning("rank %d: step %d has taken %.1f s; the stacks are in %s", self.rank, step, seconds, path)
            if self.events is not None:
                self.events.record("stalled", step=step, seconds=round(seconds, 1), stacks=str(path.parent))
        except OSError as error:
            # The step may be waiting for this very disk.
            _log.warning(
                "rank %d: step %d has taken %.1f s; its stacks cannot be written: %s", self.rank, step, seconds, error
            )
