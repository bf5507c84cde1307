"""Whether local workers do each task once, and a killed worker costs only a retry."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from packtrain.errors import SourceError
from packtrain.prepare.workers.pool import LocalWorkers, Task


def run(tasks: Sequence[Task], workers: int) -> list[tuple[int, Any]]:
    with LocalWorkers(workers) as opened:
        return list(opened.run(tasks))


def square(number: int, *, attempt: int) -> tuple[int, int, int]:
    return number * number, attempt, os.getpid()


def die_at_first(times: int, mark: Path, *, attempt: int) -> int:
    with mark.open("a") as file:
        file.write(f"{attempt}")
    if attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


def die_always(*, attempt: int) -> None:  # noqa: ARG001
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*, attempt: int) -> None:  # noqa: ARG001
    raise SourceError("as it should")


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_is_done_once(workers: int) -> None:
    results = dict(run([Task(square, (n,), f"task {n}") for n in range(7)], workers))
    assert {n: r[0] for n, r in results.items()} == {n: n * n for n in range(7)}
    assert ({r[2] for r in results.values()} == {os.getpid()}) == (workers == 1)


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_worker_costs_a_retry_of_its_task_alone(tmp_path: Path, times: int) -> None:
    tasks = [Task(square, (n,), f"task {n}") for n in range(4)]
    tasks.insert(2, Task(die_at_first, (times, tmp_path / "mark"), "the deadly one"))
    results = dict(run(tasks, 2))
    assert (tmp_path / "mark").read_text() == "123"[: times + 1]
    assert results[2] == times + 1
    assert [results[n][0] for n in (0, 1, 3, 4)] == [0, 1, 4, 9]


def test_a_task_that_kills_again_is_named() -> None:
    tasks = [Task(square, (1,), "harmless"), Task(die_always, (), "slice 00007 (a.jsonl, rows 0 to 9)")]
    with pytest.raises(SourceError, match=r"slice 00007 \(a\.jsonl, rows 0 to 9\) was killed 3 times"):
        run(tasks, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_is_raised_here(workers: int) -> None:
    with pytest.raises(SourceError, match="as it should"):
        run([Task(fail, (), "a"), Task(fail, (), "b")], workers)


def test_processes_are_the_same_for_one_series_after_another() -> None:
    with LocalWorkers(2) as workers:
        first, second = (
            {result[2] for _, result in workers.run([Task(square, (n,), "a") for n in range(6)])} for _ in range(2)
        )
    assert second <= first
    assert os.getpid() not in first


def what_it_is(*, attempt: int) -> dict[str, Any]:  # noqa: ARG001
    names = ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS")
    maps = Path("/proc/self/maps")
    shared = [line for line in maps.read_text().splitlines() if "/dev/shm/" in line] if maps.exists() else []
    return {
        "environment": {name: os.environ.get(name) for name in names},
        "started": psutil.Process().cmdline(),
        "shared": shared,
    }


def test_a_worker_is_spawned_has_one_thread_and_shares_no_memory() -> None:
    for _, found in run([Task(what_it_is, (), "a")] * 2, 2):
        assert "spawn_main" in " ".join(found["started"])
        one = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        assert found["environment"] == one
        assert not found["shared"]


@pytest.mark.slow
def test_a_worker_is_replaced_before_its_tokenizer_grows_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packtrain.prepare.workers.pool.TASKS_PER_WORKER", 2)
    results = run([Task(square, (n,), "a") for n in range(8)], 2)
    assert len({process for _, (_, _, process) in results}) >= 4


def test_a_worker_killed_between_two_tasks_is_replaced() -> None:
    with LocalWorkers(2) as workers:
        first = dict(workers.run([Task(square, (n,), "a") for n in range(2)]))
        for pid in {result[2] for result in first.values()}:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        second = dict(workers.run([Task(square, (n,), "a") for n in range(4)]))
    assert {n: r[:2] for n, r in second.items()} == {n: (n * n, 1) for n in range(4)}


def test_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    run([Task(square, (1,), "a")], 1)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from tests.prepare.workers.test_pool import run, square
from packtrain.prepare.workers.pool import Task
print(sorted(r[0] for _, r in run([Task(square, (n,), "a") for n in range(3)], 2)))
"""


def test_a_script_without_a_main_guard_works(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[3])))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "[0, 1, 4]\n", done.stderr


WAITING = """
import sys, time
sys.path.insert(0, {tests!r})
from tests.prepare.workers.test_pool import run, wait_long
from packtrain.prepare.workers.pool import Task
run([Task(wait_long, (), "a")] * 2, 2)
"""


def wait_long(*, attempt: int) -> None:  # noqa: ARG001
    time.sleep(300)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed() -> None:
    code = WAITING.format(tests=str(Path(__file__).parents[3]))
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        family = psutil.Process(parent.pid)
        wait_for(lambda: len(workers_of(family)) == 2)
        workers = workers_of(family)
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in a minute"
        time.sleep(0.02)


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.4])
def test_ctrl_c_shows_no_worker_s_traceback(delay_s: float) -> None:
    """Sent to the process group while its leader starts two workers."""
    code = WAITING.format(tests=str(Path(__file__).parents[3])).replace("run([", "print('starting', flush=True); run([")
    code = f"try:\n{textwrap.indent(code, '    ')}\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "starting\n"
        time.sleep(delay_s)
        os.killpg(parent.pid, signal.SIGINT)
        out, err = parent.communicate(timeout=60)
    assert (out, err, parent.returncode) == ("interrupted\n", "", 0)


def kill_tracker(*, attempt: int) -> None:  # noqa: ARG001
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None
    for child in psutil.Process(parent.pid).children():
        if "resource_tracker" in " ".join(child.cmdline()):
            child.kill()


def test_the_end_of_the_library_s_tracker_is_no_matter(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalWorkers(2) as workers:
        list(workers.run([Task(kill_tracker, (), "a"), Task(square, (1,), "b")]))
        for seat in workers._seats:
            seat.leave()
        assert dict(workers.run([Task(square, (n,), "a") for n in range(3)])).keys() == {0, 1, 2}
    assert capfd.readouterr().err == ""


class AwkwardError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def fail_awkwardly(*, attempt: int) -> None:  # noqa: ARG001
    raise AwkwardError(1, 2)


def test_an_error_that_cannot_be_sent_is_told() -> None:
    with pytest.raises(RuntimeError, match="AwkwardError: 1 and 2"):
        run([Task(fail_awkwardly, (), "a")] * 2, 2)
