"""A run's folder is damaged, or the machine misbehaves: one sentence, the right exit code, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from packtrain.errors import CheckpointFormatError, RunError
from packtrain.parallel.ranks import Ranks
from packtrain.runs.layout import RunLayout, lock_run
from packtrain.runs.metrics import read_jsonl
from packtrain.storage.atomic import hash_file
from packtrain.train.anneal import annealing_start
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.train.conftest import TINY
from tests.train.test_resume import final_state


@pytest.fixture
def command(dataset):
    """Calls `packtrain train` for that many steps, as a shell would, at a learning rate that does not depend on their number."""

    def call(run, steps, *settings):
        words = [*TINY, f"data.dataset={dataset}", "schedule.name=constant", *settings]
        longer = ["--change", f"train.steps={steps}"] if (run / "config.toml").exists() else [f"train.steps={steps}"]
        return packtrain("train", "demo", *words, *longer, "--run", run, "--resume")

    return call


@pytest.fixture
def whole(command, tmp_path):
    """The end of a run of four steps that is extended by two without incident."""
    assert command(tmp_path / "whole", 4).code == command(tmp_path / "whole", 6).code == 0
    return final_state(tmp_path / "whole")


@pytest.fixture
def run(command, tmp_path):
    """Folder of a run of four steps, saved at 2 and 4."""
    assert command(tmp_path / "run", 4).code == 0
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("torn", [b'{"step": 5, "lo', b"\0" * 300, b'{"event": "\xc3'], ids=["cut", "nul", "half"])
def test_a_torn_last_line_is_cut_and_the_run_goes_on(command, whole, run, name, torn):
    with (run / name).open("ab") as file:
        file.write(torn)
    assert command(run, 6).code == 0
    assert final_state(run) == whole
    assert torn not in (run / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", b"[1]\n"),
        ("metrics.jsonl", b'{"loss": 3}\n'),
        ("metrics.jsonl", b'{"step": "3", "loss": 3}\n'),
        ("events.jsonl", b"[1]\n"),
        ("events.jsonl", b'{"step": 3}\n'),
        ("events.jsonl", b'{"event": "rolled_back", "step": 4, "to_step": 2}\n'),
        ("events.jsonl", b'{"event": "resumed"}\n'),
    ],
)
def test_a_line_that_is_not_ours_is_named(command, run, name, line):
    kept = (run / name).read_bytes()
    (run / name).write_bytes(line + kept)
    done = command(run, 6)
    assert done.code == 2 and f"{name}:1 is not a line that packtrain wrote; remove it" in done.sentence
    (run / name).write_bytes(kept)
    assert command(run, 6).code == 0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe\0", "config.toml is not UTF-8 text, as packtrain wrote it; restore"),
        (b"[model", "config.toml is not valid TOML"),
        (b"[model]\nhidden = 3\n", "there is no setting 'model.hidden'"),
        (b"a = " + b"[" * 5000, "config.toml is not valid TOML (its values are nested too deeply)"),
    ],
)
def test_a_spoiled_configuration_is_refused_and_can_be_put_back(command, whole, run, content, sentence):
    kept = (run / "config.toml").read_bytes()
    (run / "config.toml").write_bytes(content)
    done = command(run, 6)
    assert done.code == 2 and sentence in done.sentence
    assert packtrain("inspect", run, "--step", 1).code == 2
    (run / "config.toml").write_bytes(kept)
    assert command(run, 6).code == 0
    assert final_state(run) == whole


def test_an_emptied_configuration_is_told_and_the_checkpoint_has_it(command, whole, run):
    (run / "config.toml").write_bytes(b"")
    done = command(run, 6)
    assert done.code == 0 and "checkpoint.every was 2 and is now 1000" in done.err
    assert final_state(run) == whole


@pytest.mark.parametrize(
    "key", ["hidden_size = 32|hidden_size = 64", "seed = 1337|seed = 7", 'name = "muon"|name = "adamw"']
)
def test_a_configuration_edited_with_the_command_does_not_bend_the_run(command, run, key):
    before, after = key.split("|")
    path = run / "config.toml"
    path.write_text(path.read_text().replace(before, after))
    name, _, value = after.partition(" = ")
    section = {"hidden_size": "model", "seed": "train", "name": "optim"}[name]
    plain = value.strip('"')
    done = command(run, 6, f"{section}.{name}={plain}")
    assert done.code == 2
    was = before.partition(" = ")[2].strip('"')
    assert (
        f"was trained with {section}.{name}={was} and cannot continue with {section}.{name}={plain}; leave it out"
        in done.sentence
    )
    assert RunLayout(run).saved_steps() == [2, 4]


def test_a_checkpoint_of_a_newer_packtrain_is_not_passed_over(command, run):
    """Continuing from the checkpoint before it would overwrite it."""
    folder = RunLayout(run).checkpoint(4)
    state = json.loads((folder / "state.json").read_text()) | {"format": 99}
    (folder / "state.json").write_text(json.dumps(state))
    hashes = json.loads((folder / "hashes.json").read_text()) | {"state.json": hash_file(folder / "state.json")}
    (folder / "hashes.json").write_text(json.dumps(hashes))
    for done in (command(run, 6), packtrain("evaluate", run)):
        assert done.code == 2 and "checkpoint format 99" in done.sentence
    assert (folder / "hashes.json").is_file()
    with pytest.raises(CheckpointFormatError):
        beginning_of(run)


def beginning_of(run):
    from packtrain.config.load import load_run_config

    words = [*TINY, "schedule.name=linear", f"train.anneal_from={run}"]
    return annealing_start(load_run_config("demo", words).config, Ranks())


@pytest.mark.parametrize("name", ["rank-00000-00000.safetensors", "state.json", "hashes.json"])
@pytest.mark.parametrize("damage", ["flip", "folder"])
def test_whichever_file_of_a_checkpoint_is_damaged_the_one_before_is_used(command, whole, run, name, damage):
    path = RunLayout(run).checkpoint(4) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage == "flip":
        path.write_bytes(content)
    else:
        path.mkdir()
    done = command(run, 6)
    assert done.code == 0 and "skipping a damaged checkpoint" in done.err
    assert [e["passed_over"] for e in read_jsonl(run / "events.jsonl") if "passed_over" in e] == [[4]]
    assert final_state(run)[1:] == whole[1:]


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"created"'])
def test_a_manifest_that_is_gone_or_damaged_holds_up_no_training(command, whole, run, content):
    path = run / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        done = packtrain("evaluate", run)
        assert done.code == 2 and "manifest.json is damaged" in done.sentence
    assert command(run, 6).code == 0
    assert final_state(run) == whole
    if content is None:
        assert json.loads(path.read_text())["parameters"] > 0


def test_a_file_in_the_way_is_told(command, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        done = command(folder, 4)
        assert done.code == 2 and "is a file, or is inside one; give --run a folder" in done.sentence
    assert (tmp_path / "file").read_text() == "mine"
    for name, said in (
        ("checkpoints", "File exists"),
        ("metrics.jsonl", "Is a directory"),
    ):
        copied = shutil.copytree(run, tmp_path / "copy")
        if name == "metrics.jsonl":
            (copied / name).unlink()
            (copied / name).mkdir()
        else:
            shutil.rmtree(copied / name, ignore_errors=True)
            (copied / name).write_text("mine")
        done = command(copied, 6)
        assert done.code == 2 and said in done.sentence
        shutil.rmtree(copied)


def test_of_two_commands_on_one_run_the_second_is_refused(command, run):
    with lock_run(RunLayout(run)):
        before = (run / "metrics.jsonl").read_bytes()
        done = command(run, 6)
    assert done.code == 2 and "in use by another process" in done.sentence
    assert (run / "metrics.jsonl").read_bytes() == before


def test_packing_again_without_a_second_epoch_is_told(tiny, tmp_path, caplog):
    train(tiny("data.repack=true", "train.steps=1", "evaluate.every=0"), tmp_path / "run", resume=False)
    assert "data.repack=true has no effect, because the run ends within the first epoch; leave it out" in caplog.text


def test_too_little_text_for_a_step_is_told(tiny, tmp_path, caplog):
    settings = ("train.steps=1", "train.global_batch_tokens=20480", "train.micro_batch_size=64")
    train(tiny(*settings, "evaluate.every=0"), tmp_path / "run", resume=False)
    assert "every step repeats text or trains on padding; lower train.global_batch_tokens" in caplog.text


def test_a_clock_that_jumps_changes_nothing_but_the_stamps(tiny, tmp_path, monkeypatch):
    train(tiny(), tmp_path / "whole", resume=False)
    jumps, real = iter(range(10**6)), time.time
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 1e8)
    config = tiny("guard.stall_seconds=30")
    run = tmp_path / "run"
    train(config, run, resume=False)
    assert final_state(run) == final_state(tmp_path / "whole")
    stamps = [event["time"] for event in read_jsonl(run / "events.jsonl")]
    assert stamps != sorted(stamps)
    assert not any(event["event"] == "stalled" for event in read_jsonl(run / "events.jsonl"))
    for line in read_jsonl(run / "metrics.jsonl"):
        if "loss" in line:
            assert 0 < line["step_s"] < 60 and line["tokens_per_s"] > 0


@pytest.mark.slow
def test_a_constant_phase_that_was_made_longer_is_annealed_from(tiny, tmp_path):
    """The phase depends on the run's present length, not on the one in its manifest."""
    for steps in (4, 40):
        words = (f"train.steps={steps}", "schedule.name=wsd", "schedule.decay_fraction=0.5", "checkpoint.keep=40")
        train(tiny(*words), tmp_path / "run", resume=True)
    origin = RunLayout(tmp_path / "run").checkpoint(16)
    outcome = train(tiny("schedule.name=linear", f"train.anneal_from={origin}"), tmp_path / "down", resume=False)
    assert outcome["step"] == 10
    late = RunLayout(tmp_path / "run").checkpoint(38)
    with pytest.raises(RunError, match="is not from a constant phase"):
        train(tiny("schedule.name=linear", f"train.anneal_from={late}"), tmp_path / "other", resume=False)


SMALL_FILES = """
import resource, signal, sys
from packtrain.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv[:2] = ["packtrain"]
main()
"""


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_beginning_is_told(command, dataset, whole, tmp_path):
    """A limit on the size of files fails like a full disk, here while the tokenizer is copied."""
    words = [
        *TINY,
        f"data.dataset={dataset}",
        "train.steps=4",
        "schedule.name=constant",
        "--run",
        str(tmp_path / "run"),
    ]
    command_line = [sys.executable, "-c", SMALL_FILES, "2000", "train", "demo", *words]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert "there is no room left on the disk" in done.stderr
    assert command(tmp_path / "run", 4).code == command(tmp_path / "run", 6).code == 0
    assert final_state(tmp_path / "run") == whole


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_must_not_be_written_is_told(command, run):
    run.chmod(0o555)
    try:
        done = command(run, 6)
        assert done.code == 2 and "cannot be read or written" in done.sentence
    finally:
        run.chmod(0o755)
    assert command(run, 6).code == 0
