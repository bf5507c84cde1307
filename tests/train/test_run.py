"""What a run writes, and what it refuses: each in one sentence, with nothing lost."""

import contextlib
import json
import logging
import math
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from packtrain.config.load import change_run_config
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import open_run_datasets
from packtrain.errors import ConfigError, DatasetError, DeviceError, NonFiniteError, RunError, TokenizerError
from packtrain.runs import checkpoint
from packtrain.runs.checkpoint import open_run
from packtrain.runs.layout import RunLayout, lock_run
from packtrain.runs.metrics import read_jsonl
from packtrain.runs.retention import find_best_step
from packtrain.runs.status import read_status
from packtrain.train.preflight import warn_about_schedule
from packtrain.train.resume import continue_config
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.corpora import reseal
from tests.train.conftest import TINY


def test_the_run_directory_is_what_the_documentation_says(tiny, tmp_path):
    outcome = train(tiny("evaluate.prompts=['one','two']", "evaluate.sample_tokens=4"), tmp_path / "run", resume=False)
    layout = RunLayout(tmp_path / "run")
    lines = read_jsonl(layout.metrics)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 11))
    assert {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "step_s"} <= training[0].keys()
    assert training[-1]["tokens"] == 10 * 256
    validation = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validation] == [4, 8, 10]
    assert all({"val_loss", "val_ppl", "val_bpb"} <= line.keys() for line in validation)
    assert outcome["val_loss"] == validation[-1]["val_loss"]
    assert training[-1]["loss"] < training[0]["loss"]
    assert [event["event"] for event in read_jsonl(layout.events)] == ["started", *["saved"] * 5, "finished"]
    assert layout.saved_steps() == [6, 8, 10]
    manifest = json.loads(layout.manifest.read_text())
    assert {"versions", "hardware", "dataset", "parameters", "git_commit", "command"} <= manifest.keys()
    samples = read_jsonl(layout.sample(10))
    assert [sample["prompt"] for sample in samples] == ["one", "two"]
    assert (layout.tokenizer / "tokenizer.json").is_file()
    opened = open_run(tmp_path / "run")
    assert (opened.step, opened.model.training) == (10, False)
    assert open_run(tmp_path / "run", step=8).step == 8


@pytest.mark.slow
def test_one_epoch_is_the_length_when_none_is_given(tiny, tmp_path, dataset):
    from packtrain.data.format.shards import open_dataset

    tokens = open_dataset(dataset).split("train").num_tokens
    rows = math.ceil(tokens / 32)
    outcome = train(tiny("train.steps=", "train.global_batch_tokens=4096"), tmp_path / "run", resume=False)
    assert outcome["steps"] == math.ceil(rows / 128)
    assert outcome["tokens"] >= tokens


def test_a_folder_with_a_run_needs_resume(tiny, tmp_path):
    train(tiny("train.steps=2"), tmp_path / "run", resume=False)
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        train(tiny("train.steps=2"), tmp_path / "run", resume=False)


def test_a_folder_with_other_things_is_refused_and_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and does not hold a run"):
        train(tiny(), tmp_path, resume=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.hidden_size=64", "model.hidden_size=32 and cannot continue with model.hidden_size=64"),
        ("data.seq_len=64", "data.seq_len=32 and cannot continue"),
        ("data.packing=bestfit", "data.packing=concat"),
        ("train.seed=2", "train.seed=1337"),
        ("optim.name=adamw8bit", "optim.name=muon"),
        ("train.steps=1", "the run is at step 2, but its settings give only 1 steps"),
    ],
)
def test_a_run_does_not_go_on_as_another(tiny, tmp_path, setting, sentence):
    train(tiny("train.steps=2"), tmp_path / "run", resume=False)
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(RunError, match=sentence):
        train(tiny("train.steps=2", setting), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_what_bends_a_run_is_named(tiny, tmp_path, caplog):
    train(tiny("train.steps=2"), tmp_path / "run", resume=False)
    assert train(tiny("train.steps=4", "optim.lr=1e-4"), tmp_path / "run", resume=True)["step"] == 4
    assert "optim.lr was 0.004 and is now 0.0001" in caplog.text
    assert "train.steps was 2 and is now 4" in caplog.text
    # The file has the present settings, the events the previous ones.
    resumed = next(e for e in read_jsonl(tmp_path / "run" / "events.jsonl") if e["event"] == "resumed")
    assert resumed["changed"] == {"optim.lr": [0.004, 0.0001], "train.steps": [2, 4]}


def test_documents_are_masked_in_training_where_it_is_asked_for(tiny, tmp_path):
    told = []
    for mask in ("false", "true"):
        train(tiny("train.steps=1", "evaluate.every=0", f"data.document_mask={mask}"), tmp_path / mask, resume=False)
        told.append(read_jsonl(tmp_path / mask / "metrics.jsonl")[0]["loss"])
    assert told[0] != pytest.approx(told[1], rel=1e-6)


def test_z_loss_is_trained_on_and_not_shown(tiny, tmp_path):
    lines = []
    for weight in (0, 1):
        folder = tmp_path / f"run-{weight}"
        train(tiny("train.steps=1", "evaluate.every=0", f"train.z_loss={weight}"), folder, resume=False)
        lines.append(read_jsonl(folder / "metrics.jsonl")[0])
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    # log Z is log 512 at first, and its square affects every logit.
    assert lines[1]["grad_norm"] > 1.5 * lines[0]["grad_norm"]


def test_settings_of_the_schedule_that_do_nothing_are_told(tiny, tmp_path, caplog):
    settings = ("schedule.name=constant", "schedule.decay_fraction=0.5", "schedule.min_lr_ratio=0")
    train(tiny("train.steps=1", "evaluate.every=0", *settings), tmp_path / "run", resume=False)
    for key in ("decay_fraction", "min_lr_ratio"):
        assert f"schedule.{key} has no effect with schedule.name=constant" in caplog.text


def test_a_decay_that_does_not_fit_after_the_warm_up_is_told(caplog):
    config = RunConfig.model_validate({"schedule": {"name": "wsd", "warmup_steps": 15, "decay_fraction": 0.5}})
    warn_about_schedule(config, 30)
    assert not caplog.text
    warn_about_schedule(config, 20)
    assert "schedule.decay_fraction=0.5 of the 20 steps is 10, but only 5 are left after the warm-up" in caplog.text


def test_compilation_without_a_compiler_is_refused_before_anything_is_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        DeviceError, match=r"needs a C\+\+ compiler \(g\+\+ or clang\+\+\), .* write train.compile=false"
    ):
        train(tiny("train.compile=true"), tmp_path / "run", resume=False)


