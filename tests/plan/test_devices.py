"""A known accelerator has a peak rate, and one that is not known has none."""

import pytest

from packtrain.errors import ConfigError
from packtrain.plan.devices import ACCELERATORS, find_accelerator, peak_flops


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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("H100", "H100"),
        ("h100-sxm", "H100"),
        ("H100SXM5 80 GB", "H100"),
        ("h100 pcie", "H100 PCIe"),
        ("A100 80GB", "A100"),
        ("a100-sxm4-40gb", "A100 40GB"),
        ("h200", "H200"),
        ("L40S", "L40S"),
        ("RTX_3090", "RTX 3090"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_an_accelerator_is_found_however_people_write_it(name, found):
    assert find_accelerator(name) is ACCELERATORS[found]


@pytest.mark.parametrize("name", ["", "nvidia", "4090 laptop", "3090ti", "h100 nvl", "gtx 1080", "A100 24GB", "l40"])
def test_what_is_not_known_is_refused_with_what_is(name):
    with pytest.raises(ConfigError, match="write --gpu"):
        find_accelerator(name)


def test_a_device_computes_only_in_its_precisions():
    assert ACCELERATORS["A100"].peak_flops("fp8") is None
    assert ACCELERATORS["V100"].peak_flops("bf16") is None
    assert ACCELERATORS["V100"].peak_flops("fp16") == 125e12
    # MFU of fp8 is relative to bf16.
    assert ACCELERATORS["H100"].peak_flops("fp8") == 989.4e12


def test_every_figure_names_its_source():
    assert all(device.source for device in ACCELERATORS.values())
