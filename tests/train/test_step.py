"""One optimizer step: the mean over all targets however rows are divided, and no harm from numbers that are not finite."""

import pytest
import torch

from packtrain.config.data import IGNORE_INDEX
from packtrain.config.optim import OptimConfig
from packtrain.data.feed.loader import Batch, Rows
from packtrain.data.feed.position import LoaderState
from packtrain.model.init import build
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer
from packtrain.train.step import NOT_FINITE, Placement, Precision, train_step

from ..model.tiny import tiny

CONFIG = tiny(num_key_value_heads=2, initializer_range=0.02)


def on_cpu(micro_batch_size, name="fp32"):
    precision = Precision(name, "cpu", torch.amp.GradScaler("cpu", enabled=name == "fp16"))
    return Placement(torch.device("cpu"), precision, micro_batch_size)


def make_batch(rows=8, seq_len=16, masked=()):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randint(0, 97, (rows, seq_len), generator=generator)
    targets = torch.randint(0, 97, (rows, seq_len), generator=generator)
    for row, start in masked:
        targets[row, start:] = IGNORE_INDEX
    state = LoaderState("m", "p", 0, 0, rows)
    return Batch(Rows(inputs, targets), state=state, num_targets=int((targets != IGNORE_INDEX).sum()))


def run_step(batch, *, micro_batch_size=8, grad_clip=0.0, name="fp32", model=None, judge=None):
    model = model or build(CONFIG, seed=1)
    # Plain gradient descent with learning rate 1: the change of the weights is the gradient.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = train_step(
        model,
        optimizer,
        batch,
        on_cpu(micro_batch_size, name),
        grad_clip=grad_clip,
        judge=judge,
    )
    return model, result


def gradient(model):
    start = build(CONFIG, seed=1)
    pairs = zip(start.parameters(), model.parameters(), strict=True)
    return torch.cat([(a - b).detach().flatten() for a, b in pairs])


def reference_gradient(batch):
    model = build(CONFIG, seed=1)
    logits = model(batch.rows.inputs_BT)
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.rows.targets_BT.flatten(), ignore_index=IGNORE_INDEX
    )
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("micro_batch_size", [8, 4, 3, 1])
@pytest.mark.parametrize("masked", [(), ((0, 3), (5, 0), (7, 15))], ids=["full", "masked"])
def test_the_step_is_the_mean_over_targets_for_any_micro_batch(micro_batch_size, masked):
    batch = make_batch(masked=masked)
    expected_loss, expected = reference_gradient(batch)
    model, result = run_step(batch, micro_batch_size=micro_batch_size)
    assert result.loss == pytest.approx(expected_loss, rel=1e-5)
    assert result.grad_norm == pytest.approx(expected.norm().item(), rel=1e-4)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-3, atol=2e-6)


def test_clipping_bounds_the_update_and_tells_the_norm_before():
    batch = make_batch()
    _, free = run_step(batch)
    model, clipped = run_step(batch, grad_clip=free.grad_norm / 4)
    assert clipped.grad_norm == free.grad_norm
    assert gradient(model).norm().item() == pytest.approx(free.grad_norm / 4, rel=1e-3)


def test_a_norm_below_the_bound_changes_nothing():
    batch = make_batch()
    model, free = run_step(batch)
    same, _ = run_step(batch, grad_clip=free.grad_norm * 2)
    assert torch.equal(gradient(model), gradient(same))


@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_what_is_not_finite_never_reaches_weights_or_optimizer(name):
    model = build(CONFIG, seed=1)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(OptimConfig(), dict(model.named_parameters()), roles(model))
    result = train_step(model, optimizer, make_batch(rows=2), on_cpu(2, name), grad_clip=1.0)
    assert result.skipped == NOT_FINITE
    assert all(torch.equal(before[n], p.detach()) or n == "model.norm.weight" for n, p in model.named_parameters())
    assert not optimizer.state
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_half_precision_follows_float32(name):
    batch = make_batch(rows=2)
    exact, expected = run_step(batch)
    half, got = run_step(batch, name=name)
    assert got.is_applied
    assert got.loss == pytest.approx(expected.loss, rel=1e-2)
    assert torch.cosine_similarity(gradient(exact), gradient(half), dim=0) > 0.99


def test_what_the_judge_refuses_changes_nothing_and_is_told():
    model = build(CONFIG, seed=1)
    seen = []

    def judge(loss, grad_norm):
        seen.append((loss, grad_norm))
        return "too much"

    _, result = run_step(make_batch(), model=model, judge=judge)
    assert (result.skipped, result.is_applied) == ("too much", False)
    assert seen == [(result.loss, result.grad_norm)]
    assert not gradient(model).any()
    assert all(p.grad is None for p in model.parameters())
