"""Files of a run that somebody edited or lost lines of: told, never believed, and the gap stays visible."""

import json
import os
import shutil

import pytest

from packtrain.report.page import write_report
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.storage.atomic import hash_file
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.train.test_resume import final_state


@pytest.fixture
def run(tiny, tmp_path):
    """Folder of a run of four steps, saved at 2 and 4."""
    train(tiny("train.steps=4", "schedule.name=constant"), tmp_path / "run", resume=False)
    return tmp_path / "run"


@pytest.fixture
def longer(tiny):
    """The configuration of the same run with two more steps."""
    return tiny("train.steps=6", "schedule.name=constant")


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("rms_norm_eps = 1e-05", "rms_norm_eps = 0.5", "model.rms_norm_eps"),
        ("num_attention_heads = 4", "num_attention_heads = 2", "model.num_attention_heads"),
        ("seq_len = 32", "seq_len = 16", "data.seq_len"),
        ("rope_theta = 10000.0", "rope_theta = 77.0", "model.rope_theta"),
    ],
)
def test_an_edited_configuration_is_told_and_changes_no_result(run, tmp_path, old, new, key):
    words = {
        "evaluate": ("evaluate", run, "--json"),
        "inspect": ("inspect", run, "--step", 1, "--json"),
        "export": ("export", run, "--overwrite", "--out", tmp_path / "out", "--json"),
    }
    results = {}
    for edited in (False, True):
        if edited:
            rewrite(run / "config.toml", old, new)
        for verb, command in words.items():
            done = packtrain(*command)
            assert done.code == 0, done.err
            assert (f"{key} was" in done.err) == edited
            found = json.loads(done.out)
            for clock in ("seconds", "created"):
                found.pop(clock, None)
            if edited:
                assert found == results[verb]
            results[verb] = found
    report = write_report([run], tmp_path / "report.html").read_text()
    assert f"{key} was" in report


def test_an_edited_configuration_bends_no_resumed_run(run, longer, tiny, tmp_path, caplog):
    train(tiny("train.steps=4", "schedule.name=constant"), tmp_path / "whole", resume=False)
    train(longer, tmp_path / "whole", resume=True)
    caplog.clear()
    rewrite(run / "config.toml", "rms_norm_eps = 1e-05", "rms_norm_eps = 0.5")
    train(longer, run, resume=True)
    assert "model.rms_norm_eps was 1e-05 and is now 0.5" in caplog.text
    assert final_state(run) == final_state(tmp_path / "whole")


def test_a_setting_changed_by_a_resume_is_no_edit(run, tiny, caplog):
    train(tiny("train.steps=4", "schedule.name=constant", "log.every=2"), run, resume=True)
    assert checkpoint.open_run(run).config.log.every == 1
    assert "the edit has no effect" not in caplog.text


def test_a_dataset_that_moved_is_found_where_the_configuration_says(tiny, dataset, tmp_path, caplog):
    shutil.copytree(dataset, tmp_path / "here")
    train(tiny("train.steps=2", f"data.dataset={tmp_path / 'here'}"), tmp_path / "run", resume=False)
    (tmp_path / "here").rename(tmp_path / "there")
    rewrite(tmp_path / "run" / "config.toml", str(tmp_path / "here"), str(tmp_path / "there"))
    assert checkpoint.open_run(tmp_path / "run").config.data.dataset == str(tmp_path / "there")
    assert "the edit has no effect" not in caplog.text


def test_another_tokenizer_in_the_manifest_is_told_and_not_used(run, caplog):
    manifest = json.loads((run / "manifest.json").read_text())
    adds_bos = manifest["dataset"]["tokenizer"]["adds_bos"]
    manifest["dataset"]["tokenizer"]["adds_bos"] = not adds_bos
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.open_run(run).manifest["dataset"]["tokenizer"]["adds_bos"] is adds_bos
    assert "dataset.tokenizer differs" in caplog.text


