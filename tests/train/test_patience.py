"""A run whose validation loss no longer falls ends early, also if it is stopped and resumed, and its best step is exported."""

import logging
import math

import pytest

from packtrain.api.measuring import evaluate
from packtrain.api.models import load
from packtrain.api.target import which_checkpoint
from packtrain.config.load import load_run_config
from packtrain.errors import ConfigError, Interrupted
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_events, read_jsonl
from packtrain.runs.retention import find_best_step
from packtrain.runs.status import read_status
from packtrain.train import loop
from packtrain.train.patience import Patience, find_patience
from packtrain.train.resume import continue_config
from packtrain.train.run import train
from packtrain.train.validate import Validator

from .test_resume import StopAt, final_state

SETTINGS = ("train.stop_after=2", "evaluate.every=2", "checkpoint.every=0", "checkpoint.keep=1")


@pytest.fixture
def worsening(monkeypatch):
    """Validations whose loss is lowest at step 4. What a tiny model reaches would hang on its last bits."""
    step = 0
    loop_validate, validate = loop._Run._validate, Validator.validate

    def remember_step(self):
        nonlocal step
        step = self.parts.progress.step
        loop_validate(self)

    def set_loss(self, model, stop):
        return {**validate(self, model, stop), "val_loss": 5.0 + abs(step - 4) / 10}

    monkeypatch.setattr(loop._Run, "_validate", remember_step)
    monkeypatch.setattr(Validator, "validate", set_loss)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([], None),
        ([None], None),
        ([3.0], (1, 3.0, 0)),
        ([3.0, 2.0, 2.5, 2.0], (2, 2.0, 2)),
        ([3.0, None, math.nan, 3.5], (1, 3.0, 3)),
        ([None, 4.0, 3.0], (3, 3.0, 0)),
    ],
)
def test_the_best_counts_and_how_many_came_since(losses, expected):
    lines = [{"step": 1, "loss": 9.0}, *({"step": n, "val_loss": loss} for n, loss in enumerate(losses, start=1))]
    assert find_patience(lines) == (expected and Patience(*expected))


def kinds(folder):
    return [event["event"] for event in read_events(RunLayout(folder).events)]


@pytest.mark.usefixtures("worsening")
def test_a_run_stops_after_validations_that_are_not_better_and_keeps_the_best(tiny, tmp_path, caplog):
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO, "packtrain"):
        outcome = train(tiny(*SETTINGS, "train.steps=40"), folder, resume=False)
    layout = RunLayout(folder)
    validations = [line for line in read_jsonl(layout.metrics) if "val_loss" in line]
    best = min(validations, key=lambda line: line["val_loss"])
    (event,) = (event for event in read_events(layout.events) if event["event"] == "stopped_early")
    assert outcome["step"] == event["step"] == best["step"] + 4 < 40
    assert (event["best_step"], event["val_loss"], event["validations"]) == (best["step"], best["val_loss"], 2)
    assert layout.saved_steps() == [best["step"], outcome["step"]]
    assert find_best_step(layout) == best["step"]
    assert kinds(folder)[-2:] == ["stopped_early", "finished"] and read_status(folder).state == "finished"
    assert f"2 validations in a row were not better than that of step {best['step']}" in caplog.text
    with caplog.at_level(logging.INFO, "packtrain"):
        assert which_checkpoint(folder, None, best=False) == "best"
    assert f"using step {best['step']}, " in caplog.text and f"--last for step {outcome['step']}" in caplog.text
    assert which_checkpoint(folder, None, best=False, last=True) == "last"
    assert which_checkpoint(folder, 2, best=False) == "last"
    with pytest.raises(ConfigError, match="--last and --step 2 both choose"):
        which_checkpoint(folder, 2, best=False, last=True)
    # Every way out takes the same one.
    assert load(folder, device="cpu").step == evaluate(folder, tokens=64)["step"] == best["step"]
    assert load(folder, last=True, device="cpu").step == outcome["step"]
    # It is over; with more patience it goes on.
    before = final_state(folder)
    assert train(tiny(*SETTINGS, "train.steps=40"), folder, resume=True)["step"] == outcome["step"]
    assert final_state(folder) == before
    patient = continue_config(layout, [], ["train.stop_after=4"])
    assert train(patient, folder, resume=True)["step"] > outcome["step"]


@pytest.mark.usefixtures("worsening")
def test_a_run_that_is_stopped_in_between_stops_where_the_whole_one_does(tiny, tmp_path):
    config = tiny(*SETTINGS, "train.steps=40")
    whole = train(config, tmp_path / "whole", resume=False)
    for step in (whole["step"] - 1, whole["step"]):
        with pytest.raises(Interrupted):
            train(config, tmp_path / f"at {step}", resume=False, on_step=StopAt(step))
        assert train(config, tmp_path / f"at {step}", resume=True)["step"] == whole["step"]
        assert final_state(tmp_path / f"at {step}") == final_state(tmp_path / "whole")


def test_without_it_nothing_more_is_saved_and_the_last_step_is_exported(tiny, tmp_path):
    train(tiny("evaluate.every=2", "checkpoint.every=0", "train.steps=4"), tmp_path / "run", resume=False)
    assert RunLayout(tmp_path / "run").saved_steps() == [4]
    assert which_checkpoint(tmp_path / "run", None, best=False, last=False) == "last"
    assert which_checkpoint(tmp_path / "elsewhere", None, best=False, last=False) == "last"


def test_it_needs_validations():
    with pytest.raises(ConfigError, match=r"counts validations, and evaluate\.every=0 makes none"):
        load_run_config("demo", ["train.stop_after=2", "evaluate.every=0"])
