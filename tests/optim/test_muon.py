"""Muon and NorMuon: equal to torch's, to the paper's and to the singular value decomposition, AdamW for what is no matrix."""

import pytest
import torch

from packtrain.config.optim import OptimConfig
from packtrain.optim import muon
from packtrain.optim.build import build_optimizer, export_state, set_pace
from packtrain.optim.muon import orthogonalise
from packtrain.optim.schedule import momentum

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(matrix):
    """The quintic on the singular values themselves: what five rounds do in exact arithmetic."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16), (1, 8), (8, 1)])
def test_rounds_are_the_quintic_of_the_singular_values(shape):
    matrix = draw(*shape)
    torch.testing.assert_close(orthogonalise(matrix[None], torch.float64)[0], naive(matrix))
    torch.testing.assert_close(
        orthogonalise(matrix[None], torch.float32)[0].double(), naive(matrix), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e12])
def test_any_scale_comes_out_nearly_orthogonal(scale):
    values = torch.linalg.svdvals(orthogonalise(draw(1, 32, 64) * scale, torch.float32))
    assert values.min() > 0.5 and values.max() < 1.3


def test_nothing_stays_nothing():
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 6), torch.float32), torch.zeros(2, 4, 6))


def test_matrices_step_as_torch_has_it():
    start = draw(24, 40)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    config = OptimConfig(name="muon", lr=0.02, weight_decay=0.1)
    optimizers = (
        build_optimizer(config, {"w": ours}, {"w": "matrix"}, torch.bfloat16),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    )
    for seed in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = draw(24, 40, seed=seed)
            optimizer.step()
    # Both round to bfloat16 inside.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    assert (ours - start).abs().max() > 0.01


def test_the_rest_steps_by_adamw():
    names = {"e": "embedding", "n": "norm", "h": "output"}
    mine = {name: torch.nn.Parameter(draw(12, 8) if name != "n" else draw(8)) for name in names}
    other = {name: torch.nn.Parameter(p.detach().clone()) for name, p in mine.items()}
    optimizers = [
        build_optimizer(OptimConfig(name=name, lr=0.01), parameters, names)
        for name, parameters in (("muon", mine), ("adamw", other))
    ]
    for seed in range(3):
        for parameters, optimizer in zip((mine, other), optimizers, strict=True):
            for p in parameters.values():
                p.grad = draw(*p.shape, seed=seed)
            optimizer.step()
    assert all(torch.equal(mine[name], other[name]) for name in names)


def test_float16_products_are_not_used():
    optimizer = build_optimizer(
        OptimConfig(name="muon"), {"w": torch.nn.Parameter(draw(4, 4))}, {"w": "matrix"}, torch.float16
    )
    assert optimizer.dtype == torch.float32


def step_matrices(name, shapes, num_steps=4, warmup_steps=0):
    """Matrices after some steps with gradients drawn from their number and the step."""
    config = OptimConfig(name=name, lr=0.02, weight_decay=0.1, momentum_warmup_steps=warmup_steps)
    matrices = {f"w{k}": torch.nn.Parameter(draw(*shape, seed=k)) for k, shape in enumerate(shapes)}
    optimizer = build_optimizer(config, matrices, dict.fromkeys(matrices, "matrix"))
    for number in range(1, num_steps + 1):
        set_pace(optimizer, config, number, num_steps, lr=0.02)
        for k, p in enumerate(matrices.values()):
            p.grad = draw(*p.shape, seed=100 * number + k)
        optimizer.step()
    return matrices, optimizer


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_stacked_matrices_step_as_single_ones(name, monkeypatch):
    shapes = [(24, 40)] * 5 + [(40, 24)] * 3
    single, _ = step_matrices(name, shapes)
    monkeypatch.setattr(muon, "stack_size", lambda *_: 2)
    stacked, _ = step_matrices(name, shapes)
    for key, p in single.items():
        torch.testing.assert_close(stacked[key], p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (1, 6)])
def test_normuon_is_the_paper(shape):
    matrices, optimizer = step_matrices("normuon", [shape])
    w, mean, square = draw(*shape, seed=0).double(), torch.zeros(shape).double(), torch.zeros(shape[0], 1).double()
    for number in range(1, 5):
        gradient = draw(*shape, seed=100 * number).double()
        mean = 0.95 * mean + 0.05 * gradient
        o = naive(0.05 * gradient + 0.95 * mean)
        square = 0.95 * square + 0.05 * (o**2).mean(dim=1, keepdim=True)
        update = o / square.sqrt()
        update *= o.norm() / update.norm()
        w = w - 0.02 * (0.1 * w + 0.2 * max(shape) ** 0.5 * update)
    torch.testing.assert_close(matrices["w0"].detach().double(), w, rtol=1e-4, atol=1e-4)
    tensors, _ = export_state(optimizer)
    torch.testing.assert_close(tensors["w0/row_square"].double(), square[:, 0], rtol=1e-3, atol=1e-6)


def test_normuon_leaves_no_row_behind():
    """Rows with small gradients move as far as the others, which is what Muon does not give them."""
    gradient = draw(16, 64) * torch.linspace(0.01, 1, 16)[:, None]
    spread = {}
    for name in ("muon", "normuon"):
        p = torch.nn.Parameter(torch.zeros(16, 64))
        optimizer = build_optimizer(OptimConfig(name=name, lr=0.02), {"w": p}, {"w": "matrix"})
        p.grad = gradient.clone()
        optimizer.step()
        sizes = p.detach().norm(dim=1)
        spread[name] = (sizes.max() / sizes.min()).item()
    assert spread["normuon"] == pytest.approx(1, abs=1e-4) and spread["muon"] > 1.2


def test_momentum_warms_up_in_a_straight_line():
    config = OptimConfig(name="muon", momentum_warmup_steps=4)
    assert [momentum(config, step) for step in range(1, 7)] == pytest.approx([0.85, 0.875, 0.9, 0.925, 0.95, 0.95])
    assert momentum(OptimConfig(name="muon"), 1) == 0.95


def test_a_step_uses_the_momentum_of_its_number():
    _, optimizer = step_matrices("muon", [(4, 6)], num_steps=3, warmup_steps=2)
    mean = torch.zeros(4, 6)
    for number, share in ((1, 0.85), (2, 0.9), (3, 0.95)):
        mean = share * mean + (1 - share) * draw(4, 6, seed=100 * number)
    torch.testing.assert_close(export_state(optimizer)[0]["w0/momentum"], mean)
