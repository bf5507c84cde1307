"""A resumed run keeps its own settings: what is typed may differ only where it changes no number, or with --change."""

import json
import re
import shutil

import pytest

from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.train.conftest import TINY
from tests.train.test_resume import final_state


@pytest.fixture(scope="module")
def stopped(dataset, tmp_path_factory):
    """A run of two steps of four at a learning rate that no preset has, started by the command line."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    words = ("train", "demo", *TINY, f"data.dataset={dataset}", "optim.lr=1e-3", "train.steps=2", "evaluate.every=0")
    done = packtrain(*words, "--run", folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(stopped, tmp_path / "run")


def config_of(folder):
    return packtrain("config", folder / "config.toml", "--json").out


def events(folder, kind):
    return [
        {key: value for key, value in event.items() if key not in ("time", "event")}
        for event in read_jsonl(RunLayout(folder).events)
        if event["event"] == kind
    ]


def test_settings_that_are_not_typed_come_from_the_run(run):
    before = config_of(run)
    done = packtrain("train", "demo", "--run", run, "--resume", "--json")
    assert done.code == 0, done.err
    assert config_of(run) == before and json.loads(before)["config"]["optim"]["lr"] == 1e-3
    assert "from the run, not from demo: model.hidden_size=32" in " ".join(done.err.split())
    assert events(run, "changed") == [] and events(run, "resumed")[0]["changed"] == {}


def test_resume_takes_everything_from_the_run_and_ends_as_if_it_had_never_stopped(run, tiny, tmp_path):
    assert packtrain("resume", run, "--change", "train.steps=6").code == 0
    whole = tmp_path / "whole"
    for steps in (2, 6):
        train(tiny("optim.lr=1e-3", f"train.steps={steps}", "evaluate.every=0"), whole, resume=True)
    assert final_state(run) == final_state(whole)


@pytest.mark.parametrize("verb", ["resume", "train"])
def test_a_typed_setting_that_differs_needs_change(run, verb):
    words = ("resume", run) if verb == "resume" else ("train", "demo", "--resume", "--run", run)
    before = RunLayout(run).config.read_text()
    done = packtrain(*words, "optim.lr=0.5")
    assert done.code == 2 and "write --change optim.lr=0.5 to continue with another value" in done.sentence
    assert "has optim.lr=0.001, and the command says optim.lr=0.5" in done.sentence
    assert RunLayout(run).config.read_text() == before
    # Not even with --change.
    for word in ("model.hidden_size=64", "optim.name=adamw", "train.seed=7"):
        for given in ([word], ["--change", word]):
            done = packtrain(*words, *given)
            assert done.code == 2 and f"and cannot continue with {word}; leave it out" in done.sentence


def test_another_optimizer_is_refused_with_a_command_that_works(dataset, tmp_path):
    """Even if the run has settings that the other optimizer does not know."""
    run = tmp_path / "run"
    own = ("optim.name=normuon", "optim.momentum_warmup_steps=3", "optim.cautious_decay=true")
    words = [*TINY, f"data.dataset={dataset}", "train.steps=1", "evaluate.every=0"]
    assert packtrain("train", "demo", *words, *own, "--run", run).code == 0
    for name, needed in (("muon", ""), ("adamw8bit", " optim.momentum_warmup_steps=0 optim.cautious_decay=false")):
        done = packtrain("resume", run, "--change", f"optim.name={name}")
        assert (
            done.code == 2
            and f"was trained with optim.name=normuon and cannot continue with optim.name={name}" in done.sentence
        )
        command = re.search("`packtrain (.*)`", done.sentence)[1]
        assert (
            command == f"train {run}/config.toml optim.name={name}{needed} --continue-from {run} --run {run}-continued"
        )
        _, target, *settings = command.partition(" --continue-from")[0].split()
        assert packtrain("config", target, *settings).code == 0


def test_what_changes_no_number_may_differ_when_typed(run):
    free = ("train.micro_batch_size=2", "log.every=2", "track.project=mine", "parallel.lanes=1", "checkpoint.keep=2")
    assert packtrain("resume", run, *free).code == 0
    settings = json.loads(config_of(run))["config"]
    assert (settings["train"]["micro_batch_size"], settings["log"]["every"]) == (2, 2)
    changed = events(run, "changed")
    assert {"step": 2, "key": "log.every", "before": 1, "after": 2} in changed and len(changed) == 5


def test_a_change_is_an_event_stays_in_force_and_may_be_given_again(run):
    longer = ("--change", "train.steps=4", "--change", "optim.lr=1e-4")
    command = ("train", "demo", "optim.lr=1e-3", "--run", run, "--resume", *longer)
    done = packtrain(*command)
    assert done.code == 0, done.err
    told = " ".join(done.err.split())
    assert "the run ends at step 4; the learning rate of step 3 is" in told and "that of the last step was" in told
    wanted = [("optim.lr", 1e-3, 1e-4), ("train.steps", 2, 4)]
    assert [tuple(event[key] for key in ("key", "before", "after")) for event in events(run, "changed")] == wanted
    assert packtrain(*command).code == packtrain("resume", run).code == 0
    assert len(events(run, "changed")) == 2
    assert json.loads(config_of(run))["config"]["optim"]["lr"] == 1e-4
    # The command of the start no longer fits, and says so.
    done = packtrain("train", "demo", "optim.lr=1e-3", "--run", run, "--resume")
    assert "has optim.lr=0.0001, and the command says optim.lr=0.001" in done.sentence


def test_a_change_that_a_kill_undid_is_still_meant(run):
    """Killed between the change and the next checkpoint: config.toml is as the run wrote it, the checkpoint older."""
    assert packtrain("resume", run, "--change", "train.steps=4", "--change", "optim.lr=1e-4").code == 0
    shutil.rmtree(RunLayout(run).checkpoint(4))
    assert packtrain("resume", run).code == 0
    assert json.loads(config_of(run))["config"]["optim"]["lr"] == 1e-4


def test_a_length_in_the_other_unit_replaces_the_one_there_was(run):
    done = packtrain("resume", run, "train.tokens=1024")
    assert done.code == 2 and "has train.tokens=unset, and the command says train.tokens=1024" in done.sentence
    assert packtrain("resume", run, "--change", "train.tokens=1024").code == 0
    told = [(event["key"], event["before"], event["after"]) for event in events(run, "changed")]
    assert told == [("train.steps", 2, None), ("train.tokens", None, 1024)]
    assert RunLayout(run).saved_steps()[-1] == 4


def test_a_finished_run_says_so(run):
    done = packtrain("resume", run, "--json")
    assert done.code == 0 and json.loads(done.out)["step"] == 2
    assert "is finished: all of its 2 steps are done; to train longer, write `packtrain resume" in " ".join(
        done.err.split()
    )


def test_another_preset_than_the_runs_is_refused(run):
    done = packtrain("train", "llama2-15m", "--run", run, "--resume")
    assert done.code == 2 and "was started from demo, and llama2-15m is another preset" in done.sentence
    assert "write `packtrain resume" in done.sentence
    # The run's own configuration says the same, whatever it is called.
    assert packtrain("train", run / "config.toml", "--run", run, "--resume").code == 0


def test_a_file_that_was_edited_since_is_told_and_changes_nothing(dataset, tmp_path):
    mine, run = tmp_path / "mine.toml", tmp_path / "run"
    words = [word for word in TINY if not word.startswith("train.steps")]
    mine.write_text('base = "demo"\n[optim]\nlr = 1e-3\n[train]\nsteps = 2\n')
    command = ("train", mine, *words, f"data.dataset={dataset}", "evaluate.every=0", "--run", run, "--resume")
    assert packtrain(*command).code == 0
    mine.write_text('base = "demo"\n[optim]\nlr = 2e-3\n[train]\nsteps = 2\n')
    done = packtrain(*command)
    assert done.code == 0 and "(optim.lr is now 0.002, and 0.001 in the run)" in " ".join(done.err.split())
    assert json.loads(config_of(run))["config"]["optim"]["lr"] == 1e-3


def test_a_dataset_is_found_from_another_folder(dataset, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    shutil.copytree(dataset, tmp_path / "work" / "data")
    monkeypatch.chdir(tmp_path / "work")
    assert packtrain("train", "demo", *TINY, "train.steps=2", "data.dataset=data", "--run", "run").code == 0
    monkeypatch.chdir(tmp_path)
    assert packtrain("resume", "work/run", "--change", "train.steps=3").code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["resume", "nowhere"], "nowhere does not exist; give a folder that `packtrain train"),
        (["resume", "."], "does not contain a run"),
        (["resume", "run", "optim.lrr=3"], "did you mean optim.lr"),
        (["resume", "run", "--change", "optim.lr"], "'optim.lr' is not a setting; write KEY=VALUE"),
        (["train", "demo", "--run", "new", "--change", "optim.lr=1"], "write optim.lr=1, or add --resume"),
        (["resume", "run", "--change", "train.steps=1"], "the run is at step 2, but its settings give only 1 steps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_resumed_is_one_sentence(words, sentence, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    done = packtrain(*words)
    assert done.code == 2 and sentence in done.sentence


def test_a_run_that_is_not_there_yet_starts_with_its_changes(dataset, tmp_path):
    words = ("train", "demo", *TINY, f"data.dataset={dataset}", "--run", tmp_path / "run", "--resume")
    assert packtrain(*words, "--change", "train.steps=1").code == 0
    assert RunLayout(tmp_path / "run").saved_steps() == [1]
