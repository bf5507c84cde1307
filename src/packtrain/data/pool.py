"""Decides which process does which slice: local workers, each replaced when it dies or has done its share."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, NamedTuple

from packtrain.errors import SourceError

# The tokenizer's memory grows with what it has seen; a new process starts clean.
_TASKS_PER_WORKER = 64
_ATTEMPTS = 2


class Task(NamedTuple):
    """A call of a function that can be imported, with what it is about in words; `attempt` is passed as a keyword."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    about: str


def run(tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
    """Do all tasks; gives (number, result) of each as it is finished, in no order.

    With one worker they are done in this process. Else each worker is a process of its own, so that when one dies, it is
    known which task killed it: that is tried once more in a new process, and if it dies again, SourceError names it. What a
    task raises is raised here. Processes end with this one, however it ends.
    """
    if workers == 1 or len(tasks) <= 1:
        with _one_thread():
            for number, task in enumerate(tasks):
                yield number, task.function(*task.arguments, attempt=1)
        return
    seats = [_Seat() for _ in range(min(workers, len(tasks)))]
    try:
        yield from _spread(tasks, seats)
    finally:
        for seat in seats:
            seat.leave()


def _spread(tasks: Sequence[Task], seats: Sequence["_Seat"]) -> Iterator[tuple[int, Any]]:
    waiting = iter(enumerate(tasks))
    running: dict[Future[Any], tuple[_Seat, int, int]] = {}

    def start(seat: _Seat, number: int, attempt: int) -> None:
        running[seat.submit(tasks[number], attempt)] = (seat, number, attempt)

    for seat, (number, _) in zip(seats, waiting, strict=False):
        start(seat, number, 1)
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            seat, number, attempt = running.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                seat.leave()
                if attempt == _ATTEMPTS:
                    raise SourceError(
                        f"the worker on {tasks[number].about} was killed {_ATTEMPTS} times, most likely for want of memory; "
                        "lower prepare.workers or prepare.slice_documents, and run again: finished slices are kept"
                    ) from None
                start(seat, number, attempt + 1)
                continue
            yield number, result
            following = next(waiting, None)
            if following is not None:
                start(seat, following[0], 1)


class _Seat:
    """One worker process at a time."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._done = 0

    def submit(self, task: Task, attempt: int) -> Future[Any]:
        if self._done >= _TASKS_PER_WORKER:
            self.leave()
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker)
            self._done = 0
        self._done += 1
        with _hidden_main():
            return self._executor.submit(task.function, *task.arguments, attempt=attempt)

    def leave(self) -> None:
        if self._executor is not None:
            for process in list((self._executor._processes or {}).values()):
                process.kill()
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


def _start_worker() -> None:
    os.environ.update(_ONE_THREAD)
    # Ctrl-C goes to the whole group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tokenizer reads this at every call, so a single worker here does what a single worker process would."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = _ONE_THREAD[key]
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Let a process that starts now import nothing of the caller's script, which may have no `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
