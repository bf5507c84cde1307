"""An fp8 run: it learns like a bf16 run, resumes bitwise, and its weights are used like those of any run."""

import subprocess
import sys

import pytest

from packtrain.api.measuring import evaluate_and_save
from packtrain.errors import ConfigError, DeviceError
from packtrain.runs import checkpoint
from packtrain.runs.checkpoint import open_run
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.conftest import TINY
from tests.train.test_distributed import figures, forget_after, torchrun

FP8 = "train.precision=fp8"


def losses(folder):
    return [line["loss"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.slow
def test_its_loss_follows_that_of_bf16(tiny, tmp_path):
    settings = ["train.steps=50", "evaluate.every=0", "checkpoint.every=50"]
    train(tiny(*settings, "train.precision=bf16"), tmp_path / "bf16", resume=False)
    train(tiny(*settings, FP8), tmp_path / "fp8", resume=False, emulate_fp8=True)
    half, rounded = losses(tmp_path / "bf16"), losses(tmp_path / "fp8")
    assert half != rounded
    assert rounded == pytest.approx(half, rel=0.01)
    assert half[0] - half[-1] > 1, "nothing was learned that fp8 could have lost"
    stored = [checkpoint.find_newest(RunLayout(tmp_path / name)).stored for name in ("bf16", "fp8")]
    assert stored[0] == stored[1]


@pytest.mark.slow
def test_it_resumes_bitwise_and_its_weights_are_used_in_high_precision(tiny, tmp_path):
    config = tiny(FP8, "checkpoint.keep=9", "evaluate.prompts=['one']", "evaluate.sample_tokens=4")
    ends = []
    for name in ("whole", "resumed"):
        train(config, tmp_path / name, resume=False, emulate_fp8=True)
        if name == "resumed":
            forget_after(tmp_path / name, 4)
            train(config, tmp_path / name, resume=True, emulate_fp8=True)
        ends.append(checkpoint.find_newest(RunLayout(tmp_path / name)))
    assert figures(tmp_path / "whole") == figures(tmp_path / "resumed")
    whole, resumed = ({name: t.numpy().tobytes() for name, t in end.read_whole().items()} for end in ends)
    assert whole == resumed
    layouts = [RunLayout(tmp_path / name) for name in ("whole", "resumed")]
    assert layouts[0].sample(10).read_bytes() == layouts[1].sample(10).read_bytes()
    # Neither opening nor evaluating needs a device with fp8.
    opened = open_run(tmp_path / "whole")
    assert opened.config.train.precision == "fp8"
    evaluated = evaluate_and_save(tmp_path / "whole")["model"]["loss"]
    assert evaluated == pytest.approx(figures(tmp_path / "whole")[-1]["val_loss"], rel=0.01)


def test_a_device_that_cannot_is_refused_before_anything_is_made(tiny, tmp_path):
    with pytest.raises(DeviceError, match=r"fp8 .* cpu: it needs an NVIDIA GPU .* write train\.precision=auto"):
        train(tiny(FP8), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_rows_of_tokens_that_do_not_divide_are_refused(tiny):
    with pytest.raises(ConfigError, match=r"data\.seq_len=40 is not a multiple of 16; write data\.seq_len=32"):
        tiny(FP8, "data.seq_len=40", "train.global_batch_tokens=400")


@pytest.mark.very_slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_are_one_but_for_rounding(dataset, tiny, tmp_path, mode):
    train(tiny(FP8), tmp_path / "one", resume=False, emulate_fp8=True)
    settings = [*TINY, FP8, f"data.dataset={dataset}", f"parallel.mode={mode}", "evaluate.prompts=['one']"]
    torchrun(2, "-m", "tests.train.emulated_fp8", tmp_path / "two", *settings)
    # Each rank scales by the largest number in its own rows, and FSDP2 rounds weights to bf16 first.
    assert figures(tmp_path / "two") == [pytest.approx(line, rel=0.05) for line in figures(tmp_path / "one")]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.003)
    ends = [checkpoint.find_newest(RunLayout(tmp_path / name)).stored for name in ("one", "two")]
    assert ends[0] == ends[1]
    assert RunLayout(tmp_path / "two").sample(10).is_file()


@pytest.mark.very_slow
def test_the_command_ends_with_2_and_one_sentence(dataset, tmp_path):
    command = [sys.executable, "-m", "packtrain", "train", "demo", *TINY, FP8, f"data.dataset={dataset}"]
    done = subprocess.run([*command, "--run", tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "write train.precision=auto" in " ".join(done.stderr.split())
