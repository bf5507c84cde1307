"""Decides the peak rate of an accelerator by its name, without ever guessing that of an unknown one."""

import re
from typing import NamedTuple


class Device(NamedTuple):
    """An accelerator. `peak_flops`: FLOPs per second of dense bf16 matrix products with float32 sums."""

    name: str
    peak_flops: float
    memory_bytes: int


# From the vendors' data sheets and architecture papers, without sparsity: GA102 and AD102 whitepapers, RTX Blackwell
# whitepaper, and the data sheets of A10, A100, L4, L40S, H100, H200 and MI300X. 4090 and 5090: the rate with float32
# sums, half of the rate with float16 sums.
DEVICES = (
    Device("RTX 3090", 71.0e12, 24 * 10**9),
    Device("RTX 4090", 165.2e12, 24 * 10**9),
    Device("RTX 5090", 209.5e12, 32 * 10**9),
    Device("A10", 125.0e12, 24 * 10**9),
    Device("L4", 121.0e12, 24 * 10**9),
    Device("L40S", 362.0e12, 48 * 10**9),
    Device("A100", 312.0e12, 80 * 10**9),
    Device("H100 PCIe", 756.0e12, 80 * 10**9),
    Device("H100", 989.4e12, 80 * 10**9),
    Device("H200", 989.4e12, 141 * 10**9),
    Device("MI300X", 1307.4e12, 192 * 10**9),
)


def peak_flops(name: str) -> float | None:
    """Peak of the device that torch calls `name` (`NVIDIA GeForce RTX 4090`), or None if it is unknown.

    A partition of a device (MIG) is unknown, and so are variants with another rate (Laptop, D, NVL).
    """
    if re.search(r"\b(MIG|Laptop|NVL|Ti|SUPER|Max-Q|D)\b", name, re.IGNORECASE):
        return None
    words = set(re.split(r"[\s-]+", name))
    known = [device for device in DEVICES if words.issuperset(device.name.split())]
    # An H100 PCIe is an H100 with another rate: the longest matching name wins.
    return max(known, key=lambda device: len(device.name)).peak_flops if known else None
