"""Whether killed workers and killed runs leave a dataset with the same bytes."""

import hashlib
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from tests.corpora import files_of, recipe, sentences, write_jsonl
from tests.prepare.test_run import run_alone
from tests.prepare.workers.test_pool import workers_of

from packtrain.config.recipe import Recipe
from packtrain.prepare.run import prepare

KILLS = 24


def hashes_of(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files_of(folder).items()}


def source(folder: Path, workers: int) -> Recipe:
    path = folder / "a.jsonl"
    if not path.exists():
        write_jsonl(path, [*sentences(2500), *sentences(300)])
    return recipe("jsonl", path, prepare__slice_documents=40, prepare__workers=workers)


@pytest.mark.very_slow
def test_one_two_three_and_eight_workers_give_the_same_hashes(tmp_path: Path) -> None:
    hashes = []
    for workers in (1, 2, 3, 8):
        prepare(source(tmp_path, workers), tmp_path / str(workers))
        hashes.append(hashes_of(tmp_path / str(workers)))
    assert all(found == hashes[0] for found in hashes)


@pytest.mark.very_slow
def test_kills_of_workers_and_of_the_whole_at_random_moments(tmp_path: Path) -> None:
    draw = random.Random(20)
    prepare(source(tmp_path, 1), tmp_path / "clean")
    clean = hashes_of(tmp_path / "clean")
    killed = {"worker": 0, "whole": 0}
    finished = 0
    while sum(killed.values()) < KILLS:
        out = tmp_path / f"out{finished}"
        process = run_alone(source(tmp_path, draw.choice([2, 3])), out)
        while process.poll() is None:
            whom = draw.choice(["worker", "whole"])
            try:
                process.wait(draw.uniform(0.5, 4.0))
            except subprocess.TimeoutExpired:
                killed[whom] += kill(process, whom, draw)
        if process.returncode == 0:
            assert hashes_of(out) == clean
            finished += 1
        else:
            # 2: one slice's worker was killed three times, so it was named.
            assert process.returncode in (-signal.SIGKILL, 2)
    out = tmp_path / f"out{finished}"
    assert run_alone(source(tmp_path, 2), out).wait() == 0
    assert hashes_of(out) == clean
    assert min(killed.values()) > 3


def kill(process: subprocess.Popen[bytes], whom: str, draw: random.Random) -> int:
    """Kill the process or one of its workers; 0 if there is none."""
    if whom == "whole":
        process.kill()
        process.wait()
        return 1
    try:
        victim = draw.choice(workers_of(psutil.Process(process.pid)) or [None])
        if victim is None:
            return 0
        victim.kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


@pytest.mark.very_slow
def test_two_processes_at_once_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = source(tmp_path, 1)
    processes = [run_alone(made, out) for _ in range(2)]
    codes = sorted(process.wait() for process in processes)
    # The second is refused, or came when the first was done.
    assert codes in ([0, 2], [0, 0])
    prepare(made, tmp_path / "clean")
    assert hashes_of(out) == hashes_of(tmp_path / "clean")


@pytest.mark.very_slow
def test_a_rerun_after_a_kill_does_only_what_is_missing(tmp_path: Path) -> None:
    out, made = tmp_path / "out", source(tmp_path, 2)
    process = run_alone(made, out)
    while process.poll() is None and len(list(out.glob(".work/tokens/*.json"))) < 5:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(list(out.glob(".work/tokens/*.json")))
    again = prepare(made, out)
    assert (again.scanned, again.tokenized) == (0, 70 - done)
