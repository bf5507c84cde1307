"""A report knows what the files of a run say, whatever is missing or broken, and says what is."""

import json
import math
from pathlib import Path

import pytest
from tests.report.runs_on_disk import write_lines, write_run

from packtrain.errors import RunError
from packtrain.report.collect import collect, differing_settings
from packtrain.runs.layout import RunLayout


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    return write_run(tmp_path / "run")


def test_a_whole_run_lacks_nothing(run: RunLayout) -> None:
    record = collect(run.folder)
    assert record.missing == []
    assert (len(record.training), len(record.validation), len(record.samples)) == (70, 7, 14)
    assert record.last_step == record.planned_steps == 700
    assert record.setting("optim.lr") == 3e-3


def test_changed_settings_know_their_default(run: RunLayout) -> None:
    settings = {s.key: s for s in collect(run.folder).settings}
    assert (settings["optim.lr"].is_changed, settings["optim.lr"].default) == (True, 6e-4)
    assert not settings["optim.weight_decay"].is_changed


def test_a_step_logged_again_replaces_what_came_after_it(run: RunLayout) -> None:
    with run.metrics.open("a") as file:
        for step in (650, 660):
            file.write(json.dumps({"step": step, "tokens": 1, "loss": 0.5}) + "\n")
    record = collect(run.folder)
    assert record.column("step")[-3:].tolist() == [640, 650, 660]
    assert record.column("loss")[-2:].tolist() == [0.5, 0.5]
    assert record.validation[-1]["step"] == 700


def test_an_unfinished_last_line_is_ignored_and_a_broken_one_is_reported(run: RunLayout) -> None:
    with run.metrics.open("a") as file:
        file.write('{"step": 710, "loss": 1.')
    assert collect(run.folder).missing == []
    run.metrics.write_text("not json\n[1]\n" + run.metrics.read_text())
    record = collect(run.folder)
    assert record.missing == ["Left out 2 unreadable lines of metrics.jsonl."]
    assert len(record.training) == 70


@pytest.mark.parametrize("written", ["null", "NaN", "Infinity", '"nan"', '"what"', "true", "[]"])
def test_what_is_not_a_finite_number_is_not_drawn_as_one(run: RunLayout, written: str) -> None:
    run.metrics.write_text(f'{{"step": 10, "tokens": 40960, "loss": {written}}}\n')
    assert not math.isfinite(collect(run.folder).column("loss")[0])


def test_a_run_that_has_just_started_says_what_is_missing(run: RunLayout) -> None:
    for path in (run.metrics, run.events, run.manifest, run.evaluation):
        path.unlink()
    for path in run.samples.iterdir():
        path.unlink()
    record = collect(run.folder)
    assert record.last_step == 0
    assert any("No training step" in sentence for sentence in record.missing)
    assert any("manifest.json" in sentence for sentence in record.missing)
    assert any("not been evaluated" in sentence for sentence in record.missing)


def test_files_that_are_not_json_are_named(run: RunLayout) -> None:
    run.evaluation.write_text('{"model": ')
    run.manifest.write_text("[]")
    missing = " ".join(collect(run.folder).missing)
    assert "evaluation.json cannot be read" in missing and "manifest.json cannot be read" in missing


def test_a_configuration_of_another_version_is_still_shown(run: RunLayout) -> None:
    run.config.write_text("[optim]\nlr = 0.5\nmagic = 3\n")
    record = collect(run.folder)
    assert record.setting("optim.magic") == 3
    assert not any(s.is_changed for s in record.settings)
    assert any("optim.magic" in sentence for sentence in record.missing)


def test_a_configuration_that_is_not_toml_is_named(run: RunLayout) -> None:
    run.config.write_text("=")
    record = collect(run.folder)
    assert record.settings == []
    assert record.missing


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="packtrain train"):
        collect(tmp_path)


def test_tokens_are_known_between_the_logged_steps(run: RunLayout) -> None:
    record = collect(run.folder)
    assert record.tokens_at(105) == pytest.approx(105 * 4096)
    write_lines(run.metrics, [{"step": 10, "val_loss": 3.0}])
    assert collect(run.folder).tokens_at(10) == 10 * 4096


def test_settings_that_differ(tmp_path: Path) -> None:
    records = [collect(write_run(tmp_path / str(lr), lr=lr).folder) for lr in (1e-3, 2e-3)]
    assert differing_settings(records) == [("optim.lr", [1e-3, 2e-3])]
