"""The Slurm script's body, with the variables that Slurm sets and a `srun` that starts its tasks on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.conftest import TINY
from tests.train.test_distributed import assert_same_run

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"

# Two nodes of one task each; forwards SIGTERM to the tasks, as Slurm does, and exits with the highest exit code.
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 99
shift
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"' TERM
code=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2> /dev/null; do wait "$task"; ended=$?; done
    [ "$ended" -gt "$code" ] && code=$ended
done
exit "$code"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost
[ "$1" = requeue ] && touch "$REQUEUED"
exit 0
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts the script with further arguments, as Slurm would."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (commands / "python").symlink_to(sys.executable)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(port - 20000),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
    }
    return lambda *arguments: subprocess.Popen(
        [SCRIPT, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.very_slow
def test_a_job_that_runs_out_of_time_is_queued_again_and_ends_like_one_that_did_not(dataset, tiny, tmp_path, slurm):
    settings = ["train.micro_batch_size=2", "train.steps=150", "checkpoint.every=50", "parallel.mode=fsdp"]
    arguments = ["demo", *TINY, f"data.dataset={dataset}", *settings, "--run", tmp_path / "job"]
    job = slurm(*arguments)
    deadline = time.monotonic() + 120
    while len(read_jsonl(tmp_path / "job" / "metrics.jsonl")) < 5:
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
        time.sleep(0.02)
    # Slurm signals the steps of a job, not its script.
    step = next(pid for pid in _children(job.pid) if b"srun" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(step, signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 0, output
    assert "stopped by SIGTERM" in output
    assert (tmp_path / "requeued").is_file()
    again = slurm(*arguments)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    train(tiny(*settings), tmp_path / "alone", resume=False)
    assert_same_run(tmp_path / "alone", tmp_path / "job", rel=1e-3)


def _children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
