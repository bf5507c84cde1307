"""Whether workers on Ray do each task once, and name what went wrong and on which node."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.corpora import files_of, recipe, sentences, write_jsonl
from tests.prepare.workers.test_pool import die_always, die_at_first, fail, square

from packtrain.config.load import to_toml
from packtrain.errors import ConfigError, DatasetError, SourceError
from packtrain.prepare.run import prepare
from packtrain.prepare.workers.pool import Task
from packtrain.prepare.workers.ray import RayWorkers
from packtrain.storage.store import LocalStore, Store


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine, to which this process is connected; starting one takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        # Its workers have to find the tasks of these tests.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def run(tasks: list[Task], store: Store) -> dict[int, Any]:
    with RayWorkers(2, None, store) as workers:
        return dict(workers.run(tasks))


@pytest.mark.parametrize(
    ("address", "why"), [("127.0.0.1:1", "Connection refused"), ("ray://head:1", "neither auto nor HOST:PORT")]
)
def test_an_address_without_a_cluster_is_named(tmp_path: Path, address: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"prepare\.ray_address={address} leads to no Ray cluster \(.*{why}"):
        RayWorkers(None, address, LocalStore(tmp_path)).__enter__()
    with pytest.raises(ValueError, match=r"write prepare\.executor=ray, or leave it out"):
        recipe("stdlib", prepare__ray_address=address)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_every_task_is_done_once_elsewhere(tmp_path: Path) -> None:
    results = run([Task(square, (n,), f"task {n}") for n in range(7)], LocalStore(tmp_path))
    assert {n: r[0] for n, r in results.items()} == {n: n * n for n in range(7)}
    assert os.getpid() not in {r[2] for r in results.values()}
    assert list(tmp_path.rglob("*")) == [tmp_path / ".work"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_costs_a_retry_of_its_task_alone(tmp_path: Path) -> None:
    tasks = [Task(square, (n,), f"task {n}") for n in range(4)]
    tasks.insert(2, Task(die_at_first, (2, tmp_path / "mark"), "the deadly one"))
    results = run(tasks, LocalStore(tmp_path))
    assert (tmp_path / "mark").read_text() == "123"
    assert results[2] == 3
    assert [results[n][0] for n in (0, 1, 3, 4)] == [0, 1, 4, 9]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.very_slow
def test_a_task_that_kills_again_is_named(tmp_path: Path) -> None:
    tasks = [Task(square, (1,), "harmless"), Task(die_always, (), "slice 00007 (a.jsonl, rows 0 to 9)")]
    with pytest.raises(SourceError, match=r"slice 00007 \(a\.jsonl, rows 0 to 9\) was killed 3 times"):
        run(tasks, LocalStore(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_a_task_raises_is_raised_here_with_its_node(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"as it should \(seen from the Ray node"):
        run([Task(fail, (), "a"), Task(fail, (), "b")], LocalStore(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with RayWorkers(2, None, LocalStore(tmp_path)) as workers:
        # As on a node whose own disk has a folder of this name.
        [probe] = tmp_path.glob(".work/ray-*")
        probe.write_text("another")
        with pytest.raises(
            DatasetError, match=r"does not see .* as this machine does; write an --out on a file system"
        ):
            list(workers.run([Task(square, (1,), "a")]))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_bytes_are_those_of_the_local_workers(tiny_source: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"source__id_column": "id", "prepare__slice_documents": 50}
    prepare(recipe("jsonl", tiny_source, prepare__executor="ray", prepare__workers=2, **settings), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_dataset)


def start(made: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "packtrain", "prepare", str(made), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ray_workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that do a task of ours right now."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "_on_node" in child.name() or "_on_node" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.very_slow
def test_a_whole_run_with_killed_workers_and_an_interrupt(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prepare__slice_documents": 100, "prepare__workers": 2}
    source = write_jsonl(tmp_path / "a.jsonl", sentences(3000))
    made = tmp_path / "made.toml"
    made.write_text(to_toml(recipe("jsonl", source, prepare__executor="ray", **settings)))
    out = tmp_path / "out"
    process = start(made, out)
    killed = 0
    while process.poll() is None and killed < 3:
        for worker in ray_workers_of(process)[:1]:
            worker.kill()
            killed += 1
        time.sleep(0.05)
    while process.poll() is None and len(list(out.glob(".work/tokens/*.json"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert (process.returncode, killed) == (3, 3), error
    assert "run the same command to continue" in error
    again = start(made, out)
    output, error = again.communicate(timeout=300)
    assert again.returncode == 0, output + error
    prepare(recipe("jsonl", source, **settings), tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")


# In a process of its own, as one process has one connection to Ray.
TWO_NODES = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from packtrain.config.load import from_toml
from packtrain.config.recipe import Recipe
from packtrain.prepare.run import prepare

made, out = from_toml(Recipe, Path(sys.argv[1]).read_text(), sys.argv[1]), Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
made = made.model_copy(update={"prepare": made.prepare.model_copy(update={"ray_address": cluster.address})})

def lose_a_node():
    while len(list(out.glob(".work/tokens/*.json"))) < 3:
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)

thread = threading.Thread(target=lose_a_node)
thread.start()
prepare(made, out)
thread.join()
cluster.shutdown()
"""


@pytest.mark.very_slow
def test_an_existing_cluster_that_loses_a_node(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(2000))
    made = recipe("jsonl", source, prepare__executor="ray", prepare__slice_documents=50, prepare__workers=2)
    (tmp_path / "made.toml").write_text(to_toml(made))
    command = [sys.executable, "-c", TWO_NODES, str(tmp_path / "made.toml"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    prepare(recipe("jsonl", source, prepare__slice_documents=50), tmp_path / "clean")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")
