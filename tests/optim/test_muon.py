"""Muon: equal to torch's and to the singular value decomposition, AdamW for what is no matrix."""

import pytest
import torch

from packtrain.config.optim import OptimConfig
from packtrain.optim.build import build_optimizer
from packtrain.optim.muon import orthogonalise

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
    torch.testing.assert_close(orthogonalise(matrix, torch.float64).double(), naive(matrix))
    torch.testing.assert_close(orthogonalise(matrix, torch.float32).double(), naive(matrix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e12])
def test_any_scale_comes_out_nearly_orthogonal(scale):
    values = torch.linalg.svdvals(orthogonalise(draw(32, 64) * scale, torch.float32))
    assert values.min() > 0.5 and values.max() < 1.3


def test_nothing_stays_nothing():
    assert torch.equal(orthogonalise(torch.zeros(4, 6), torch.float32), torch.zeros(4, 6))


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
