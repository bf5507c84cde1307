"""Decides the peak rate of an accelerator by its name, without ever guessing that of an unknown one."""

import re

# FLOPs per second of dense bf16 matrix products with float32 sums, without sparsity. From the GA102, AD102 and RTX Blackwell
# whitepapers, and the data sheets of A10, A100, L4, L40S, H100, H200 and MI300X. On the 4090 and 5090, the rate with
# float16 sums is twice as high.
PEAK_FLOPS = {
    "RTX 3090": 71.0e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
    "A10": 125.0e12,
    "L4": 121.0e12,
    "L40S": 362.0e12,
    "A100": 312.0e12,
    "H100 PCIe": 756.0e12,
    "H100": 989.4e12,
    "H200": 989.4e12,
    "MI300X": 1307.4e12,
}


def peak_flops(name: str) -> float | None:
    """Peak of the device that torch calls `name` (`NVIDIA GeForce RTX 4090`), or None if it is unknown.

    A partition of a device (MIG) is unknown, and so are variants with another rate (Laptop, D, NVL).
    """
    if re.search(r"\b(MIG|Laptop|NVL|Ti|SUPER|Max-Q|D)\b", name, re.IGNORECASE):
        return None
    words = set(re.split(r"[\s-]+", name))
    known = [device for device in PEAK_FLOPS if words.issuperset(device.split())]
    # An H100 PCIe is an H100 with another rate: the longest matching name wins.
    return PEAK_FLOPS[max(known, key=len)] if known else None
