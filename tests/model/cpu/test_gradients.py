"""Each hand-written gradient is autograd's gradient of its equation."""

import pytest
import torch
from torch.nn import functional as F

from packtrain.model.cpu.blocks import CpuRMSNorm
from packtrain.model.cpu.gradients import Normalize, NormalizeAndProject, Project, Rotate, SwiGLUDown
from packtrain.model.cpu.products import Products

PRODUCTS = Products.by_maker()


def draw(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True)


def equal_with_gradients(ours, theirs, inputs, **tolerance):
    got, wanted = ours(*inputs), theirs(*inputs)
    torch.testing.assert_close(got, wanted, **tolerance)
    towards = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    for a, b in zip(
        torch.autograd.grad(got, inputs, towards), torch.autograd.grad(wanted, inputs, towards), strict=True
    ):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("shape", [(2, 3, 8), (5, 8), (2, 3, 4, 8)])
def test_rms_norm(shape):
    inputs = (draw(*shape), draw(8))

    def ours(x, weight):
        return Normalize.apply(x, weight, 1e-5, x.dtype)

    equal_with_gradients(ours, lambda x, w: F.rms_norm(x, (8,), w, 1e-5), inputs)
    assert torch.autograd.gradcheck(ours, inputs)


@pytest.mark.parametrize("num_weights", [1, 2, 3])
def test_norm_and_projections(num_weights):
    inputs = (draw(2, 3, 8), draw(8), *(draw(rows, 8) for rows in (5, 8, 4)[:num_weights]))

    def ours(x, weight, *weights):
        return torch.cat(NormalizeAndProject.apply(PRODUCTS, x, weight, 1e-5, *weights), -1)

    def theirs(x, weight, *weights):
        return F.rms_norm(x, (8,), weight, 1e-5) @ torch.cat(weights).t()

    equal_with_gradients(ours, theirs, inputs)
    assert torch.autograd.gradcheck(ours, inputs)


def test_rms_norm_of_nothing_is_nothing():
    x = torch.zeros(2, 8, requires_grad=True)
    y = Normalize.apply(x, torch.ones(8), 1e-5, torch.float32)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 8)) and x.grad.isfinite().all()


def test_rotation():
    angles = draw(1, 5, 1, 3).detach()

    def theirs(x):
        a, b = x.chunk(2, -1)
        return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)

    inputs = (draw(2, 5, 4, 6),)
    equal_with_gradients(lambda x: Rotate.apply(x, angles.cos(), angles.sin()), theirs, inputs)


def test_projection():
    inputs = (draw(2, 3, 8), draw(5, 8))

    def ours(x, weight):
        return Project.apply(PRODUCTS, x, weight)

    equal_with_gradients(ours, lambda x, w: x @ w.t(), inputs)
    assert torch.autograd.gradcheck(ours, inputs)


def test_swiglu_and_down_projection():
    inputs = (draw(2, 3, 10), draw(2, 3, 10) + 1, draw(6, 10))

    def ours(gate, up, weight):
        return SwiGLUDown.apply(PRODUCTS, gate, up, weight)

    equal_with_gradients(ours, lambda g, u, w: (F.silu(g) * u) @ w.t(), inputs)
    assert torch.autograd.gradcheck(ours, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_computed_wide(dtype):
    norm = CpuRMSNorm(8, 1e-5)
    x = draw(3, 8, dtype=torch.float32)
    y = norm.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), F.rms_norm(x.to(dtype).float(), (8,), None, 1e-5), rtol=8e-3, atol=8e-3)
