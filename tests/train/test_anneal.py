"""A run that anneals begins at a checkpoint of a constant phase, decays to the minimum, and resumes exactly like any other."""

import pytest
import torch

from packtrain.errors import CheckpointError, ConfigError, Interrupted, RunError
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.test_resume import StopAt, final_state


@pytest.fixture
def constant(tiny, tmp_path):
    """Folder of a run of six constant steps, saved at 2, 4 and 6."""
    train(tiny("train.steps=6", "schedule.name=constant"), tmp_path / "constant", resume=False)
    return tmp_path / "constant"


def lines(folder):
    return [line for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("name", ["linear", "wsd", "cosine"])
def test_it_goes_on_with_the_data_and_falls_from_the_first_step(tiny, constant, tmp_path, name):
    origin = RunLayout(constant).checkpoint(4)
    train(
        tiny("train.steps=5", f"schedule.name={name}", f"train.anneal_from={origin}"), tmp_path / "down", resume=False
    )
    down = lines(tmp_path / "down")
    assert [line["step"] for line in down] == [1, 2, 3, 4, 5]
    # Steps 5 to 9 of the data; the count of tokens continues.
    assert [line["tokens"] for line in down] == [256 * n for n in range(5, 10)]
    assert down[0]["loss"] == lines(constant)[4]["loss"]
    rates = [line["lr"] for line in down]
    assert 4e-3 > rates[0] > rates[1] > rates[2] > rates[3] > rates[4] == pytest.approx(0, abs=1e-12)
    state = checkpoint.find_newest(RunLayout(tmp_path / "down")).state
    assert state["loader"]["samples_consumed"] == 9 * 8


def test_it_resumes_bitwise_also_before_its_first_checkpoint(tiny, constant, tmp_path):
    config = tiny("train.steps=6", "schedule.name=linear", f"train.anneal_from={constant}")
    train(config, tmp_path / "whole", resume=False)

    def kill(record):
        if record["step"] == 1:
            raise KeyboardInterrupt

    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, resume=True, on_step=kill)
    with pytest.raises(Interrupted):
        train(config, folder, resume=True, on_step=StopAt(3))
    train(config, folder, resume=True)
    assert final_state(folder) == final_state(tmp_path / "whole")
    before = checkpoint.find_newest(RunLayout(constant)).read_whole(only_weights=True)
    after = checkpoint.find_newest(RunLayout(folder)).read_whole(only_weights=True)
    assert not any(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_checkpoint_of_the_decay_is_refused(tiny, tmp_path):
    train(tiny("train.steps=6", "schedule.name=cosine"), tmp_path / "cosine", resume=False)
    with pytest.raises(RunError, match="is not from a constant phase"):
        train(tiny(f"train.anneal_from={tmp_path / 'cosine'}", "schedule.name=linear"), tmp_path / "run", resume=False)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        (("optim.lr=1e-4",), RunError, r"write optim\.lr=0\.004"),
        (("model.hidden_size=64",), RunError, r"cannot continue with model\.hidden_size=64"),
        (("optim.name=adamw",), RunError, r"cannot continue with optim\.name=adamw"),
        (("train.anneal_from=nowhere",), CheckpointError, "nowhere does not exist"),
        (("train.anneal_from=/",), CheckpointError, "train.anneal_from=/ is neither a run nor a checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, constant, tmp_path, settings, error, sentence):
    config = tiny("schedule.name=linear", f"train.anneal_from={constant}", *settings)
    with pytest.raises(error, match=sentence):
        train(config, tmp_path / "run", resume=False)


def test_a_constant_rate_does_not_anneal(tiny):
    with pytest.raises(ConfigError, match=r"write schedule\.name=linear"):
        tiny("schedule.name=constant", "train.anneal_from=somewhere")
