"""`inspect` of a run that rolled back, or began elsewhere in the data, shows what its steps were really trained on."""

import json

import pytest

from packtrain.data.feed.loader import step_rows
from packtrain.errors import Interrupted
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train import loop
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.train.conftest import ROWS_PER_STEP, SEED, SENSITIVE
from tests.train.test_resume import StopAt


@pytest.fixture
def record(monkeypatch):
    """Trains, and gives the targets that each step had in the end, and why it was skipped."""
    latest, handed = [], {}
    real_step = loop.train_step

    def step(model, optimizer, batch, placement, **settings):
        result = real_step(model, optimizer, batch, placement, **settings)
        latest[:] = [(batch.rows.targets_BT.tolist(), result.skipped)]
        return result

    monkeypatch.setattr(loop, "train_step", step)

    def run(config, folder, *, stop_at=None):
        def on_step(line):
            if "loss" in line:
                handed[line["step"]] = latest[0]
            if stop_at is not None:
                StopAt(stop_at)(line)

        if stop_at is None:
            train(config, folder, resume=True, on_step=on_step)
        else:
            with pytest.raises(Interrupted):
                train(config, folder, resume=True, on_step=on_step)
        return dict(sorted(handed.items()))

    return run


def ask(run, *words):
    done = packtrain("inspect", run, *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def check(run, handed):
    """Compares `inspect` with what the steps had, and gives the pieces of documents that were passed over."""
    by_step = set()
    for step, (targets, skipped) in handed.items():
        shown = ask(run, "--step", step)
        assert [row["targets"] for row in shown["rows"]] == targets
        assert shown["skipped"] == skipped
        for place, row in enumerate(shown["rows"]):
            for piece in row["stretches"]:
                by_step.add((piece["document"], step, place, row["row"], piece["start"], piece["length"], skipped))
    documents = [entry for entry in ask(run, "--document", "text.jsonl")["documents"] if entry["split"] == "train"]
    keys = ("step", "row_of_step", "row", "start", "length", "skipped")
    by_document = {
        (entry["document"], *(visit[key] for key in keys)) for entry in documents for visit in entry["visits"]
    }
    assert {visit for visit in by_document if visit[1] <= max(handed)} == by_step
    return [(entry["document"], visit["row"]) for entry in documents for visit in entry["passed_over"]]


def rows_between(config, first, end):
    from packtrain.train.preflight import open_training_data

    layout = open_training_data(config).layout(config.data.seq_len, config.data.packing)
    return set(step_rows(layout, SEED, first * ROWS_PER_STEP, (end - first) * ROWS_PER_STEP).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_of_a_run_whose_epochs_are_packed_again(tiny, record, tmp_path, packing):
    words = ("data.repack=true", f"data.packing={packing}", "train.epochs=2.5", "checkpoint.every=500")
    config, run = tiny("train.steps=", *words, "evaluate.every=0", "train.global_batch_tokens=8192"), tmp_path / "run"
    assert not check(run, record(config, run))


@pytest.mark.slow
def test_of_a_run_that_went_back(tiny, spoiled, record, tmp_path):
    config, run = tiny(*SENSITIVE, spoiled(*range(19, 25))), tmp_path / "run"
    passed_over = check(run, record(config, run))
    # Rolled back from 22 to 16: the rows of steps 17 to 22 no longer count as trained on.
    assert {row for _, row in passed_over} == rows_between(config, 16, 22)
    assert "step 17 of 30" in packtrain("inspect", run, "--step", 17).out
    document, row = passed_over[0]
    told = packtrain("inspect", run, "--document", f"train/{document}").out
    assert f"not trained on: the run rolled back and passed over row {row} of the plan" in " ".join(told.split())
    skipped = next(event["step"] for event in read_jsonl(run / "events.jsonl")[::-1] if event["event"] == "skipped")
    assert "(skipped, spike of the loss: the weights stayed as they were)" in packtrain(
        "inspect", run, "--step", skipped
    ).out.replace("\n", " ")


@pytest.mark.slow
def test_of_a_run_that_lost_the_checkpoint_it_went_back_to(tiny, spoiled, record, tmp_path):
    config, run = tiny(*SENSITIVE, spoiled(*range(19, 25))), tmp_path / "run"
    record(config, run)
    for step in RunLayout(run).saved_steps():
        if step >= 16:
            (RunLayout(run).checkpoint(step) / "hashes.json").unlink()
    handed = record(config, run, stop_at=20)
    assert not check(run, {step: batch for step, batch in handed.items() if step <= 20})
    assert {row for _, row in check(run, record(config, run))} == rows_between(config, 16, 22)


@pytest.mark.slow
def test_of_a_run_that_anneals(tiny, record, tmp_path):
    config = tiny("train.steps=80", "schedule.name=constant", "checkpoint.every=70", "evaluate.every=0")
    train(config, tmp_path / "constant", resume=False)
    origin = RunLayout(tmp_path / "constant").checkpoint(70)
    assert read_state(origin)["loader"]["epoch"] == 1
    run = tmp_path / "down"
    assert not check(run, record(tiny("schedule.name=linear", f"train.anneal_from={origin}"), run))
    entries = ask(run, "--document", "text.jsonl")["documents"]
    never = next(entry for entry in entries if entry["split"] == "train" and not entry["visits"])
    told = packtrain("inspect", run, "--document", f"train/{never['document']}").out
    assert "not trained on: this run starts where another run is in the data" in " ".join(told.split())


def read_state(checkpoint):
    return json.loads((checkpoint / "state.json").read_text())
