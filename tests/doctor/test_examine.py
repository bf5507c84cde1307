"""Does each check before a run catch its fault, and leave a healthy run alone?"""

import shutil

import numpy as np
import pytest
import torch

from packtrain.config.load import load_run_config
from packtrain.data.feed.datasets import open_run_datasets
from packtrain.doctor import learning
from packtrain.doctor.data import check_batches, check_labels, read_batches
from packtrain.doctor.examine import OF_THE_DATA, OF_THE_MODEL, examine
from packtrain.doctor.learning import check_gradients, check_overfit, entropy, learn_batch
from packtrain.doctor.round_trip import check_round_trip, find_difference
from packtrain.doctor.trial import Trial, build, choose_size, cut_batch, reduce_config
from packtrain.errors import DeviceError
from packtrain.export.run import export_run
from tests.train.conftest import TINY

CPU = torch.device("cpu")
# What the tiny model needs to learn a batch by heart in a few steps.
QUICK = ("optim.lr=3e-2", "parallel.lanes=1")


@pytest.fixture
def config(dataset):
    return lambda *settings: load_run_config("demo", [*TINY, *QUICK, f"data.dataset={dataset}", *settings]).config


@pytest.fixture
def trial(config):
    """Makes the trial of a configuration, as `examine` does."""
    made = []

    def make(*settings):
        whole = config(*settings)
        size = choose_size(whole, CPU)
        parts = build(reduce_config(whole, size.layers), open_run_datasets(whole.data), CPU, None)
        made.append(parts)
        return Trial(parts, cut_batch(next(parts.loader), size.tokens), "")

    yield make
    for parts in made:
        parts.loader.close()


def found(config, check, folder):
    """The finding of one check, without making those after it."""
    return next(finding for finding in examine(config, folder) if finding.check == check)


def test_a_healthy_run_has_no_fault(config, tmp_path):
    findings = list(examine(config(), tmp_path))
    assert {finding.check: finding.state for finding in findings} == dict.fromkeys(
        ("dataset", *OF_THE_DATA, *OF_THE_MODEL, "memory", "disk", "tracker"), "ok"
    )
    assert len(next(f for f in findings if f.check == "first batches").lines) == 3
    assert list(tmp_path.iterdir()) == []


def test_without_a_dataset_it_says_what_was_not_looked_at(tmp_path):
    findings = {finding.check: finding for finding in examine(load_run_config("demo").config, tmp_path)}
    assert all(findings[check].state == "skipped" for check in (*OF_THE_DATA, *OF_THE_MODEL))
    assert "data.dataset=FOLDER" in findings["labels"].says
    assert findings["disk"].state == "ok"


@pytest.mark.parametrize("place", ["of a batch", "elsewhere"])
def test_a_label_out_of_range_is_found(config, dataset, tmp_path, place):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (shard,) = (copy / "train").glob("*.tok")
    tokens = np.fromfile(shard, dtype="<u2")
    tokens[-1 if place == "elsewhere" else slice(None)] = 600
    tokens.tofile(shard)
    findings = {f.check: f for f in examine(config(f"data.dataset={copy}", "data.verify=none"), tmp_path)}
    assert findings["labels"].state == "fault"
    assert "token id 600, and the tokenizer's ids are 0 to 511" in findings["labels"].says
    assert "packtrain verify" in findings["labels"].fix
    assert {findings[check].state for check in OF_THE_MODEL} == {"skipped"}


