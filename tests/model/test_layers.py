"""Rotary positions depend on distance alone, and norms are computed wide and rounded once."""

import pytest
import torch
from torch.nn import functional as F

from packtrain.model.layers import RMSNorm, Rotary, rotate

from .tiny import tiny


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
