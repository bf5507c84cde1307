"""Does `doctor RUN-or-PRESET` end with 2 for a fault, say what it did not look at, and leave a run as it is?"""

import json

import pytest
from tests.command_line import packtrain
from tests.train.conftest import TINY

from packtrain.config.load import load_run_config
from packtrain.train.run import train


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked") / "run"
    settings = [*TINY, f"data.dataset={dataset}", "optim.lr=3e-2", "train.steps=2", "evaluate.every=0"]
    train(load_run_config("demo", settings).config, folder, resume=False)
    return folder


def test_a_run_is_checked_and_not_touched(run):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [run, *run.rglob("*")]}

    before = state()
    done = packtrain("doctor", run)
    assert done.code == 0, done.err
    assert "no faults found" in done.out and "learned by heart" in done.out
    assert state() == before


def test_a_fault_ends_with_two_and_a_summary(dataset, tmp_path):
    settings = [*TINY, f"data.dataset={dataset}", "model.vocab_size=600", "track.wandb=false"]
    done = packtrain("doctor", "demo", *settings, "--run", tmp_path / "run", "--json")
    assert done.code == 2
    assert "1 of 10 checks found a fault (dataset)" in done.err
    said = json.loads(done.out)
    assert said["faults"] == ["dataset"]
    assert "model.vocab_size=512" in said["checks"][0]["fix"]
    assert list(tmp_path.iterdir()) == []


def test_without_a_dataset_it_counts_what_was_not_made():
    done = packtrain("doctor", "demo")
    assert done.code == 0 and "checks not made: 7" in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["demoo"], "did you mean demo?"),
        (["RUN", "optim.lr=1"], "whose settings are fixed; leave out 'optim.lr=1'"),
        (["RUN", "--run", "x"], "leave out --run x"),
        (["FOLDER"], "does not contain a run"),
        (["--run", "x"], "name its preset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_two_and_one_sentence(words, expected, run, tmp_path):
    places = {"RUN": run, "FOLDER": tmp_path}
    done = packtrain("doctor", *(places.get(word, word) for word in words))
    assert done.code == 2 and expected in done.err
