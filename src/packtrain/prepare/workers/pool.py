"""Decides which process does which task: local workers, each replaced when it dies or has done its share."""

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
from typing import Any, NamedTuple, Self

from packtrain.errors import SourceError

# The tokenizer's memory grows with the text it has seen; a new process starts small.
TASKS_PER_WORKER = 64
ATTEMPTS = 3


class Task(NamedTuple):
    """A call of a function that can be imported, and its subject in words; `attempt` is passed as a keyword."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    about: str


class LocalWorkers:
    """Workers on this machine for one series of tasks after another; a context, whose processes end with it.

    A single worker is this process. Several are a process each, so that a task that kills its worker is known. The processes
    also end with this one, however it ends.
    """

    def __init__(self, count: int) -> None:
        self._seats = [_Seat() for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            seat.leave()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """Run all tasks; yields (number, result) of each when it finishes, in no fixed order.

        A task whose worker dies is tried again in a new process. It gets the number of its attempt, so that it can do less at
        once. If the last attempt dies too, SourceError names the task. What a task raises is raised here.
        """
        if len(self._seats) == 1:
            with _one_thread():
                for number, task in enumerate(tasks):
                    yield number, task.function(*task.arguments, attempt=1)
            return
        waiting = iter(enumerate(tasks))
        running: dict[Future[Any], tuple[_Seat, int, int]] = {}
        for seat, (number, task) in zip(self._seats, waiting, strict=False):
            running[seat.submit(task, 1)] = (seat, number, 1)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                seat, number, attempt = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    seat.leave()
                    if attempt == ATTEMPTS:
                        raise SourceError(describe_kill(tasks[number])) from None
                    running[seat.submit(tasks[number], attempt + 1)] = (seat, number, attempt + 1)
                    continue
                yield number, result
                following = next(waiting, None)
                if following is not None:
                    running[seat.submit(following[1], 1)] = (seat, following[0], 1)


def describe_kill(task: Task) -> str:
    """The error for a task that killed its worker at every attempt."""
    return (
        f"the worker on {task.about} was killed {ATTEMPTS} times, most likely because memory ran out; lower prepare.workers or "
        "prepare.slice_documents and run the same command again: finished slices are kept"
    )


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Seat:
    """One worker process at a time."""

    def __init__(self) -> None:
        self._executor: ProcessPoolExecutor | None = None
        self._done = 0

    def submit(self, task: Task, attempt: int) -> Future[Any]:
        if self._done >= TASKS_PER_WORKER:
            self.leave()
        try:
            return self._send(task, attempt)
        except BrokenProcessPool:
            # It died between two tasks, so neither is to blame.
            self.leave()
            return self._send(task, attempt)

    def _send(self, task: Task, attempt: int) -> Future[Any]:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker)
            self._done = 0
        self._done += 1
        with _hidden_main():
            return self._executor.submit(task.function, *task.arguments, attempt=attempt)

    def leave(self) -> None:
        if self._executor is not None:
            # Shutdown alone would wait for the running task, which may take minutes.
            for process in list((self._executor._processes or {}).values()):
                process.kill()
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


def _start_worker() -> None:
    os.environ.update(ONE_THREAD)
    # Ctrl-C reaches the whole process group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit the tokenizer to one thread, as in a worker process; it reads the variable at every call."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = ONE_THREAD[key]
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a process that starts now from importing the caller's script, which may lack a `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
