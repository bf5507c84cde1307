"""A known accelerator has a peak rate, and one that is not known has none."""

import pytest

from packtrain.plan.devices import peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("AMD EPYC", None),
    ],
)
def test_peak_rate_is_known_or_none(name, peak):
    assert peak_flops(name) == peak
