"""What can happen to a run from outside at any moment: a signal, a process that dies, a full disk."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from packtrain.errors import DiskFullError, Interrupted
from packtrain.model.llama import Llama
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.conftest import TINY
from tests.train.test_distributed import launch
from tests.train.test_resume import final_state


def ask_to_stop(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def start(dataset, folder, num_processes, *settings):
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if num_processes > 1 else []), "packtrain", "train", "demo", *TINY]
    command += [f"data.dataset={dataset}", *settings, "--resume", "--run-dir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(process, is_there, seconds=120):
    deadline = time.monotonic() + seconds
    while not is_there():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.02)


def workers(process):
    """The process of each rank, in order."""
    ranks = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = next((entry[5:] for entry in environment if entry.startswith(b"RANK=")), None)
        if rank is not None:
            ranks[int(rank)] = int(child)
    return [ranks[rank] for rank in sorted(ranks)]


def test_a_stop_asked_for_while_starting_ends_before_a_step(tiny, tmp_path):
    train(tiny(), tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted, match="stopped by SIGTERM before step 1, with nothing new to save"):
        train(tiny(), tmp_path / "parts", resume=False, on_start=ask_to_stop)
    assert RunLayout(tmp_path / "parts").saved_steps() == []
    train(tiny(), tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


@pytest.mark.slow
def test_a_stop_asked_for_within_an_evaluation_ends_it(tiny, tmp_path):
    config = tiny("train.micro_batch_size=1")
    train(config, tmp_path / "whole", resume=False)
    passes = []

    def hook(module, *_):
        if isinstance(module, Llama) and not module.training:
            passes.append(module)
            if len(passes) == 3:
                ask_to_stop()

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step 4"):
            train(config, tmp_path / "parts", resume=False)
    finally:
        handle.remove()
    assert len(passes) == 3
    train(config, tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_a_kill_between_a_validation_and_its_checkpoint_changes_nothing(tiny, tmp_path):
    train(tiny(), tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted):
        train(tiny(), tmp_path / "parts", resume=False, on_step=lambda r: ask_to_stop() if r["step"] == 8 else None)
    # A run killed there leaves the checkpoint of the stop and the line of the validation that was caught up on.
    layout = RunLayout(tmp_path / "parts")
    line = next(line for line in read_lines(tmp_path / "whole") if '"step": 8, "val_loss"' in line)
    with layout.metrics.open("a") as file:
        file.write(line + "\n")
    train(tiny(), tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def read_lines(folder):
    return RunLayout(folder).metrics.read_text().splitlines()


def test_a_disk_that_fills_up_while_saving_ends_the_run_with_the_checkpoint_before(tiny, tmp_path):
    """The flush fails in the writing thread, as with a full disk, from step 6 on."""
    train(tiny(), tmp_path / "whole", resume=False)
    layout = RunLayout(tmp_path / "parts")
    allowed = {2, 4}
    real = os.fsync

    def fsync(descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if ".safetensors" in name and not any(f"step-{step:08d}" in name for step in allowed):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    os.fsync = fsync
    try:
        with pytest.raises(DiskFullError, match=r"a checkpoint needs more space; free some .* --resume") as caught:
            train(tiny(), tmp_path / "parts", resume=False)
    finally:
        os.fsync = real
    assert caught.value.exit_code == 4
    assert layout.saved_steps() == [2, 4]
    assert [path.name for path in layout.checkpoints.iterdir() if path.name.startswith(".")] == []
    train(tiny(), tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


NO_ROOM_ON_ONE = """
import os, resource, sys, time
from packtrain.cli.main import main
from packtrain.train import loop

def fills_up(batch, vocab_size):
    if os.environ["RANK"] == "1" and batch.state.samples_consumed == 40:
        while not os.path.exists(sys.argv[-1] + "/checkpoints/step-00000004"):
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return check(batch, vocab_size)

check, loop.check_ids = loop.check_ids, fills_up
main()
"""


@pytest.mark.very_slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_disk_that_is_full_for_one_rank_ends_all_with_the_checkpoint_before(dataset, tmp_path, mode):
    """A limit on the size of files, from step 5 on, fails like a full disk."""
    settings = ["train.micro_batch_size=2", f"parallel.mode={mode}"]
    launch(dataset, tmp_path / "whole", 2, *settings)
    (tmp_path / "full.py").write_text(NO_ROOM_ON_ONE)
    words = [*TINY, f"data.dataset={dataset}", *settings, "--run-dir", tmp_path / "parts"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, tmp_path / "full.py", "train", "demo", *words], capture_output=True, text=True, timeout=120
    )
    assert "a checkpoint needs more space; free some" in done.stderr and "exitcode  : 4" in done.stderr
    assert "packtrain/" not in done.stderr, "a traceback"
    layout = RunLayout(tmp_path / "parts")
    assert layout.saved_steps() == [2, 4]
    assert [path.name for path in layout.checkpoints.iterdir() if path.name.startswith(".")] == []
    assert read_jsonl(layout.events)[-1]["event"] == "failed"
    launch(dataset, tmp_path / "parts", 2, *settings)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


ASKED_TWICE = """
import os, signal, subprocess
from packtrain.train.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.is_set and stop.signal is signal.SIGINT
    print("asked", flush=True)
    subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -TERM {os.getpid()}"])
    # Like a library that does not return to the interpreter, which would call a handler.
    sum(range(10**11))
"""


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", ASKED_TWICE], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "asked\n")


@pytest.mark.very_slow
def test_a_signal_within_compilation_saves_and_ends_with_three(dataset, tmp_path):
    process = start(dataset, tmp_path / "run", 1, "train.compile=true", "train.steps=100000")
    wait_for(process, lambda: read_jsonl(tmp_path / "run" / "events.jsonl"))
    time.sleep(1.0)
    process.terminate()
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 3, stderr
    assert RunLayout(tmp_path / "run").saved_steps()


@pytest.mark.very_slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(dataset, tmp_path, mode, victim):
    settings = ["train.micro_batch_size=2", f"parallel.mode={mode}", "train.steps=40"]
    launch(dataset, tmp_path / "whole", 2, *settings)
    process = start(dataset, tmp_path / "run", 2, *settings)
    wait_for(process, lambda: len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) > 8)
    os.kill(workers(process)[victim], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    told = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert all("another process of the run has ended" in line for line in told), stderr
    launch(dataset, tmp_path / "run", 2, *settings)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "run")


@pytest.mark.very_slow
def test_a_signal_that_reaches_processes_twice_is_one_request(dataset, tmp_path):
    """A Ctrl-C in a terminal: the ranks receive it, and the launcher forwards its own to them."""
    process = start(dataset, tmp_path / "run", 2, "train.micro_batch_size=2", "train.steps=100000")
    wait_for(process, lambda: len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) > 5)
    for pid in (*workers(process), process.pid):
        os.kill(pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "stopped by SIGINT" in stderr
    assert read_jsonl(tmp_path / "run" / "events.jsonl")[-1]["event"] == "stopped"
