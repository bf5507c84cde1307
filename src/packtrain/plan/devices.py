"""Decides which accelerators are known: memory, peak rates and an assumed price of each, found by name without guessing."""

import difflib
import re
from dataclasses import dataclass

from packtrain.errors import ConfigError


@dataclass(frozen=True)
class Accelerator:
    """An accelerator as its vendor describes it. Rates are dense (no sparsity), in FLOP/s, with float32 sums."""

    name: str
    memory_gb: float
    """In 10⁹ bytes. A driver shows a few per cent more."""
    bf16: float | None
    """Of matrix products in bf16; fp16 has the same rate on every device here that has both."""
    fp32: float
    """Of matrix products in float32, not TF32: training in fp32 does not round its operands."""
    fp8: float | None = None
    fp16: float | None = None
    """Only of devices without bf16."""
    source: str = ""
    price_per_hour: float | None = None
    """What an hour costs to rent, in dollars: listings of March 2026, rounded. Assumed; they change from week to week."""

    def peak_flops(self, precision: str) -> float | None:
        """Peak rate in a precision; None if the device does not compute in it. fp8 counts against the bf16 rate, as MFU does."""
        if precision == "fp32":
            return self.fp32
        if precision == "fp8" and self.fp8 is None:
            return None
        return (self.fp16 or self.bf16) if precision == "fp16" else self.bf16


_T = 1e12
_AMPERE, _ADA, _BLACKWELL = "NVIDIA GA102 whitepaper", "NVIDIA Ada whitepaper", "NVIDIA RTX Blackwell whitepaper"
_KNOWN = (
    Accelerator("RTX 3080", 10, 59.5 * _T, 29.8 * _T, source=_AMPERE),
    Accelerator("RTX 3090", 24, 71.0 * _T, 35.6 * _T, source=_AMPERE, price_per_hour=0.22),
    Accelerator("RTX 4080", 16, 97.5 * _T, 48.7 * _T, 194.9 * _T, source=_ADA),
    # With float16 sums, the rates of the 4090 and 5090 are twice as high.
    Accelerator("RTX 4090", 24, 165.2 * _T, 82.6 * _T, 330.3 * _T, source=_ADA, price_per_hour=0.34),
    Accelerator("RTX 5080", 16, 112.6 * _T, 56.3 * _T, 225.1 * _T, source=_BLACKWELL),
    Accelerator("RTX 5090", 32, 209.5 * _T, 104.8 * _T, 419.0 * _T, source=_BLACKWELL, price_per_hour=0.69),
    Accelerator("RTX A6000", 48, 154.8 * _T, 38.7 * _T, source="NVIDIA RTX A6000 data sheet"),
    Accelerator("V100 32GB", 32, None, 15.7 * _T, fp16=125.0 * _T, source="NVIDIA V100 data sheet (SXM2)"),
    Accelerator("V100", 16, None, 15.7 * _T, fp16=125.0 * _T, source="NVIDIA V100 data sheet (SXM2)"),
    Accelerator("T4", 16, None, 8.1 * _T, fp16=65.0 * _T, source="NVIDIA T4 data sheet"),
    Accelerator("A10", 24, 125.0 * _T, 31.2 * _T, source="NVIDIA A10 data sheet"),
    Accelerator("L4", 24, 121.0 * _T, 30.3 * _T, 242.5 * _T, source="NVIDIA L4 data sheet", price_per_hour=0.44),
    Accelerator("L40S", 48, 362.0 * _T, 91.6 * _T, 733.0 * _T, source="NVIDIA L40S data sheet", price_per_hour=0.79),
    Accelerator("A100 40GB", 40, 312.0 * _T, 19.5 * _T, source="NVIDIA A100 data sheet"),
    Accelerator("A100", 80, 312.0 * _T, 19.5 * _T, source="NVIDIA A100 data sheet", price_per_hour=1.39),
    Accelerator(
        "H100 PCIe", 80, 756.0 * _T, 51.2 * _T, 1513.0 * _T, source="NVIDIA H100 data sheet", price_per_hour=1.99
    ),
    Accelerator(
        "H100", 80, 989.4 * _T, 66.9 * _T, 1978.9 * _T, source="NVIDIA H100 data sheet (SXM)", price_per_hour=2.69
    ),
    Accelerator("H200", 141, 989.4 * _T, 66.9 * _T, 1978.9 * _T, source="NVIDIA H200 data sheet", price_per_hour=3.59),
    Accelerator("MI300X", 192, 1307.4 * _T, 163.4 * _T, 2614.9 * _T, source="AMD MI300X data sheet"),
)
ACCELERATORS = {device.name: device for device in _KNOWN}

