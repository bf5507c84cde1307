"""What a run says: a header, a line for what happens, a log that is neither silent nor flooded, and how to continue."""

import dataclasses
import datetime
import itertools
import logging
import os
import re
import sys
from pathlib import Path

import pytest
from tests.train.conftest import TINY

from packtrain.cli import relaunch, screen, speak
from packtrain.cli.main import main
from packtrain.config.load import load_run_config
from packtrain.train.header import Header, Reading
from packtrain.train.run import train

HEADER = Header(
    folder=Path("runs/a b"),
    step=0,
    num_steps=24_414,
    num_parameters=15_200_000,
    num_layers=6,
    hidden_size=288,
    datasets=(Reading("data/mine", 560_000, 89.2),),
    seq_len=256,
    global_batch_tokens=2048,
    micro_batch_size=4,
    grad_accum_steps=2,
    precision="fp32",
    device="A [CPU]",
    device_type="cpu",
    world_size=1,
    parallel_mode="ddp",
)


@pytest.fixture
def said(capfd, monkeypatch):
    """The lines on standard error so far, without the time in front of them."""
    monkeypatch.setattr(screen, "is_watched", lambda: False)
    return lambda: [
        re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in capfd.readouterr().err.splitlines()
    ]


def record(step):
    return {"step": step, "loss": 3.5, "lr": 3e-4, "tokens_per_s": 10_412.4}


def speak_of(num_steps, step_s, log_every):
    """The seconds at which lines of a run's log are said, if each of its steps takes `step_s`."""
    now, at = [0.0], []
    speaker = speak.Speaker(log_every, clock=lambda: now[0])
    speaker.on_start(dataclasses.replace(HEADER, num_steps=num_steps))
    speaker._say = lambda *_: at.append(now[0])
    for step in range(1, num_steps + 1):
        now[0] += step_s
        speaker.on_step(record(step))
    return at


def test_the_header_tells_what_will_be_done(said):
    speak.Speaker(10, "demo").on_start(HEADER)
    assert said() == [
        "model      demo: 6 layers x 288 wide, 15.2M parameters",
        "dataset    data/mine, 560k tokens",
        "length     24,414 steps, 50M tokens, 89.20 epochs",
        "batch      2,048 tokens = 8 rows of 256: micro-batches of 4, accumulated over 2",
        "precision  fp32",
        "device     A [CPU] (cpu)",
        "parallel   one process",
        "kept in    runs/a b",
        "start      step 0",
        "end        estimated after the first steps",
    ]
    many = dataclasses.replace(
        HEADER, world_size=8, parallel_mode="fsdp", step=70, datasets=(Reading("a", 9, 1.5), Reading("b", 8, 2))
    )
    facts = speak.describe(many)
    assert ("parallel", "FSDP, 8 processes") in facts and ("start", "resumed at step 70") in facts
    assert ("dataset", "a, 9 tokens, 1.50 epochs") in facts and ("", "b, 8 tokens, 2.00 epochs") in facts


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize(("step_s", "log_every"), [(0.01, 10), (0.5, 1), (2.0, 1000), (29.0, 10), (0.001, 1)])
def test_a_log_is_never_silent_and_never_flooded(step_s, log_every):
    num_steps = int(1800 / step_s) if step_s > 0.01 else int(300 / step_s)
    at = speak_of(num_steps, step_s, log_every)
    gaps = [later - sooner for sooner, later in itertools.pairwise(at)]
    assert max(gaps) < speak.SILENCE_S + step_s
    assert len(at) < 45 + num_steps * step_s / speak.SILENCE_S
    # Only steps that take long themselves are told one by one.
    assert all(gap > speak.SILENCE_S / 2 for sooner, gap in zip(at[:-2], gaps[:-1], strict=True) if sooner > 125)
    assert len(speak_of(20, 1.0, 10)) >= 3


def test_a_line_has_what_one_looks_for(said):
    now = [0.0]
    speaker = speak.Speaker(10, clock=lambda: now[0])
    speaker.on_start(dataclasses.replace(HEADER, num_steps=2_000))
    for step in range(1, 11):
        # Ten seconds for the first one, which compiles: that is no speed.
        now[0] += 10.0 if step == 1 else 1.0
        speaker.on_step(record(step))
    lines = said()[10:]
    assert lines[0] == "step 1 of 2,000     loss 3.5000  lr 0.0003  10,412 tokens/s"
    assert re.fullmatch(
        r"step 6 of 2,000     ends about [\w: ]*\d\d:\d\d, in 33 min 14 s \(measured over steps 2 to 6\)", lines[1]
    )
    assert lines[2] == "step 10 of 2,000    loss 3.5000  lr 0.0003  10,412 tokens/s  33 min 10 s left"
    # After a rollback the speed is measured again.
    speaker.on_step(record(1))
    speaker.on_step(record(1))


