"""A run that starts from another run has its weights, what of its optimizer and data fits, and its history."""

import json
import re
import shlex
import shutil

import pytest
import torch

import packtrain as pt
from packtrain.errors import CheckpointError, ConfigError, RunError
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.train.test_distributed import assert_same_run, torchrun
from tests.train.test_resume import final_state

STILL = ("train.steps=1", "optim.lr=1e-30", "optim.weight_decay=0")


@pytest.fixture(scope="module")
def words(dataset):
    from tests.train.conftest import TINY

    return [*TINY, f"data.dataset={dataset}"]


@pytest.fixture(scope="module")
def first(words, tmp_path_factory):
    """A run of six steps, saved at each second; not to be changed."""
    folder = tmp_path_factory.mktemp("first") / "first"
    pt.train("demo", *words, "train.steps=6", run=folder)
    return folder


def origin(folder):
    return json.loads((folder / "manifest.json").read_text())["started_from"]


def weights(folder):
    return checkpoint.find_newest(RunLayout(folder)).read_whole(only_weights=True)


def events(folder):
    return [line["event"] for line in read_jsonl(folder / "events.jsonl")]


def test_it_goes_on_with_weights_optimizer_and_data_and_counts_its_own_steps(first, words, tmp_path):
    folder = tmp_path / "second"
    outcome = pt.train("demo", *words, "train.steps=4", continue_from=first, run=folder)
    assert outcome["step"] == 4 and outcome["tokens"] == 4 * 256
    found = origin(folder)
    assert (found["kind"], found["path"], found["step"], found["tokens"]) == ("run", str(first), 6, 6 * 256)
    assert (found["optimizer_state"], found["place_in_data"], found["history"]) == ("kept", "kept", [])
    assert events(folder)[:2] == ["started", "continuing"]
    state = checkpoint.find_newest(RunLayout(folder)).state
    assert state["loader"]["samples_consumed"] == 10 * 8
    # The same step of Adam as a run that never stopped: its bias correction counts on.
    stored = checkpoint.find_newest(RunLayout(folder)).read_whole()
    assert stored["model.norm.weight/step"].item() == 10
    rates = [line["lr"] for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]
    assert rates[0] == pytest.approx(rates[1] / 2), "warmed up again over two steps"
    whole = tmp_path / "again"
    pt.train("demo", *words, "train.steps=2", continue_from=first / "checkpoints" / "step-00000004", run=whole)
    assert origin(whole)["step"] == 4


def test_it_resumes_bitwise_without_the_run_that_it_is_from(first, words, tmp_path):
    moved = shutil.copytree(first, tmp_path / "moved")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pt.train("demo", *words, "train.steps=6", continue_from=first, run=whole)
    pt.train("demo", *words, "train.steps=6", continue_from=moved, run=parts, on_step=lambda line: line["step"] == 3)
    shutil.rmtree(moved)
    pt.resume(parts)
    assert final_state(whole) == final_state(parts)


@pytest.mark.slow
def test_two_sharded_processes_continue_as_one_does_and_one_continues_from_them(first, words, tmp_path):
    given = ["train", "demo", *words, "train.micro_batch_size=2", "train.steps=4"]
    assert packtrain(*given, "--continue-from", first, "--run", tmp_path / "one").code == 0
    sharded = ["-m", "packtrain", *given, "parallel.mode=fsdp", "--continue-from", first]
    torchrun(2, *sharded, "--run-dir", tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    for key in ("path", "step", "tokens", "optimizer_state", "place_in_data"):
        assert origin(tmp_path / "two")[key] == origin(tmp_path / "one")[key]
    assert origin(tmp_path / "two")["optimizer_state"] == "kept"
    state = checkpoint.find_newest(RunLayout(tmp_path / "two"))
    assert len(list(state.folder.glob("rank-*.safetensors"))) == 2
    for name in ("one", "two"):
        pt.train("demo", *words, "train.steps=2", continue_from=tmp_path / name, run=tmp_path / f"{name}-more")
    assert_same_run(tmp_path / "one-more", tmp_path / "two-more")
    history = origin(tmp_path / "two-more")["history"]
    assert [(each["path"], each["step"]) for each in history] == [(str(first), 6)]


def test_the_history_is_kept_along_a_chain_and_shown_in_the_report(first, words, tmp_path):
    second, third = tmp_path / "second", tmp_path / "third"
    pt.train("demo", *words, "train.steps=2", continue_from=first, run=second)
    # Another optimizer, and other rows.
    pt.train(second / "config.toml", "optim.name=adamw", "data.seq_len=16", continue_from=second, run=third)
    found = origin(third)
    assert found["optimizer_state"] == "new, because optim.name was muon and is adamw"
    assert found["place_in_data"] == "first row" and "continuing" not in events(third)
    assert [each["path"] for each in found["history"]] == [str(first)] and found["path"] == str(second)
    page = pt.report(third).read_text()
    assert "2 steps and 512 tokens" in page and "6 steps and 1,536 tokens" in page
    assert str(first) in page and "8 steps and 2,048 tokens before its first step" in page


def test_weights_are_those_of_the_checkpoint_with_a_new_optimizer(first, words, tmp_path):
    folder = tmp_path / "run"
    pt.train("demo", *words, *STILL, "optim.name=adamw", continue_from=first, run=folder)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(weights(folder)[name], tensor)


def test_the_command_for_another_optimizer_works_as_it_stands(first, tmp_path):
    run = shutil.copytree(first, tmp_path / "my run")
    done = packtrain("resume", run, "--change", "optim.name=adamw")
    assert done.code == 2 and "cannot continue with optim.name=adamw" in done.err
    command = re.search(r"from its weights: `(.*)`", " ".join(done.err.split()))[1]
    program, *arguments = shlex.split(command)
    assert program == "packtrain" and "--continue-from" in arguments
    done = packtrain(*arguments)
    assert done.code == 0, done.err
    assert origin(tmp_path / "my run-continued")["optimizer_state"].startswith("new, because optim.name was muon")
    assert "step 0, with the weights of" in " ".join(done.err.split())


def test_what_does_not_fit_is_refused(first, words, tiny, tmp_path):
    def refuses(error, sentence, source=first, *settings):
        with pytest.raises(error, match=sentence):
            pt.train("demo", *words, *settings, continue_from=source, run=tmp_path / "run")

    refuses(
        ConfigError, r"model.hidden_size=64 \(from the command line\), and the weights", first, "model.hidden_size=64"
    )
    refuses(CheckpointError, r"train.continue_from=.*nowhere does not exist", tmp_path / "nowhere")
    refuses(CheckpointError, r"is neither a run nor a checkpoint", tmp_path)
    torn = shutil.copytree(first, tmp_path / "torn")
    for path in torn.glob("checkpoints/*/rank-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])
    refuses(CheckpointError, "has no complete checkpoint to continue from", torn)
    with pytest.raises(ConfigError, match="is a run; write --continue-from"):
        pt.train("demo", *words, init_from=first, run=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"model.hidden_size=16, and the weights in .* have model.hidden_size=32"):
        train(tiny("model.hidden_size=16", f"train.continue_from={first}"), tmp_path / "run", resume=False)
    pt.train("demo", *words, "train.steps=1", continue_from=first, run=tmp_path / "other")
    with pytest.raises(
        RunError, match=r"cannot continue with train.continue_from=.*torn; leave it out, or start a new run in"
    ):
        pt.train("demo", *words, "train.steps=1", continue_from=torn, run=tmp_path / "other", resume=True)
