"""Products by either library are equal up to rounding, and a choice of layers is kept to."""

import pytest
import torch

from packtrain.config.cpu import KINDS, CpuConfig
from packtrain.model.cpu import products as products_file
from packtrain.model.cpu.products import Products, has_onednn, maker_rule

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="torch without oneDNN")
TORCH, ONEDNN, SOME = (
    Products.of(CpuConfig(**dict.fromkeys(KINDS, text))) for text in ("torch", "onednn", "onednn 8x5 4x5")
)


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize(
    "products", [TORCH, ONEDNN, SOME, Products.by_maker()], ids=["torch", "onednn", "some", "maker"]
)
@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (15, 8), (64, 8), (2, 33, 8), (4, 16, 1)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_products_of_a_layer(products, shape, is_transposed):
    x, weight, dy = draw(*shape), draw(5, shape[-1]), draw(*shape[:-1], 5)
    if is_transposed:
        weight = weight.t().contiguous().t()
    torch.testing.assert_close(products.outputs(x, weight), x @ weight.t())
    torch.testing.assert_close(products.input_gradient(dy, weight), dy @ weight)
    rows, d_rows = x.flatten(0, -2), dy.flatten(0, -2)
    wanted = d_rows.t() @ rows
    torch.testing.assert_close(products.weight_gradient(d_rows, rows), wanted)
    total = draw(*wanted.shape)
    torch.testing.assert_close(products.weight_gradient(d_rows, rows, total.clone()), total + wanted)
    total = draw(*rows.shape)
    torch.testing.assert_close(products.add_input_gradient(total.clone(), d_rows, weight), total + d_rows @ weight)


@pytest.mark.parametrize("products", [TORCH, Products.by_maker()], ids=["torch", "maker"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(products, dtype):
    x, weight = torch.ones(32, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype)
    assert torch.equal(products.outputs(x, weight), torch.full((32, 3), 4, dtype=dtype))


def test_a_sum_of_narrow_products_is_wide():
    dy, x = torch.full((32, 2), 1.0, dtype=torch.bfloat16), torch.full((32, 3), 8.0, dtype=torch.bfloat16)
    total = TORCH.weight_gradient(dy, x, torch.full((2, 3), 2.0**-10))
    assert torch.equal(total, torch.full((2, 3), 256 + 2.0**-10))


@needs_onednn
def test_onednn_takes_the_layers_that_it_is_given(monkeypatch):
    taken = []
    real = products_file.by_onednn

    def noting(x, weight):
        taken.append((x.shape[-1], weight.shape[0]))
        return real(x, weight)

    monkeypatch.setattr(products_file, "by_onednn", noting)
    for products, wanted in ((TORCH, []), (SOME, [(8, 5), (5, 8), (32, 8)]), (ONEDNN, [(8, 5), (5, 8), (32, 8)] * 2)):
        taken.clear()
        for inputs in (8,) if products is SOME else (8, 8):
            x, weight, dy = draw(32, inputs), draw(5, inputs), draw(32, 5)
            products.outputs(x, weight), products.input_gradient(dy, weight), products.weight_gradient(dy, x)
        SOME.outputs(draw(32, 7), draw(5, 7))
        SOME.outputs(draw(15, 8), draw(5, 8))
        assert taken == wanted


@needs_onednn
def test_onednn_gives_the_same_bits_again():
    x, weight, dy = draw(512, 96), draw(64, 96), draw(512, 64)
    for give in (
        lambda: ONEDNN.outputs(x.clone(), weight),
        lambda: ONEDNN.input_gradient(dy.clone(), weight),
        lambda: ONEDNN.weight_gradient(dy.clone(), x.clone()),
    ):
        first = give()
        assert all(torch.equal(give(), first) for _ in range(20))


def test_a_maker_is_the_rule_without_a_measurement(monkeypatch):
    maker_rule.cache_clear()
    monkeypatch.setattr(products_file, "is_intel", lambda: True)
    assert set(dict(maker_rule()).values()) == {"torch"}
    maker_rule.cache_clear()
    monkeypatch.setattr(products_file, "is_intel", lambda: False)
    rule = maker_rule()
    assert rule.weight_gradients == "torch"
    assert rule.outputs == rule.input_gradients == ("onednn" if has_onednn() else "torch")
    maker_rule.cache_clear()
