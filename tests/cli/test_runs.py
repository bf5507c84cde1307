"""`runs`, `inspect RUN` and `diff RUN RUN`: what a run's files say, and a plain sentence for what they do not."""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
from tests.command_line import packtrain
from tests.report.runs_on_disk import write_lines, write_run
from tests.train.conftest import TINY

from packtrain.config.load import load_run_config
from packtrain.errors import Interrupted, NonFiniteError, RunError
from packtrain.runs.layout import RunLayout, lock_run
from packtrain.runs.listing import list_runs, looks_like_run
from packtrain.runs.metrics import read_jsonl
from packtrain.runs.status import MEANING, read_status
from packtrain.train.run import train


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """A finished run of ten steps, resumed once, and one with another learning rate and length."""
    folder = tmp_path_factory.mktemp("runs")
    words = [*TINY, f"data.dataset={dataset}"]

    def config(*settings):
        return load_run_config("demo", [*words, *settings]).config

    train(config("train.steps=6"), folder / "first", resume=False)
    train(config("log.every=2"), folder / "first", resume=True)
    train(config("optim.lr=1e-3", "train.steps=8"), folder / "deeper" / "second", resume=False)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the first run, to be spoiled."""
    return RunLayout(shutil.copytree(trained / "first", tmp_path / "run"))


def states(folder):
    return {str(run.folder.relative_to(folder)): run.state for run in list_runs(folder)}


def test_runs_are_found_and_described(trained):
    done = packtrain("runs", trained, "--json")
    (first,) = [run for run in done.json["runs"] if run["folder"] == str(trained / "first")]
    assert len(done.json["runs"]) == 2 and done.json["problems"] == []
    *_, last = [line for line in read_jsonl(trained / "first" / "metrics.jsonl") if "loss" in line]
    *_, validation = [line for line in read_jsonl(trained / "first" / "metrics.jsonl") if "val_loss" in line]
    expected = {key: last[key] for key in ("loss", "tokens", "tokens_per_s")}
    expected |= {key: validation[key] for key in ("val_loss", "val_bpb")}
    assert expected | {"state": "finished", "step": 10, "steps": 10, "problems": []} == {
        key: first[key] for key in (*expected, "state", "step", "steps", "problems")
    }
    assert 0 <= first["age_s"] < 3600
    shown = packtrain("runs", trained).out
    assert "deeper/second" in shown and "8/8" in shown and f"{validation['val_bpb']:.4f}" in shown
    assert packtrain("runs", trained / "first", "--json").json["runs"][0]["step"] == 10


def test_the_default_folder_is_runs_or_the_one_we_are_in(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "No run in . or below it" in packtrain("runs").out
    shutil.copytree(trained / "first", tmp_path / "here")
    assert [run["folder"] for run in packtrain("runs", "--json").json["runs"]] == ["here"]
    (tmp_path / "runs").symlink_to(trained)
    assert len(packtrain("runs", "--json").json["runs"]) == 2
    assert packtrain("runs", "nowhere").code == 2


def test_a_state_is_what_the_lock_and_the_last_event_say(copied):
    folder = copied.folder
    *events, last = copied.events.read_text().splitlines(keepends=True)
    assert json.loads(last)["event"] == "finished" and read_status(folder).state == "finished"
    with lock_run(copied):
        assert read_status(folder).state == "training"
    for event, state in (
        ({"event": "stopped", "reason": "SIGTERM"}, "stopped"),
        ({"event": "failed", "reason": "diverged", "exit_code": 4}, "guard"),
        ({"event": "failed", "reason": "a bug", "exit_code": 1}, "failed"),
        ({"event": "failed", "reason": "of an older version"}, "failed"),
        ({"event": "saved"}, "killed"),
    ):
        copied.events.write_text("".join(events) + json.dumps({"time": 0.0, "step": 10, **event}) + "\n")
        found = read_status(folder)
        assert (found.state, found.reason) == (state, event.get("reason"))
    copied.events.unlink()
    assert read_status(folder).state == "unknown" and "events.jsonl is missing" in read_status(folder).problems[0]
    copied.metrics.unlink()
    assert read_status(folder).state == "new"


def test_a_run_that_a_guard_or_a_signal_ended_says_so(dataset, tmp_path):
    def config(*settings):
        return load_run_config("demo", [*TINY, f"data.dataset={dataset}", "evaluate.every=0", *settings]).config

    with pytest.raises(NonFiniteError):
        train(config("optim.lr=1e30", "train.grad_clip=0", "schedule.warmup_steps=0"), tmp_path / "a", resume=False)
    assert states(tmp_path) == {"a": "guard"} and "optim.lr" in read_status(tmp_path / "a").reason
    told = packtrain("inspect", tmp_path / "a").out
    assert "stopped by a guard" in told and "skipped" in told and f"packtrain resume {tmp_path / 'a'}" in told

    def stop(_):
        os.kill(os.getpid(), 15)
        seen.append(read_status(tmp_path / "b").state)

    seen = []
    with pytest.raises(Interrupted, match=r"at step 1 of 10, saved in"):
        train(config(), tmp_path / "b", resume=False, on_step=stop)
    assert seen == ["training"] and read_status(tmp_path / "b").state == "stopped"


def test_asking_whether_a_run_is_locked_does_not_disturb_a_start(tmp_path):
    """Some other process asks all the time."""
    layout = RunLayout(tmp_path)
    script = "import sys; from pathlib import Path; from packtrain.runs.layout import RunLayout, is_locked\n"
    script += "while True: is_locked(RunLayout(Path(sys.argv[1])))"
    layout.lock.touch()
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    try:
        time.sleep(0.5)
        for _ in range(50):
            with lock_run(layout):
                pass
    finally:
        process.kill()
        process.wait()


def test_what_is_no_run_is_no_run(trained, tmp_path, dataset):
    (tmp_path / "cargo").mkdir()
    (tmp_path / "cargo" / "config.toml").write_text("[build]\njobs = 1\n")
    shutil.copytree(dataset, tmp_path / "dataset")
    shutil.copytree(trained / "first", tmp_path / ".hidden")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").touch()
    assert states(tmp_path) == {}
    with lock_run(RunLayout(tmp_path / "locked")):
        assert states(tmp_path) == {"locked": "starting"}
    with pytest.raises(RunError, match="is a file; give a folder"):
        list_runs(tmp_path / "cargo" / "config.toml")


def append(path, text):
    path.write_text(path.read_text() + text)


DAMAGE = {
    "no metrics": (lambda run: run.metrics.unlink(), None),
    "a torn end": (lambda run: append(run.metrics, '{"step": 11, "lo'), None),
    "torn lines": (lambda run: run.metrics.write_text('{"st\n' + run.metrics.read_text() + "[1]\n"), "has 2 lines that"),
    "a huge number": (lambda run: append(run.metrics, '{"step": 1' + "0" * 400 + ', "loss": 1e999}\n'), None),
    "no configuration": (lambda run: run.config.unlink(), "config.toml is missing"),
    "a torn configuration": (lambda run: run.config.write_text("[mod"), "config.toml is not TOML"),
    "bytes for a configuration": (lambda run: run.config.write_bytes(b"\xff\x00"), "it is not UTF-8 text"),
    "a setting of another version": (lambda run: append(run.config, "\n[later]\nx = 1\n"), None),
    "no manifest": (lambda run: run.manifest.unlink(), None),
    "a torn manifest": (lambda run: run.manifest.write_text("{"), "manifest.json cannot be read"),
    "a manifest of other types": (lambda run: run.manifest.write_text('{"dataset": [1], "parameters": "x"}'), None),
    "a folder for a log": (lambda run: (run.events.unlink(), run.events.mkdir()), "events.jsonl: it cannot be read"),
    "events of other types": (lambda run: run.events.write_text('{"event": 3, "step": "x"}\n{"event": "resumed", "changed": 7}\n'), None),
    "half a checkpoint": (lambda run: (run.checkpoint(10) / "hashes.json").unlink(), "the checkpoint of step 10 is not whole"),
    "a file for checkpoints": (lambda run: (shutil.rmtree(run.checkpoints), run.checkpoints.touch()), None),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_is_a_useful_view_or_a_sentence(copied, trained, name):
    damage, told = DAMAGE[name]
    damage(copied)
    run = copied.folder
    (listed,) = packtrain("runs", run.parent, "--json").json["runs"]
    assert listed["folder"] == str(run) and listed["state"] in MEANING
    shown = packtrain("inspect", run)
    assert shown.code == 0 and str(run) in shown.out
    if told is not None:
        assert told in shown.out
    compared = packtrain("diff", run, trained / "deeper" / "second")
    assert compared.code == 0 or len(compared.sentence) < 400


def test_inspect_shows_a_run(trained):
    run = trained / "first"
    found = packtrain("inspect", run, "--json").json
    assert found["num_steps"] == 10 and found["plan"]["seq_len"] == 32
    told = found["run"]
    assert (told["state"], told["num_layers"], told["hidden_size"], told["world_size"]) == ("finished", 2, 32, 1)
    assert told["changes"] == [
        {"step": 6, "key": "log.every", "before": 1, "after": 2},
        {"step": 6, "key": "train.steps", "before": 6, "after": 10},
    ]
    assert [each["step"] for each in told["checkpoints"]] == RunLayout(run).saved_steps()
    for each in told["checkpoints"]:
        folder = RunLayout(run).checkpoint(each["step"])
        assert each["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert sum(each["is_best"] for each in told["checkpoints"]) == 1
    shown = packtrain("inspect", run).out
    for text in ("step 10 of 10 (100%)", "log.every: 1 -> 2", "resumed", f"packtrain generate {run} --prompt 'The '"):
        assert text in shown


def test_inspect_shows_a_run_whose_dataset_is_gone(copied):
    moved = json.loads(copied.manifest.read_text())
    moved["dataset"]["folder"] = "/gone"
    copied.manifest.write_text(json.dumps(moved))
    config = copied.config.read_text()
    (line,) = [line for line in config.splitlines() if line.startswith("dataset = ")]
    copied.config.write_text(config.replace(line, 'dataset = "/gone"'))
    shutil.rmtree(copied.checkpoints)
    done = packtrain("inspect", copied.folder)
    assert done.code == 0 and "step 10 of 10" in done.out and "its rows cannot be shown: " in done.out


def test_diff_shows_settings_and_results(trained):
    runs = (trained / "first", trained / "deeper" / "second")
    found = packtrain("diff", *runs, "--json").json
    assert found["settings"] == {"train.steps": [10, 8], "optim.lr": [0.004, 0.001], "log.every": [2, 1]}
    assert (found["equal"], found["same_data"], found["same_held_out"]) == (False, True, True)
    first, second = found["results"]
    assert (first["step"], second["step"], first["state"]) == (10, 8, "finished")
    lines = read_jsonl(runs[1] / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert second["train_s"] == pytest.approx(sum(line["step_s"] for line in steps))
    assert second["tokens_per_s"] == pytest.approx(8 * 256 / second["train_s"])
    assert second["best_bpb"] == min(line["val_bpb"] for line in lines if "val_bpb" in line)
    tokens, *bits = found["at_same_tokens"]
    assert tokens == 8 * 256 and bits[1] == second["val_bpb"]
    shown = packtrain("diff", *runs).out
    assert "optim.lr" in shown and "They were trained on the same data and validated on the same text." in shown
    same = packtrain("diff", runs[0], runs[0], "--json").json
    assert same["equal"] and not same["settings"] and not same["machine"]


def test_diff_warns_of_losses_that_cannot_be_compared(trained, copied):
    config = copied.config.read_text()
    copied.config.write_text(config.replace("tokens = 512", "tokens = 1024"))
    shutil.rmtree(copied.checkpoints)
    found = packtrain("diff", copied.folder, trained / "first", "--json").json
    assert found["same_data"] and found["same_held_out"] is False and found["at_same_tokens"] is None
    manifest = json.loads(copied.manifest.read_text())
    manifest["dataset"]["hash"] = "0" * 64
    copied.manifest.write_text(json.dumps(manifest))
    assert "different data" in packtrain("diff", copied.folder, trained / "first").out
    copied.manifest.unlink()
    assert "is not known" in packtrain("diff", copied.folder, trained / "first").out


@pytest.mark.parametrize("words", [("first", "DATASET"), ("DATASET", "first"), ("first", "nowhere")])
def test_a_run_and_something_else_are_not_compared(trained, dataset, words):
    done = packtrain("diff", *(dataset if word == "DATASET" else trained / word for word in words))
    assert done.code == 2 and "compare two runs or two datasets" in done.sentence


def test_many_long_runs_are_listed_from_the_ends_of_their_logs(tmp_path):
    layout = write_run(tmp_path / "long", steps=700)
    lines = read_jsonl(layout.metrics)
    more = [line | {"step": line["step"] + 700 * turn} for turn in range(1, 60) for line in lines]
    random.Random(0).shuffle(more[:100])
    write_lines(layout.metrics, [*lines, *more])
    # What is far from the end is not read, so that it cannot be noticed.
    layout.metrics.write_bytes(b"torn\n" + layout.metrics.read_bytes())
    (run,) = list_runs(tmp_path)
    assert run.problems == () and run.step == 700 * 60 and run.val_bpb is not None
    assert looks_like_run(layout.folder)


def test_listing_imports_no_torch(trained):
    script = "import sys; from pathlib import Path; from packtrain.runs.listing import list_runs\n"
    script += (
        "assert len(list_runs(Path(sys.argv[1]))) == 2\nprint(sorted({'torch', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(trained)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_dataset_is_still_compared_as_one(dataset):
    assert packtrain("diff", dataset, dataset, "--json").json["equal"] is True
    assert packtrain("diff", dataset, dataset / "train").code == 2
