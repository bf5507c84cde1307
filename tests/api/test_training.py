"""Decides whether runs are planned, trained, stopped and read in Python as on the command line."""

import json

import numpy as np
import pytest
from tests.api.conftest import TINY
from tests.command_line import packtrain

import packtrain as pt
from packtrain.api.settings import to_words
from packtrain.errors import ConfigError, RunError
from packtrain.runs.metrics import read_events


def test_a_callback_sees_every_step_and_every_validation(run, dataset, tmp_path):
    seen = []
    outcome = pt.train("demo", TINY, {"data.dataset": dataset}, run=tmp_path / "run", on_step=seen.append)
    assert [record["step"] for record in seen if "loss" in record] == list(range(1, 9))
    assert [record["step"] for record in seen if "val_loss" in record] == [4, 8]
    assert outcome["step"] == outcome["steps"] == 8
    assert np.array_equal(pt.metrics(run).train["loss"], [record["loss"] for record in seen if "loss" in record])


def test_a_callback_stops_the_run_and_resume_continues_it(run, dataset, tmp_path):
    stopped = pt.train(
        "demo",
        TINY,
        {"data.dataset": dataset},
        run=tmp_path / "run",
        on_step=lambda record: np.bool_(record["step"] >= 3),
    )
    assert (stopped["step"], stopped["steps"]) == (3, 8)
    events = [(line["event"], line.get("reason")) for line in read_events(tmp_path / "run" / "events.jsonl")]
    assert events[-1] == ("stopped", "its callback") and "finished" not in dict(events)
    # Only True stops a run, and not whatever a callback happens to return.
    done = pt.resume(tmp_path / "run", on_step=lambda _: 1)
    assert done["step"] == 8
    for column in ("loss", "grad_norm", "lr"):
        assert np.array_equal(pt.metrics(tmp_path / "run").train[column], pt.metrics(run).train[column])


def test_an_error_of_the_callback_is_raised(dataset, tmp_path):
    with pytest.raises(ZeroDivisionError):
        pt.train("demo", TINY, {"data.dataset": dataset}, run=tmp_path / "run", on_step=lambda _: 1 / 0)
    assert pt.train("demo", TINY, {"data.dataset": dataset}, run=tmp_path / "run", resume=True)["step"] == 8


def test_metrics_are_columns(run):
    train, validation = pt.metrics(run)
    assert train["step"].tolist() == list(range(1, 9)) and train["step"].dtype == np.int64
    assert train["tokens"][-1] == 8 * 256 and train["loss"].dtype == np.float64
    assert validation["step"].tolist() == [4, 8]
    assert len({len(column) for column in train.values()}) == len({len(column) for column in validation.values()}) == 1


def test_metrics_of_a_run_that_is_still_written_or_has_none(run, tmp_path):
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    assert pt.metrics(tmp_path).train["loss"].shape == (0,) and pt.metrics(tmp_path).validation["val_bpb"].shape == (0,)
    lines = [
        json.dumps({"step": 1, "tokens": 4, "loss": None}),
        json.dumps({"step": 2, "tokens": 8, "loss": 2.0, "mfu": 0.4}),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "lo')
    train = pt.metrics(tmp_path).train
    assert np.isnan(train["loss"][0]) and train["loss"][1] == 2.0 and train["step"].tolist() == [1, 2]
    assert np.isnan(train["mfu"][0]) and np.isnan(train["lr"]).all()
    (tmp_path / "metrics.jsonl").write_text("rubbish\n")
    with pytest.raises(RunError, match="is not a line that packtrain wrote"):
        pt.metrics(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        pt.metrics(tmp_path / "nowhere")


def test_evaluate_plan_and_report_give_what_the_commands_give(run, dataset):
    evaluated = pt.evaluate(run, tokens=256)
    printed = json.loads(packtrain("evaluate", run, "--tokens", 256, "--json").out)
    assert evaluated["model"] == printed["model"] and evaluated["step"] == 8
    with pytest.raises(ConfigError, match="both say how much"):
        pt.evaluate(run, tokens=256, everything=True)
    planned = pt.plan("demo", TINY, {"data.dataset": dataset})
    printed = json.loads(
        packtrain("plan", "demo", *to_words((TINY, {"data.dataset": dataset})), "--no-probe", "--json").out
    )
    assert planned["steps"] == 8 and planned["memory"] == printed["memory"] and planned["flops"] == printed["flops"]
    assert pt.report(run, out=run / "page.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(ConfigError, match="give a folder"):
        pt.report()
    with pytest.raises(ConfigError, match="only runs or one dataset"):
        pt.report(run, dataset)


def test_runs_are_listed_checked_and_compared(run, dataset, tmp_path):
    assert [(each.folder, each.state, each.step) for each in pt.runs(run.parent)] == [(run, "finished", 8)]
    with pytest.raises(RunError, match="does not exist"):
        pt.runs(tmp_path / "none")
    found = pt.diff(run, run)
    assert found.as_tree()["equal"] and not found.settings
    with pytest.raises(ConfigError, match=r"is a run and .* is a dataset; compare two runs or two datasets"):
        pt.diff(run, dataset)
    states = {finding.check: finding.state for finding in pt.doctor("demo", TINY, {"data.dataset": dataset})}
    assert states["dataset"] == "ok" and states["gradients"] == "ok" and "fault" not in states.values()
    machine = pt.doctor()
    assert {"device", "cores", "libraries"} <= machine.facts.keys()
    with pytest.raises(ConfigError, match="give its name first"):
        pt.doctor(None, TINY)
