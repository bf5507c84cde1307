"""Exact resume. Kill a run at any moment and resume it: weights and metrics end bitwise the same as if it had never
stopped, on a CPU; on a GPU it sees the same rows. With a different number of processes, it still sees the same global batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.promises.conftest import train
from tests.train.conftest import TINY
from tests.train.test_resume import final_state

from packtrain.data.feed.loader import Loader
from packtrain.data.format.shards import open_dataset
from packtrain.data.rows.pack import plan

KILLED = """
import os, signal, sys
from pathlib import Path
from packtrain.config.load import load_run_config
from packtrain.train.run import train

def kill_at_step_7(record):
    if record["step"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)

train(load_run_config("demo", sys.argv[2:]).config, Path(sys.argv[1]), resume=True, on_step=kill_at_step_7)
"""


@pytest.mark.slow
def test_a_killed_and_resumed_run_is_bitwise_the_run_that_never_stopped(
    run: Path, prepared: Path, tmp_path: Path
) -> None:
    words = [str(tmp_path / "killed"), *TINY, f"data.dataset={prepared}"]
    assert subprocess.run([sys.executable, "-c", KILLED, *words], check=False).returncode == -9
    assert train(prepared, tmp_path / "killed")["step"] == 10
    assert final_state(tmp_path / "killed") == final_state(run)


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_sees_the_same_global_batches(prepared: Path, world_size: int) -> None:
    layout = plan(open_dataset(prepared).split("train"), 32, "concat")
    with Loader(layout, rows_per_step=8, seed=1) as alone:
        expected = [next(alone) for _ in range(10)]
        state = expected[4].state
    shares = []
    for rank in range(world_size):
        # Resumed after five steps, which one process took.
        settings = {"rows_per_step": 8, "seed": 1, "rank": rank, "world_size": world_size, "state": state}
        with Loader(layout, **settings) as loader:
            shares.append([next(loader) for _ in range(5)])
    for step, whole in enumerate(expected[5:]):
        assert torch.equal(torch.cat([share[step].rows.inputs_BT for share in shares]), whole.rows.inputs_BT)
        assert torch.equal(torch.cat([share[step].rows.targets_BT for share in shares]), whole.rows.targets_BT)
