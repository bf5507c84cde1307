"""Averages of the weights: the right numbers, used for validation and export, and resumed bit for bit."""

import json

import pytest
import torch

from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.errors import CheckpointError, Interrupted
from packtrain.model.init import build
from packtrain.plan.memory import memory, peak_bytes
from packtrain.plan.parameters import num_parameters
from packtrain.pretrained.open import open_model
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.train.average import Average
from packtrain.train.run import train
from tests.train.conftest import TINY

from .test_resume import StopAt, final_state


def average_of(num_steps, *settings):
    """The average over steps whose weights are all 1, 2, 3 ..., after the last."""
    config = load_run_config("demo", [*TINY, *settings]).config
    model = build(ModelConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16), seed=0)
    average = Average(config, model)
    for step in range(1, num_steps + 1):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(float(step))
        average.update(model, step, num_steps)
    return average, model


@pytest.mark.parametrize(
    "setting", ["train.average_half_life_steps=2", "train.average_half_life_tokens=512"], ids=["steps", "tokens"]
)
def test_a_moving_average_halves_in_its_half_life(setting):
    average, _ = average_of(6, "train.average=ema", setting)
    shares = [0.5 ** ((6 - step) / 2) for step in range(1, 7)]
    expected = sum(share * step for share, step in zip(shares, range(1, 7), strict=True)) / sum(shares)
    for mean in average.weights.values():
        torch.testing.assert_close(mean, torch.full_like(mean, expected))


def test_a_tail_is_the_mean_of_the_last_steps():
    average, _ = average_of(10, "train.average=tail", "train.average_share=0.4")
    assert average.count == 4
    for mean in average.weights.values():
        torch.testing.assert_close(mean, torch.full_like(mean, (7 + 8 + 9 + 10) / 4))


def test_the_weights_come_back():
    average, model = average_of(3, "train.average=ema")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    means = {name: mean.clone() for name, mean in average.weights.items()}
    with average.in_place(model):
        assert all(torch.equal(p, means[name]) for name, p in model.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(mean, means[name]) for name, mean in average.weights.items())


@pytest.fixture(scope="module")
def averaged(dataset, tmp_path_factory):
    """A run with an average, and the same run without one."""
    folder = tmp_path_factory.mktemp("averaged")
    words = [*TINY, f"data.dataset={dataset}"]
    settings = ("train.average=ema", "train.average_half_life_steps=3")
    outcome = train(load_run_config("demo", [*words, *settings]).config, folder / "with", resume=False)
    train(load_run_config("demo", words).config, folder / "without", resume=False)
    return folder, outcome


def test_training_does_not_change(averaged):
    folder, _ = averaged
    runs = [checkpoint.find_newest(RunLayout(folder / name)).read_whole() for name in ("with", "without")]
    assert all(torch.equal(runs[0][name], tensor) for name, tensor in runs[1].items())
    assert {name.rpartition("/")[2] for name in runs[0].keys() - runs[1].keys()} == {"average"}


def test_validation_and_readers_use_the_average(averaged):
    folder, _ = averaged
    models = {weights: open_model(folder / "with", weights=weights).model for weights in (None, "averaged", "last")}
    plain = open_model(folder / "without").model
    for name, p in plain.named_parameters():
        last, mean = (dict(models[weights].named_parameters())[name] for weights in ("last", "averaged"))
        assert torch.equal(last, p) and not torch.equal(mean, p)
        assert torch.equal(dict(models[None].named_parameters())[name], mean)
    lines = [json.loads(line) for line in (folder / "with" / "metrics.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (folder / "without" / "metrics.jsonl").read_text().splitlines()]
    losses = [[line["val_loss"] for line in each if "val_loss" in line] for each in (lines, others)]
    assert len(losses[0]) == len(losses[1]) == 3
    assert all(one != other for one, other in zip(*losses, strict=True))
    with pytest.raises(CheckpointError, match="has no averaged weights; leave out --weights"):
        open_model(folder / "without", weights="averaged")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [("train.average=ema",), ("train.average=tail", "train.average_share=0.7")], ids=["ema", "tail"]
)
def test_five_steps_restore_and_five_are_ten(tiny, tmp_path, settings):
    train(tiny(*settings), tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted):
        train(tiny(*settings), tmp_path / "parts", resume=False, on_step=StopAt(5))
    train(tiny(*settings), tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_a_checkpoint_that_lacks_an_average_is_refused(averaged):
    folder, _ = averaged
    found = checkpoint.find_newest(RunLayout(folder / "with"))
    found.stored.pop("model.norm.weight/average")
    with pytest.raises(CheckpointError, match=r"has no average of model\.norm\.weight"):
        found.read_averaged()


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (("train.average_share=0.5",), "write train.average=tail"),
        (("train.average=tail", "train.average_half_life_steps=5"), "write train.average=ema"),
        (
            ("train.average=ema", "train.average_half_life_steps=5", "train.average_half_life_tokens=5"),
            "keep one of them",
        ),
    ],
)
def test_settings_that_have_no_effect_are_refused(settings, advice):
    with pytest.raises(Exception, match=advice):
        load_run_config("demo", settings)


def test_the_plan_counts_it():
    shape = ModelConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    plain, more = (memory(shape, 1, 16, has_average=has) for has in (False, True))
    assert more["average"] == 4 * num_parameters(shape)
    assert peak_bytes(more, accumulates=True) - peak_bytes(plain, accumulates=True) == more["average"]
