"""A validation, a sample or a tracker that fails costs a run nothing: its steps are saved, and the failure is an event."""

import os
import subprocess
import sys

import pytest

from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.runs.retention import find_best_step
from packtrain.train import trackers, validate
from packtrain.train.run import train
from tests.train.conftest import TINY
from tests.train.test_resume import final_state


def failures(folder):
    return [
        (event["step"], event["what"], event["reason"])
        for event in read_jsonl(RunLayout(folder).events)
        if event["event"] == "evaluation_failed"
    ]


def fail(*_, **__):
    raise ZeroDivisionError("by\nnothing")


def test_a_validation_that_fails_is_an_event_and_the_weights_are_the_same(tiny, tmp_path, monkeypatch, caplog):
    train(tiny(), tmp_path / "whole", resume=False)
    monkeypatch.setattr(validate, "evaluate_rows", fail)
    assert train(tiny(), tmp_path / "run", resume=False)["step"] == 10
    told = "ZeroDivisionError: by nothing"
    assert failures(tmp_path / "run") == [(step, "validation", told) for step in (4, 8, 10)]
    assert f"step 4 has no validation, which failed ({told}); training continues" in caplog.text
    assert find_best_step(RunLayout(tmp_path / "run")) is None
    assert final_state(tmp_path / "run")[2] == final_state(tmp_path / "whole")[2]
    monkeypatch.undo()
    # What failed at the last step is made up for.
    assert train(tiny(), tmp_path / "run", resume=True)["val_loss"] == final_state(tmp_path / "whole")[0]["val_loss"]


def test_samples_that_fail_are_an_event_and_the_validation_stays(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    train(tiny("train.steps=2"), tmp_path / "run", resume=True)
    (tmp_path / "run" / "samples").write_text("in the way")
    train(tiny("evaluate.prompts=['a']", "evaluate.sample_tokens=1"), tmp_path / "run", resume=True)
    assert [step for step, what, reason in failures(tmp_path / "run") if what == "samples" and "File exists" in reason]
    assert checkpoint.find_newest(RunLayout(tmp_path / "run")).state["val_loss"] > 0


class Failing:
    """A tracker that fails at a call."""

    def __init__(self, call):
        self.call = call
        if call == "open":
            fail()

    def log(self, *_):
        if self.call == "log":
            raise SystemExit(1)

    def close(self):
        if self.call == "close":
            fail()


@pytest.mark.parametrize("call", ["open", "log", "close"])
def test_a_tracker_may_fail_at_any_call(tiny, tmp_path, monkeypatch, caplog, call):
    monkeypatch.setitem(trackers._TRACKERS, "wandb", lambda *_: Failing(call))
    assert train(tiny("track.wandb=true", "train.steps=2"), tmp_path / "run", resume=False)["step"] == 2
    assert "track.wandb failed and is dropped" in caplog.text


DIES = """
import os, sys
from pathlib import Path
from packtrain.config.load import load_run_config
from packtrain.train import validate
from packtrain.train.run import train

validate.evaluate_rows = lambda *_, **__: os._exit(7)
train(load_run_config("demo", sys.argv[2:]).config, Path(sys.argv[1]), resume=True)
"""


@pytest.mark.slow
def test_a_process_that_dies_in_a_validation_has_saved_its_step(tiny, dataset, tmp_path):
    command = [sys.executable, "-c", DIES, str(tmp_path / "run"), *TINY, f"data.dataset={dataset}"]
    assert subprocess.run(command, check=False, env=os.environ).returncode == 7
    assert RunLayout(tmp_path / "run").saved_steps() == [2, 4]
    train(tiny(), tmp_path / "run", resume=True)
    train(tiny(), tmp_path / "whole", resume=False)
    assert final_state(tmp_path / "run") == final_state(tmp_path / "whole")
