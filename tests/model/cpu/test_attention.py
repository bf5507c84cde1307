"""Attention in 16 bits on the CPU: our gradients are as exact as torch's."""

import pytest
import torch
from torch.nn import functional as F

from packtrain.model.cpu import gradients
from packtrain.model.cpu.blocks import cpu_attend


def inputs(H, G, T, K, dtype):
    generator = torch.Generator().manual_seed(T)
    return [torch.randn(2, heads, T, K, generator=generator).to(dtype).requires_grad_() for heads in (H, G, G)]


def errors(tensors, exact):
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(tensors, exact, strict=True)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(4, 4, 256, 48), (8, 2, 64, 32), (6, 3, 300, 40), (3, 3, 7, 8), (1, 1, 2, 2), (2, 2, 1024, 64)]
)
@pytest.mark.parametrize("has_tiles", [False, True])
def test_gradients_are_as_exact_as_torchs(shape, dtype, has_tiles, monkeypatch):
    monkeypatch.setattr(gradients, "_has_large_tiles", lambda _: has_tiles)
    given = inputs(*shape, dtype)
    wide = [x.detach().double().requires_grad_() for x in given]
    is_grouped = shape[0] != shape[1]
    ours = cpu_attend(*given, None)
    torchs = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=is_grouped)
    exact = F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=is_grouped)
    assert "CausalAttention" in type(ours.grad_fn).__name__
    assert torch.equal(ours, torchs)

    d_out = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(ours, given, d_out)
    theirs = torch.autograd.grad(torchs, given, d_out)
    wanted = torch.autograd.grad(exact, wide, d_out.double())
    assert all(gradient.dtype == dtype for gradient in found)
    for error, other in zip(errors(found, wanted), errors(theirs, wanted), strict=True):
        assert error <= 1.1 * other + 0.1 * torch.finfo(dtype).eps
    assert max(errors(found, wanted)) < 8 * torch.finfo(dtype).eps


def test_float32_and_masks_are_left_to_torch():
    q, k, v = inputs(2, 2, 8, 4, torch.float32)
    assert "CausalAttention" not in type(cpu_attend(q, k, v, None).grad_fn).__name__
    narrow = inputs(2, 2, 8, 4, torch.bfloat16)
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    assert "CausalAttention" not in type(cpu_attend(*narrow, mask).grad_fn).__name__
