"""Products by either library are equal up to rounding."""

import pytest
import torch

from packtrain.model.cpu import products


@pytest.fixture(params=[False, True], ids=["elsewhere", "intel"])
def maker(request, monkeypatch):
    monkeypatch.setattr(products, "is_intel", lambda: request.param)


@pytest.mark.usefixtures("maker")
@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (15, 8), (64, 8), (2, 33, 8), (4, 16, 1)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_linear(shape, is_transposed):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(5, shape[-1], generator=generator)
    if is_transposed:
        weight = weight.t().contiguous().t()
    torch.testing.assert_close(products.linear(x, weight), x @ weight.t())
    if x.dim() == 2:
        total = torch.randn(shape[0], 5, generator=generator)
        wanted = total + x @ weight.t()
        torch.testing.assert_close(products.add_linear(total, x, weight), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype):
    x, weight = torch.ones(32, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype)
    assert torch.equal(products.linear(x, weight), torch.full((32, 3), 4, dtype=dtype))


@pytest.mark.skipif(not products.has_onednn(), reason="torch without oneDNN")
def test_onednn_gives_the_same_bits_again(monkeypatch):
    monkeypatch.setattr(products, "is_intel", lambda: False)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(512, 96, generator=generator), torch.randn(64, 96, generator=generator)
    first = products.linear(x, weight)
    for _ in range(20):
        assert torch.equal(products.linear(x.clone(), weight), first)
