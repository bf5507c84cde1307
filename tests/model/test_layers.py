"""Rotary positions depend on distance alone, norms are computed wide and rounded once, and joined products are the products."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from packtrain.model import layers
from packtrain.model.layers import RMSNorm, Rotary, SwiGLU, project, project_together, rotate

from .tiny import built, tiny


class Called(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_rotation_keeps_lengths_and_relative_angles():
    q, k = (torch.randn(1, 1, 1, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    rotary = Rotary(tiny())

    def score(i, j):
        return (rotate(q, rotary(torch.tensor([i]))) * rotate(k, rotary(torch.tensor([j])))).sum()

    torch.testing.assert_close(score(3, 1), score(90, 88), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(3, 1), score(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_has_the_type_of_products(dtype):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        y = RMSNorm(8, 1e-5)(x)
    assert torch.equal(y, F.rms_norm(x, (8,), None, 1e-5).to(dtype))


@torch.no_grad()
def test_a_block_computes_no_angle():
    # Blocks are compiled one by one. An angle inside would be a sine and a cosine in each kernel that rotates.
    model = built(tiny())
    x, rotation = torch.randn(1, 8, 64), model.model.rotary(torch.arange(8))
    with Called() as called:
        model.model.layers[0](x, rotation)
    assert "mm" in called.names and not {"cos", "sin"} & set(called.names)


def test_a_joined_product_is_the_products_and_so_are_its_gradients():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(n, 8, generator=draw, dtype=torch.float64, requires_grad=True) for n in (6, 3, 6)]
    wanted, got = [F.linear(x, weight) for weight in weights], project_together(x, *weights)
    scales = [torch.randn(z.shape, generator=draw, dtype=torch.float64) for z in wanted]

    def gradients(results):
        return torch.autograd.grad(sum((z * s).sum() for z, s in zip(results, scales, strict=True)), (x, *weights))

    torch.testing.assert_close(list(got), wanted)
    torch.testing.assert_close(gradients(got), gradients(wanted))


def test_a_joined_product_rounds_as_the_products_do():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, generator=draw)
    weights = [torch.randn(n, 16, generator=draw, requires_grad=True) for n in (6, 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = project_together(x, *weights), [F.linear(x, weight) for weight in weights]
    assert all(z.dtype == torch.bfloat16 for z in got)
    torch.testing.assert_close(list(got), wanted, rtol=0.01, atol=0.01)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(sum(z.float().sum() for z in got), weights))


@pytest.mark.parametrize(
    ("device", "weights", "is_compiling", "products"),
    [
        ("meta", torch.float32, True, 2),  # gate and up together, then down
        ("meta", torch.bfloat16, True, 3),  # FSDP sends bf16: joining would be a copy
        ("meta", torch.float32, False, 3),
        ("cpu", torch.float32, True, 3),
    ],
)
def test_products_are_joined_where_the_weights_are_converted_anyway(
    monkeypatch, device, weights, is_compiling, products
):
    if is_compiling:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    # Nothing is known of autocast on the meta device, and it does not convert the operands of the other products.
    monkeypatch.setattr(layers, "product_dtype", lambda x: x.dtype)
    mlp, x = SwiGLU(tiny()).to(device, weights), torch.zeros(3, 64, dtype=torch.bfloat16, device=device)
    monkeypatch.setattr(F, "linear", lambda x, weight, _bias=None: x @ weight.to(x.dtype).t())
    with Called() as called:
        mlp(x)
    assert called.names.count("mm") == products


def test_layers_of_another_class_are_not_joined(monkeypatch):
    class Fp8(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(layers, "product_dtype", lambda _x: torch.bfloat16)
    with Called() as called:
        project(torch.zeros(3, 8, device="meta"), *(Fp8(8, 4, bias=False, device="meta") for _ in "ab"))
    assert called.names.count("mul") == 2