def test_a_dataset_that_changed_under_a_run_is_refused(tiny, tmp_path, dataset):
    train(tiny("train.steps=2"), tmp_path / "run", resume=False)
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    reseal(other, lambda manifest: manifest.update(inputs_hash="0" * 64))
    with pytest.raises(DatasetError, match=r"is not the dataset that .* was trained on"):
        train(tiny("train.steps=4", f"data.dataset={other}"), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (["model.vocab_size=256"], TokenizerError, "write model.vocab_size=512"),
        (["model.vocab_size=32000"], TokenizerError, "write model.vocab_size=512"),
        (["data.dataset="], ConfigError, "write data.dataset=FOLDER"),
        (["data.dataset=nowhere"], DatasetError, "nowhere is not a prepared dataset"),
        (["train.device=cuda"], DeviceError, "write train.device=cpu"),
        (["train.device=toaster"], DeviceError, "does not name a device"),
        (["train.device=meta"], DeviceError, "is not supported: .* write auto, cpu, cuda or mps"),
        (["train.micro_batch_size=3"], ConfigError, "write train.micro_batch_size=2"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(tiny, tmp_path, settings, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        train(tiny(*settings), tmp_path / "run", resume=False)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is not a number"),
        ({"WORLD_SIZE": "2"}, "RANK=nothing in the environment is not a number"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
            "WORLD_SIZE=2 is set but MASTER_ADDR is not",
        ),
    ],
)
def test_an_environment_of_processes_that_is_not_whole_is_refused_and_no_bar_stays(
    dataset, tmp_path, monkeypatch, environment, sentence
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = packtrain("train", "demo", *TINY, f"data.dataset={dataset}", "--run", tmp_path / "run")
    assert done.code == 2 and sentence in done.sentence
    assert done.err.strip().startswith("error: ") and not (tmp_path / "run").exists()


def test_a_token_id_that_the_model_lacks_is_refused(tiny, tmp_path, dataset):
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken)
    for shard in (broken / "train").glob("*.tok"):
        shard.write_bytes(b"\xff\xff" * (shard.stat().st_size // 2))
    with pytest.raises(DatasetError):
        train(tiny(f"data.dataset={broken}"), tmp_path / "run", resume=False)


def test_a_run_that_diverges_is_stopped_with_the_weights_as_they_were(tiny, tmp_path):
    config = tiny("optim.lr=1e30", "train.grad_clip=0", "schedule.warmup_steps=0", "schedule.name=constant")
    with pytest.raises(NonFiniteError, match=r"lower optim\.lr") as caught:
        train(config, tmp_path / "run", resume=False)
    assert caught.value.exit_code == 4
    *before, last = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert [event["event"] for event in before].count("skipped") == 6
    assert (last["event"], last["step"], last["reason"]) == ("failed", 7, str(caught.value))


def test_a_validation_that_is_not_finite_is_told_and_no_best(tiny, tmp_path, caplog):
    """An update of finite numbers may ruin the weights; the next validation shows it before the next step does."""
    ruinous = (
        "optim.name=adamw",
        "optim.lr=1e39",
        "train.grad_clip=0",
        "schedule.warmup_steps=0",
        "schedule.name=constant",
    )
    config, layout = tiny("train.steps=1", *ruinous), RunLayout(tmp_path / "run")
    assert train(config, layout.folder, resume=False)["val_loss"] is None
    assert "validation loss that is not finite" in caplog.text
    assert {"step": 1, "val_loss": None}.items() <= read_jsonl(layout.metrics)[-1].items()
    assert checkpoint.find_newest(layout).state["val_loss"] is None and find_best_step(layout) is None
    told = [event["event"] for event in read_jsonl(layout.events)]
    assert told == ["started", "saved", "non_finite", "finished"]
    metrics = layout.metrics.read_bytes()
    train(config, layout.folder, resume=True)
    assert [event["event"] for event in read_jsonl(layout.events)] == [*told, "resumed", "finished"]
    assert layout.metrics.read_bytes() == metrics


def test_a_run_in_use_is_refused(tiny, tmp_path):
    with lock_run(RunLayout(tmp_path / "run")), pytest.raises(RunError, match="in use by another process"):
        train(tiny(), tmp_path / "run", resume=True)


def test_each_tracker_says_how_to_open_it_and_prints_nothing_itself(tiny, tmp_path, monkeypatch, caplog, capsys):
    pytest.importorskip("tensorboard")
    # It is read once, by the import.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    caplog.set_level(logging.INFO, "packtrain")
    settings = ("track.tensorboard=true", "track.trackio=true", "track.project=my runs")
    assert train(tiny(*settings), tmp_path / "a run", resume=False)["step"] == 10
    assert f"TensorBoard: tensorboard --logdir '{tmp_path / 'a run' / 'tensorboard'}'" in caplog.messages
    assert "trackio: trackio show --project 'my runs'" in caplog.messages
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert capsys.readouterr().out == ""
    database = next((tmp_path / "trackio").glob("*.db"))
    with contextlib.closing(sqlite3.connect(database)) as opened:
        logged = [json.loads(line) for (line,) in opened.execute("SELECT metrics FROM metrics")]
    assert sum("train/loss" in values for values in logged) == 10
    assert sum("validation/val_bpb" in values for values in logged) == 3


def test_a_tracker_that_fails_is_dropped_and_the_run_ends_well(tiny, tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    outcome = train(tiny("track.wandb=true", "track.tensorboard=true"), tmp_path / "run", resume=False)
    assert outcome["step"] == 10
    assert "track.wandb failed and is dropped; the run continues" in caplog.text
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_saves_and_ends_with_three(dataset, tmp_path, number):
    command = [
        sys.executable,
        "-m",
        "packtrain",
        "train",
        "demo",
        *TINY,
        f"data.dataset={dataset}",
        "train.steps=100000",
    ]
    process = subprocess.Popen([*command, "--run", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 3
    assert f"stopped by {number.name} at step" in stderr
    assert stderr.count("continue with:\n\n") == 1 and "error" not in stderr
    assert stderr.rstrip().endswith(f"packtrain resume {tmp_path / 'run'}")
    assert read_jsonl(tmp_path / "run" / "events.jsonl")[-1]["event"] == "stopped"


def test_zeros_in_a_shard_are_found_before_the_first_step(tiny, tmp_path, dataset):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    path = next((copy / "train").glob("*.tok"))
    path.write_bytes(bytes(path.stat().st_size))
    for mode in ("sample", "full"):
        with pytest.raises(DatasetError, match=r"shard train/\d+ is refused: the content of .*tok changed"):
            train(tiny("train.steps=2", f"data.dataset={copy}", f"data.verify={mode}"), tmp_path / mode, resume=False)
        assert not (tmp_path / mode / "config.toml").exists()
    assert train(tiny("train.steps=2", f"data.dataset={copy}", "data.verify=none"), tmp_path / "none", resume=False)


def test_a_run_of_some_epochs_says_how_long_it_is_and_can_be_made_longer(tiny, tmp_path):
    dataset = open_run_datasets(tiny().data)
    rows = dataset.layout(32, "concat").num_rows
    longer_steps = tiny("train.global_batch_tokens=2048", "evaluate.every=0", "checkpoint.every=0")
    config = change_run_config(longer_steps, ["train.epochs=0.5"], "the test")
    outcome = train(config, tmp_path / "run", resume=False)
    assert outcome["steps"] == -(-rows // 128)
    assert read_status(tmp_path / "run").steps == outcome["steps"]
    longer = continue_config(RunLayout(tmp_path / "run"), [], ["train.epochs=0.6"])
    again = train(longer, tmp_path / "run", resume=True)
    assert again["step"] == again["steps"] == -(-rows * 6 // 640)
    assert read_status(tmp_path / "run").steps == again["steps"]
