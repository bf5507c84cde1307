"""A run that is killed at any moment ends, by the same command, bitwise like an uninterrupted one."""

import json
import subprocess
import sys

import pytest

FREQUENT = ("train.steps=60", "checkpoint.every=3")


def kill(dataset, folder, num_kills, *settings):
    """Kills that many runs, compares their ends, and returns how many were killed at which stage."""
    command = [sys.executable, "-m", "tests.train.kills", str(dataset), str(folder), str(num_kills), "0", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["in"]


@pytest.mark.slow
def test_a_killed_run_ends_the_same(dataset, tmp_path):
    assert sum(kill(dataset, tmp_path, 1, "train.steps=24", "checkpoint.every=3").values()) >= 1


@pytest.mark.very_slow
def test_fifty_killed_runs_end_the_same(dataset, tmp_path):
    hits = kill(dataset, tmp_path, 50, *FREQUENT, "evaluate.every=6")
    assert sum(hits.values()) >= 50
    assert {"starting or the first step", "a step", "saving"} <= hits.keys()


@pytest.mark.very_slow
def test_killed_runs_with_eight_bit_states_end_the_same(dataset, tmp_path):
    pytest.importorskip("bitsandbytes")
    kill(dataset, tmp_path, 15, *FREQUENT, "optim.name=adamw8bit", "data.packing=bestfit")