# Of the bf16 rate, for MFU.
PEAK_FLOPS = {device.name: device.bf16 for device in _KNOWN if device.bf16}

# What vendors and shops put around the name that tells devices apart.
_DECORATION = frozenset(
    {"nvidia", "geforce", "rtx", "gtx", "tesla", "amd", "instinct", "radeon", "quadro", "gpu", "core", "tensor"}
    | {
        "sxm",
        "sxm2",
        "sxm3",
        "sxm4",
        "sxm5",
        "oam",
        "hbm2",
        "hbm2e",
        "hbm3",
        "hbm3e",
        "gddr6",
        "gddr6x",
        "graphics",
        "card",
    }
)
_PREFIXES = re.compile(r"^(nvidia|geforce|rtx|tesla|amd|instinct)(?=\w)")
_SUFFIXES = re.compile(r"^([a-z]*\d+[a-z]?)(pcie|sxm\d?|ti|super|laptop|nvl)$")
_MEMORY = re.compile(r"(\d+)\s*gi?b\b")


def peak_flops(name: str) -> float | None:
    """Peak bf16 rate of the device that torch calls `name` (`NVIDIA GeForce RTX 4090`), or None if it is unknown.

    A partition of a device (MIG) is unknown, and so are variants with another rate (Laptop, D, NVL).
    """
    if re.search(r"\b(MIG|Laptop|NVL|Ti|SUPER|Max-Q|D)\b", name, re.IGNORECASE):
        return None
    words = set(re.split(r"[\s-]+", name))
    known = [device for device in PEAK_FLOPS if words.issuperset(device.split())]
    # An H100 PCIe is an H100 with another rate: the longest matching name wins.
    return PEAK_FLOPS[max(known, key=len)] if known else None


def find_accelerator(name: str) -> Accelerator:
    """The accelerator that a person means by `name`: `4090`, `rtx4090`, `H100-SXM`, `A100 80GB`.

    Raises ConfigError, with the known ones, for any other name and for variants with other figures (Laptop, Ti, NVL).
    """
    words, memory_gb = _words(name)
    same = [device for device in _KNOWN if words and words == _words(device.name)[0]]
    if not same:
        near = difflib.get_close_matches(name.lower(), [known.lower() for known in ACCELERATORS], n=1, cutoff=0.6)
        hint = next((f"did you mean {known}? " for known in ACCELERATORS if near and known.lower() == near[0]), "")
        raise ConfigError(
            f"there are no figures of a GPU named '{name[:80]}'; {hint}write --gpu with one of {', '.join(ACCELERATORS)}"
        )
    if memory_gb is None:
        # The last one: the A100 that data sheets show today has 80 GB.
        return same[-1]
    fitting = [device for device in same if round(device.memory_gb) == memory_gb]
    if not fitting:
        have = " or ".join(f"{device.memory_gb:g} GB" for device in same)
        raise ConfigError(f"--gpu {name[:80]}: the {same[-1].name} has {have}; write --gpu '{same[-1].name}'")
    return fitting[-1]


def _words(name: str) -> tuple[frozenset[str], int | None]:
    """The words of a name that tell devices apart, and the memory that it names, in GB."""
    lowered = name.lower()
    memory = _MEMORY.search(lowered)
    if memory:
        lowered = lowered.replace(memory[0], " ")
    words: set[str] = set()
    for word in re.split(r"[^a-z0-9]+", lowered):
        bare = _PREFIXES.sub("", word)
        parts = _SUFFIXES.match(bare)
        words |= set(parts.groups()) if parts and bare not in _DECORATION else {bare}
    return frozenset(words - _DECORATION - {""}), int(memory[1]) if memory else None
