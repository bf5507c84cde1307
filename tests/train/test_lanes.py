"""Rows in lanes of threads: the loss and the gradients of all rows at once, the same bits every time."""

import pytest
import torch

from packtrain.config.data import IGNORE_INDEX
from packtrain.config.load import load_run_config
from packtrain.errors import ConfigError
from packtrain.parallel.lanes import Lanes
from packtrain.train.device import resolve_lanes

from ..model.tiny import built, tiny, with_cpu_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch(config, rows=4, length=12):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(config.vocab_size, (rows, length + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    # Lanes with unequal numbers of targets.
    targets[0, 3:] = IGNORE_INDEX
    return tokens[:, :-1], targets


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("is_bf16", [False, True])
def test_lanes_give_the_loss_and_the_gradients_of_all_rows(is_tied, count, is_bf16):
    config = tiny(tie_word_embeddings=is_tied)
    model, (inputs, targets) = with_cpu_kernels(built(config)), batch(config)
    segments = torch.arange(12).expand(4, 12) // 5
    positions = torch.arange(12).expand(4, 12) % 5
    lanes, results = Lanes(model, count), []
    for trained in (model, lanes):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16):
            total = trained(inputs, targets, segments_BT=segments, positions_BT=positions, z_loss=1e-2)
        (total * 0.25).backward()
        results.append((total.detach(), gradients(model)))
        model.zero_grad()
    tolerance = {"rtol": 0.03, "atol": 0.03} if is_bf16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(*results, **tolerance)
    assert all(p.grad is None for twin in lanes._lanes for p in twin.parameters())


def test_lanes_accumulate_and_repeat_bit_for_bit():
    config = tiny()
    model, (inputs, targets) = with_cpu_kernels(built(config)), batch(config)
    lanes, runs = Lanes(model, 2), []
    for _ in range(10):
        for _micro in range(3):
            lanes(inputs, targets).backward()
        runs.append(gradients(model))
        model.zero_grad()
    for run in runs[1:]:
        assert all(torch.equal(run[name], gradient) for name, gradient in runs[0].items())


def test_lanes_see_the_weights_of_the_model_and_name_them_once():
    config = tiny()
    model, (inputs, targets) = with_cpu_kernels(built(config)), batch(config)
    lanes = Lanes(model, 2)
    assert [id(p) for p in lanes.parameters()] == [id(p) for p in model.parameters()]
    before = lanes(inputs, targets)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
        after = lanes(inputs, targets)
        torch.testing.assert_close(after, model(inputs, targets), rtol=1e-5, atol=1e-5)
    assert before.requires_grad and not after.requires_grad and not torch.isclose(before, after)


def test_an_error_of_a_lane_is_raised_when_all_have_ended():
    config = tiny()
    model, (inputs, targets) = with_cpu_kernels(built(config)), batch(config)
    inputs[3] = config.vocab_size
    lanes = Lanes(model, 2)
    with pytest.raises(IndexError):
        lanes(inputs, targets)
    inputs[3] = 0
    lanes(inputs, targets).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def resolved(*settings, rows=8, is_alone=True, is_compiled=False):
    config = load_run_config("demo", settings).config
    return resolve_lanes(config, rows, CPU, is_alone=is_alone, is_compiled=is_compiled)


def test_auto_takes_two_where_there_are_threads_and_rows_for_them():
    assert resolved() == 2
    assert resolved(rows=3) == resolved(is_alone=False) == resolved(is_compiled=True) == 1
    assert resolved("train.activation_gb=1") == 1
    assert resolved("train.activation_gb=1", "parallel.lanes=2") == 2
    torch.set_num_threads(1)
    assert resolved() == 1
    assert resolved("parallel.lanes=4") == 4


@pytest.mark.parametrize(
    ("wanted", "situation", "words"),
    [
        (2, {"is_alone": False}, "a single process on a CPU"),
        (2, {"is_compiled": True}, "a single process on a CPU"),
        (3, {}, "a micro-batch of 8 rows is not a multiple of parallel.lanes=3"),
    ],
)
def test_lanes_that_cannot_be_are_refused(wanted, situation, words):
    with pytest.raises(ConfigError, match=words):
        resolved(f"parallel.lanes={wanted}", **situation)
