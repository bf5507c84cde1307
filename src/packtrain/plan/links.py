"""Decides how fast each kind of GPU sends numbers to others, in its node and out of it, and reads its own memory."""

from dataclasses import dataclass

from packtrain.plan.devices import Accelerator


@dataclass(frozen=True)
class Link:
    """A way between devices. Rates are in bytes a second, in one direction: of one device, or of a node's whole network."""

    name: str
    vendor_rate: float
    rate: float
    """What collectives reach of it: measured by others as `source` says, or assumed."""
    source: str
    first_s: float = 20e-6
    """Seconds that a collective takes before its first byte arrives; assumed."""
    hop_s: float = 2e-6
    """Seconds more for each further rank in a ring; assumed."""


@dataclass(frozen=True)
class Wiring:
    """The links of a kind of device, as they are usually built in, and its memory."""

    inside: Link
    network: Link
    memory_rate: float
    """Of its own memory, as the vendor gives it."""


_MAINTAINERS = "NVIDIA's maintainers, github.com/NVIDIA/nccl-tests"
_NVLINK_4 = Link("NVLink 4", 450e9, 370e9, f"370 of 450 GB/s: {_MAINTAINERS}/issues/212")
_NVLINK_3 = Link("NVLink 3", 300e9, 247e9, "the share of NVLink 4, assumed")
_NVLINK_2 = Link("NVLink 2", 150e9, 123e9, "the share of NVLink 4, assumed")
_FABRIC = Link("Infinity Fabric", 448e9, 314e9, "70 % of the vendor's rate, assumed")
_PCIE_3 = Link("PCIe 3.0 x16", 15.8e9, 10e9, "the share of PCIe 4.0, assumed", hop_s=5e-6)
_PCIE_4 = Link(
    "PCIe 4.0 x16",
    31.5e9,
    20e9,
    "41 GB/s both ways, a user's: github.com/tinygrad/open-gpu-kernel-modules/issues/6",
    hop_s=5e-6,
)
_PCIE_5 = Link("PCIe 5.0 x16", 63e9, 40e9, "the share of PCIe 4.0, assumed", hop_s=5e-6)
# A card without peer-to-peer writes to main memory and another reads from there.
_HOST_4 = Link(
    "PCIe 4.0 x16 without peer-to-peer",
    31.5e9,
    12e9,
    "20 and 26 GB/s both ways, users': github.com/NVIDIA/nccl-tests/issues/74, tinygrad/open-gpu-kernel-modules/issues/6",
    hop_s=5e-6,
)
_HOST_5 = Link("PCIe 5.0 x16 without peer-to-peer", 63e9, 24e9, "twice PCIe 4.0, assumed", hop_s=5e-6)


def _network(name: str, gbit_s: float, ports: int, source: str, share: float = 0.92) -> Link:
    rate = gbit_s * 1e9 / 8 * ports
    return Link(f"{ports} x {name}" if ports > 1 else name, rate, share * rate, source, first_s=50e-6, hop_s=5e-6)


_NDR = _network("InfiniBand NDR 400", 400, 8, f"46 of 50 GB/s: {_MAINTAINERS}/issues/290")
_HDR = _network("InfiniBand HDR 200", 200, 8, "the share of NDR, assumed")
_ROCE = _network("400 Gbit/s Ethernet", 400, 8, "the share of NDR, assumed")
_ETHERNET_100 = _network("100 Gbit/s Ethernet", 100, 1, "assumed")
_ETHERNET_10 = _network("10 Gbit/s Ethernet", 10, 1, "assumed")

_WIRINGS = {
    "RTX 3080": Wiring(_HOST_4, _ETHERNET_10, 760e9),
    "RTX 3090": Wiring(_HOST_4, _ETHERNET_10, 936e9),
    "RTX 4080": Wiring(_HOST_4, _ETHERNET_10, 717e9),
    "RTX 4090": Wiring(_HOST_4, _ETHERNET_10, 1008e9),
    "RTX 5080": Wiring(_HOST_5, _ETHERNET_10, 960e9),
    "RTX 5090": Wiring(_HOST_5, _ETHERNET_10, 1792e9),
    "RTX A6000": Wiring(_PCIE_4, _ETHERNET_100, 768e9),
    "V100 32GB": Wiring(_NVLINK_2, _ETHERNET_100, 900e9),
    "V100": Wiring(_NVLINK_2, _ETHERNET_100, 900e9),
    "T4": Wiring(_PCIE_3, _ETHERNET_100, 320e9),
    "A10": Wiring(_PCIE_4, _ETHERNET_100, 600e9),
    "L4": Wiring(_PCIE_4, _ETHERNET_100, 300e9),
    "L40S": Wiring(_PCIE_4, _ETHERNET_100, 864e9),
    "A100 40GB": Wiring(_NVLINK_3, _HDR, 1555e9),
    "A100": Wiring(_NVLINK_3, _HDR, 2039e9),
    "H100 PCIe": Wiring(_PCIE_5, _ETHERNET_100, 2000e9),
    "H100": Wiring(_NVLINK_4, _NDR, 3350e9),
    "H200": Wiring(_NVLINK_4, _NDR, 4800e9),
    "MI300X": Wiring(_FABRIC, _ROCE, 5300e9),
}


def find_wiring(device: Accelerator, network_gbit_s: float | None = None) -> Wiring:
    """The usual links of `device`; with `network_gbit_s`, a network of that rate for each node."""
    wiring = _WIRINGS[device.name]
    if network_gbit_s is None:
        return wiring
    network = _network(f"a network of {network_gbit_s:g} Gbit/s", network_gbit_s, 1, "given")
    return Wiring(wiring.inside, network, wiring.memory_rate)