def test_a_checkpoint_of_before_is_resumed_with_a_word(run, longer, caplog):
    """As packtrain 0.1.0 wrote it: the configuration is in config.toml alone, the validation in state.json."""
    for step in (2, 4):
        folder = RunLayout(run).checkpoint(step)
        for name in ("configuration.toml", "logs.json", "validation.json"):
            (folder / name).unlink(missing_ok=True)
        state = json.loads((folder / "state.json").read_text()) | {"val_loss": 3.5 if step == 4 else None}
        (folder / "state.json").write_text(json.dumps(state))
        hashes = json.loads((folder / "hashes.json").read_text())
        del hashes["configuration.toml"]
        (folder / "hashes.json").write_text(json.dumps(hashes | {"state.json": hash_file(folder / "state.json")}))
    assert checkpoint.open_run(run, which="best").step == 4
    assert "was saved without its configuration" in caplog.text
    assert train(longer, run, resume=True)["step"] == 6
    assert not any(event["event"] == "log_gap" for event in read_jsonl(run / "events.jsonl"))


def lose_line(path, number):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "a line gone": lambda path: lose_line(path, 1),
    "edited": lambda path: path.write_bytes(path.read_bytes().replace(b'"step": 1', b'"step": 2', 1)),
}


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_lost_lines_are_told_and_stay_visible(run, longer, tmp_path, name, damage, caplog):
    if name == "events.jsonl" and damage == "edited":
        rewrite(run / name, '"world_size": 1', '"world_size": 9')
    else:
        DAMAGE[damage](run / name)
    before = write_report([run], tmp_path / "report.html").read_text()
    assert name in before and "at step 4" in before
    assert train(longer, run, resume=True)["step"] == 6
    assert f"{name} " in caplog.text and "events.jsonl notes the gap" in caplog.text
    (gap,) = [event for event in read_jsonl(run / "events.jsonl") if event["event"] == "log_gap"]
    assert (gap["step"], gap["file"]) == (4, name)
    caplog.clear()
    train(longer, run, resume=True)
    assert "notes the gap" not in caplog.text, "said once"
    after = write_report([run], tmp_path / "report.html").read_text()
    assert f"{name} {gap['reason']}" in after


def test_whole_logs_are_no_gap(run, longer):
    train(longer, run, resume=True)
    assert [event["event"] for event in read_jsonl(run / "events.jsonl")].count("log_gap") == 0


def change_hashes(folder, change):
    hashes = json.loads((folder / "hashes.json").read_text())
    change(hashes)
    (folder / "hashes.json").write_text(json.dumps(hashes))


@pytest.mark.parametrize(
    "change",
    [
        lambda hashes: hashes.pop("state.json"),
        lambda hashes: hashes.pop("configuration.toml"),
        lambda hashes: hashes.pop("rank-00000-00000.safetensors"),
        lambda hashes: hashes.update({"../../config.toml": "0" * 32}),
        lambda hashes: hashes.update({"/etc/hostname": "0" * 32}),
        lambda hashes: hashes.update({"state.json": None}),
        lambda hashes: hashes.update({"": "0" * 32}),
    ],
    ids=["state", "config", "tensors", "parent", "absolute", "null", "empty"],
)
def test_the_list_of_hashes_names_each_file_and_nothing_else(run, change, caplog):
    change_hashes(RunLayout(run).checkpoint(4), change)
    assert checkpoint.find_newest(RunLayout(run)).step == 2
    assert "skipping a damaged checkpoint" in caplog.text


@pytest.mark.parametrize("name", ["state.json", "hashes.json", "configuration.toml", "rank-00000-00000.safetensors"])
def test_links_and_pipes_in_a_checkpoint_are_refused(run, tmp_path, name):
    path = RunLayout(run).checkpoint(4) / name
    path.rename(tmp_path / name)
    path.symlink_to(tmp_path / name)
    assert checkpoint.find_newest(RunLayout(run)).step == 2
    path.unlink()
    os.mkfifo(path)
    assert checkpoint.find_newest(RunLayout(run)).step == 2