def test_a_dataset_that_changed_is_a_fault_and_the_disk_is_still_checked(config, dataset, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    (shard,) = (copy / "train").glob("*.tok")
    shard.write_bytes(shard.read_bytes()[::-1])
    findings = {f.check: f.state for f in examine(config(f"data.dataset={copy}"), tmp_path)}
    assert (findings["dataset"], findings["labels"], findings["disk"]) == ("fault", "skipped", "ok")


def test_ids_of_another_tokenizer_do_not_read_as_text(config):
    whole = config()
    datasets = open_run_datasets(whole.data)
    batches = read_batches(whole, datasets.layout(32, "concat"))
    assert check_batches(batches, datasets).state == "ok" and check_labels(batches, datasets).state == "ok"
    # Byte-level tokens of single bytes, which are no UTF-8 in this order.
    for rows in batches:
        rows.inputs_BT.random_(130, 230, generator=torch.Generator().manual_seed(0))
    said = check_batches(batches, datasets)
    assert said.state == "fault" and "cannot be decoded" in said.says


def test_a_wide_initialisation_is_a_fault(config, tmp_path):
    said = found(config("model.initializer_range=0.6"), "loss at step 0", tmp_path)
    assert said.state == "fault"
    assert "ln(512) is 6.238" in said.says and "model.initializer_range=0.6" in said.fix


def test_a_dead_parameter_is_named(trial):
    tried = trial()
    names = ("model.layers.1.mlp.down_proj.weight", "model.norm.weight")
    for name in names:
        tried.parts.model.get_parameter(name).register_hook(torch.zeros_like)
    said = check_gradients(learn_batch(tried))
    assert said.state == "fault"
    assert f"2 of 20 parameters had no gradient, or only zeros, in 3 steps: {', '.join(names)}" in said.says


def test_a_frozen_optimizer_is_a_fault(trial, monkeypatch):
    tried = trial()
    monkeypatch.setattr(learning, "MOST_STEPS", 20)
    monkeypatch.setattr(tried.parts.optimizer, "step", lambda: None)
    lesson = learn_batch(tried)
    assert check_gradients(lesson).state == "ok"
    said = check_overfit(lesson, tried)
    assert said.state == "fault"
    assert "not learned in 20 steps" in said.says and "left 20 of 20 parameters as they were" in said.says


@pytest.mark.parametrize(("lr", "change"), [("1e-9", "raise optim.lr=1e-09"), ("30", "lower optim.lr=30")])
def test_a_learning_rate_that_cannot_work_is_a_fault(trial, monkeypatch, lr, change):
    monkeypatch.setattr(learning, "MOST_STEPS", 20)
    tried = trial(f"optim.lr={lr}")
    said = check_overfit(learn_batch(tried), tried)
    assert said.state == "fault" and said.fix.startswith(change)


def test_an_export_that_differs_is_a_fault(trial):
    tried = trial()

    def spoil(run, out):
        done = export_run(run, out)
        data = bytearray((out / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (out / "model.safetensors").write_bytes(data)
        return done

    said = check_round_trip(tried, open_run_datasets(tried.parts.config.data), export=spoil)
    assert said.state == "fault" and "of the export differs" in said.says


def test_a_state_that_is_lost_is_a_fault(trial, monkeypatch):
    tried = trial()
    learn_batch(tried)
    monkeypatch.setattr("packtrain.train.state.import_state", lambda *_: None)
    said = check_round_trip(tried, open_run_datasets(tried.parts.config.data))
    assert said.state == "fault" and "weight/step differs from what was saved" in said.says


def test_bits_are_compared_and_not_values():
    one = {"a": torch.tensor([0.0, float("nan")])}
    assert find_difference(one, {"a": torch.tensor([0.0, float("nan")])}) is None
    assert find_difference(one, {"a": torch.tensor([-0.0, float("nan")])}) == "a"
    assert find_difference(one, {}) == "a"
    assert find_difference({}, one) == "a"
    assert find_difference(one, {"a": one["a"].double()}) == "a"


def test_the_goal_is_half_the_entropy_of_the_batch():
    assert entropy(torch.tensor([[0, 1, 2, 3, -100, -100]])) == pytest.approx(np.log(4))


def test_a_large_model_is_tried_with_fewer_layers_and_a_small_one_whole(monkeypatch):
    reference = load_run_config("llama2-437m", ["train.precision=fp32"]).config
    assert choose_size(load_run_config("demo").config, CPU) == (4, 256)
    size = choose_size(reference, CPU)
    assert (size.layers, size.tokens) == (1, 64)
    import psutil

    least = psutil.virtual_memory()._replace(available=10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: least)
    with pytest.raises(DeviceError, match="on the machine that will train it"):
        choose_size(load_run_config("llama2-437m", ["model.vocab_size=3_000_000"]).config, CPU)