def test_what_happens_is_told(said):
    speaker = speak.Speaker(10)
    speaker.on_start(dataclasses.replace(HEADER, num_steps=100))
    for step, loss in ((50, 3.0), (60, 3.1), (70, float("nan"))):
        speaker.on_step({"step": step, "val_loss": loss, "val_ppl": 20.0, "val_bpb": 1.25, "val_bpb/web": 1.5})
    speaker.on_event({"event": "saved", "step": 50, "time": 0.0})
    speaker.on_event({"event": "skipped", "step": 50, "time": 0.0, "reason": "a warning says it"})
    samples = [{"prompt": "Once ", "text": "[upon]\na " + "time " * 20}, {"prompt": "end", "text": ""}]
    speaker.on_event({"event": "sampled", "step": 50, "samples": samples})
    assert said()[10:] == [
        "step 50 of 100      validation loss 3.0000, 1.2500 bits per byte (web 1.5000)",
        "step 60 of 100      validation loss 3.1000, 1.2500 bits per byte (web 1.5000)  (the lowest was 3.0000)",
        "step 70 of 100      validation loss nan, 1.2500 bits per byte (web 1.5000)",
        "step 50 of 100      saved",
        f"step 50 of 100      sample: Once → [upon] a {'time ' * 8}…",
        "step 50 of 100      sample: end → (the document ends here)",
    ]


def test_an_end_on_another_day_names_the_day():
    assert re.fullmatch(r"\d\d:\d\d", speak._moment(0))
    then = datetime.datetime.now() + datetime.timedelta(days=2)
    assert speak._moment(2 * 86400).startswith(then.strftime("%a %d %b "))


@pytest.mark.slow
def test_a_run_of_the_command_line_speaks_on_standard_error_alone(dataset, tmp_path, capfd, monkeypatch):
    # Six epochs of the dataset.
    words = [*TINY, f"data.dataset={dataset}", "train.steps=300", 'evaluate.prompts=["the"]', "evaluate.every=0"]
    monkeypatch.setattr(sys, "argv", ["packtrain", "train", "demo", *words, "--run", str(tmp_path / "run"), "--json"])
    monkeypatch.setattr(logging.getLogger("packtrain"), "handlers", [])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr()
    assert ended.value.code == 0 and told.out.startswith("{") and told.out.rstrip().endswith("}")
    lines = told.err.splitlines()
    (warned,) = [number for number, line in enumerate(lines) if line.startswith("warning: ")]
    assert "epochs. Up to about 4 epochs" in lines[warned] and "arXiv 2305.16264" in lines[warned]
    first = next(number for number, line in enumerate(lines) if "step 1 of 300" in line)
    assert warned < first and any(line.endswith("step 300 of 300     saved") for line in lines)
    length = int(re.search(r"Write train.tokens=(\d+),", lines[warned])[1])
    # Whole steps, of 256 tokens each.
    assert length % 256 == 0 and 0 < length < 300 * 256


def test_as_many_epochs_as_help_are_no_reason_to_warn(tiny_config, tmp_path, caplog):
    train(tiny_config("train.steps=3"), tmp_path / "run", resume=False)
    assert "epochs" not in caplog.text


@pytest.fixture
def tiny_config(dataset):
    return lambda *settings: load_run_config("demo", [*TINY, f"data.dataset={dataset}", *settings]).config


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["packtrain", "train", "demo"], "packtrain resume 'runs/my run'"),
        (["packtrain", "demo", "--out", "a b"], "packtrain demo --out 'a b'"),
    ],
)
def test_the_command_that_continues(monkeypatch, argv, expected):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(sys, "argv", argv)
    assert relaunch.continue_command(Path("runs/my run")) == expected


def test_the_command_that_continues_under_torchrun(monkeypatch, tmp_path):
    (tmp_path / "torchrun").write_text("")
    (tmp_path / "torchrun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["/x/packtrain/__main__.py", "train", "demo", "--run-dir", "r"])
    # The parent of these tests is no torchrun.
    assert relaunch.continue_command(Path("r")) == "torchrun --nnodes 2 --nproc-per-node 4 -m packtrain resume r"
    words = [
        "python",
        "/x/torchrun",
        "--nproc-per-node=2",
        "--shutdown-timeout",
        "300",
        "-m",
        "packtrain",
        "train",
        "demo",
    ]
    monkeypatch.setattr("psutil.Process.cmdline", lambda _: words)
    expected = "torchrun --nproc-per-node=2 --shutdown-timeout 300 -m packtrain resume r"
    assert relaunch.continue_command(Path("r")) == expected
    words[:2] = ["python", "-m", "torch.distributed.run"]
    assert relaunch.continue_command(Path("r")) == expected


def test_a_reader_that_ends_does_not_end_the_run(dataset, tmp_path):
    """As `packtrain train ... 2>&1 | head` does."""
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(2)
    os.dup2(write, 2)
    screen._open_console.cache_clear()
    try:
        speak.train_aloud(
            load_run_config("demo", [*TINY, f"data.dataset={dataset}"]).config,
            tmp_path / "run",
            resume=False,
            as_json=True,
        )
    finally:
        os.dup2(kept, 2)
        for each in (kept, write):
            os.close(each)
        screen._open_console.cache_clear()
