"""Averages of the weights: the right numbers, used for validation and export, and resumed bit for bit."""

import json
import shutil

import pytest
import torch

from packtrain.api.exporting import export
from packtrain.api.measuring import evaluate
from packtrain.api.models import load
from packtrain.config.load import load_run_config
from packtrain.config.model import ModelConfig
from packtrain.errors import CheckpointError, Interrupted
from packtrain.model.init import build
from packtrain.plan.memory import checkpoint_bytes, memory, peak_bytes
from packtrain.plan.parameters import num_parameters
from packtrain.pretrained.open import open_model
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.train.average import Average
from packtrain.train.run import train
from tests.train.conftest import TINY

from .test_distributed import forget_after, launch
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
    models = {average: open_model(folder / "with", average=average).model for average in (None, True, False)}
    plain = open_model(folder / "without").model
    for name, p in plain.named_parameters():
        last, mean = (dict(models[average].named_parameters())[name] for average in (False, True))
        assert torch.equal(last, p) and not torch.equal(mean, p)
        assert torch.equal(dict(models[None].named_parameters())[name], mean)
    lines = [json.loads(line) for line in (folder / "with" / "metrics.jsonl").read_text().splitlines()]
    others = [json.loads(line) for line in (folder / "without" / "metrics.jsonl").read_text().splitlines()]
    losses = [[line["val_loss"] for line in each if "val_loss" in line] for each in (lines, others)]
    assert len(losses[0]) == len(losses[1]) == 3
    assert all(one != other for one, other in zip(*losses, strict=True))
    with pytest.raises(CheckpointError, match="has no average of the weights; leave out --average"):
        open_model(folder / "without", average=True)


def test_an_evaluation_says_which_weights_it_measured_and_keeps_both(averaged):
    folder, _ = averaged
    run = RunLayout(folder / "with")
    found = {average: evaluate(run.folder, tokens=64, average=average) for average in (None, False)}
    assert [found[None]["average"], found[False]["average"]] == ["ema", None]
    assert found[None]["model"]["loss"] != found[False]["model"]["loss"]
    kept = [json.loads(path.read_text()) for path in sorted(run.evaluations.glob("step-*/rows-*.json"))]
    assert {(each["average"], each["model"]["loss"]) for each in kept} == {
        (each["average"], each["model"]["loss"]) for each in found.values()
    }
    assert load(run.folder, device="cpu").average == "ema"
    assert load(run.folder, average=False, device="cpu").average is None


def test_an_export_says_which_weights_it_has(averaged, tmp_path):
    folder, _ = averaged
    # The newest figures are of the step's own weights; they may not stand on the card of the average.
    measured = evaluate(folder / "with", tokens=64, average=False)["model"]["loss"]
    cards = {}
    for average in (None, False):
        out = tmp_path / str(average)
        exported = export(folder / "with", out=out, average=average)
        cards[average] = (out / "README.md").read_text()
        assert json.loads((out / "packtrain.json").read_text())["average"] == exported.average
        assert exported.average == (None if average is False else "ema")
    assert "averages of its weights over steps (train.average=ema)" in cards[None]
    assert "These are its weights after" in cards[False]
    assert f"{measured:.6g}" in cards[False] and f"{measured:.6g}" not in cards[None]


def averages_of(folder):
    tensors = checkpoint.find_newest(RunLayout(folder)).read_whole()
    found = {name: tensor for name, tensor in tensors.items() if name.endswith("/average")}
    assert found
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [("train.average=ema", "train.average_half_life_steps=3"), ("train.average=tail", "train.average_share=0.7")],
    ids=["ema", "tail"],
)
def test_lanes_and_processes_average_as_one_does(dataset, tiny, tmp_path, settings):
    train(tiny(*settings), tmp_path / "one", resume=False)
    train(tiny(*settings, "parallel.lanes=2"), tmp_path / "lanes", resume=False)
    launch(dataset, tmp_path / "two", 2, *settings)
    expected = averages_of(tmp_path / "one")
    for name in ("lanes", "two"):
        found = averages_of(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, mean in found.items():
            torch.testing.assert_close(mean, expected[key], rtol=0, atol=1e-4)
    # Two processes that go on from the middle end with the same bits.
    shutil.copytree(tmp_path / "two", tmp_path / "parts")
    forget_after(tmp_path / "parts", 5)
    launch(dataset, tmp_path / "parts", 2, *settings)
    resumed, whole = averages_of(tmp_path / "parts"), averages_of(tmp_path / "two")
    assert resumed.keys() == whole.keys() and all(torch.equal(mean, whole[key]) for key, mean in resumed.items())


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


def test_a_checkpoint_is_as_large_as_computed(averaged):
    folder, _ = averaged
    for name, settings in (("with", ["train.average=ema"]), ("without", [])):
        found = checkpoint.find_newest(RunLayout(folder / name)).read_whole()
        size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        assert size == pytest.approx(checkpoint_bytes(load_run_config("demo", [*TINY, *settings]).config), rel=0.001)
