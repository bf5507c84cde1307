"""Decides which process does which task: local workers, each replaced when it dies or has done its share."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple, Self, cast

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
        running: dict[Connection, tuple[_Seat, int, int]] = {}
        for seat, (number, task) in zip(self._seats, waiting, strict=False):
            running[seat.submit(task, 1)] = (seat, number, 1)
        while running:
            for answer in multiprocessing.connection.wait(list(running)):
                seat, number, attempt = running.pop(cast(Connection, answer))
                try:
                    is_done, result = seat.receive()
                except (EOFError, OSError):
                    seat.leave()
                    if attempt == ATTEMPTS:
                        raise SourceError(describe_kill(tasks[number])) from None
                    running[seat.submit(tasks[number], attempt + 1)] = (seat, number, attempt + 1)
                    continue
                if not is_done:
                    raise result
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


class _Seat:
    """One worker process at a time, and the connection to it.

    Not a pool of the standard library: its semaphores need a process that tracks them, and if that process is killed, the
    next one reports each of them with a traceback.
    """

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._done = 0

    def submit(self, task: Task, attempt: int) -> Connection:
        """Sends a task to the worker; the connection on which its result will arrive."""
        if self._done >= TASKS_PER_WORKER:
            self.leave()
        try:
            return self._send(task, attempt)
        except OSError:
            # It died between two tasks, so neither is to blame.
            self.leave()
            return self._send(task, attempt)

    def receive(self) -> tuple[bool, Any]:
        """Whether the task succeeded, and its result or error. Raises EOFError or OSError if the worker died."""
        assert self._connection is not None
        found: tuple[bool, Any] = self._connection.recv()
        return found

    def _send(self, task: Task, attempt: int) -> Connection:
        if self._connection is None:
            self._start()
        assert self._connection is not None
        self._done += 1
        self._connection.send((task, attempt))
        return self._connection

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,))
        self._done = 0
        with _hidden_main(), _without_ctrl_c():
            self._process.start()
        theirs.close()

    def leave(self) -> None:
        if self._process is not None and self._process.pid is not None:
            # Its task may take minutes.
            self._process.kill()
            self._process.join()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


def _work(connection: Connection) -> None:
    """What a worker does: one task after another, as the parent sends them."""
    # Ctrl-C reaches the whole process group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.update(ONE_THREAD)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        task, attempt = connection.recv()
        try:
            answer = (True, task.function(*task.arguments, attempt=attempt))
        except BaseException as error:  # noqa: BLE001  it is raised in the parent
            answer = (False, _as_sent(error))
        connection.send(answer)


def _as_sent(error: BaseException) -> BaseException:
    """An error as it can be sent, with its traceback as a note."""
    try:
        error.add_note(traceback.format_exc())
        pickle.loads(pickle.dumps(error))
    # Each class decides how it is pickled.
    except Exception:  # noqa: BLE001
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


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
def _without_ctrl_c() -> Iterator[None]:
    """Block SIGINT in a process that starts now, until it ignores the signal itself; it would answer with a traceback."""
    # Started on the way otherwise, and starting it unblocks the signal. A killed one is not missed: it tracks nothing.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep a process that starts now from importing the caller's script, which may lack a `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
