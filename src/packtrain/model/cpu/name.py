"""Decides what this machine's CPU is called. Imports nothing heavy: `plan` asks too."""

import platform
from pathlib import Path

_INFO = Path("/proc/cpuinfo")


def cpu_name() -> str:
    """The CPU's model, as a run's manifest.json names it."""
    return _read_facts().get("model name") or platform.processor() or platform.machine()


def describe_cpu() -> dict[str, str]:
    """What tells this CPU from others. On a rented machine the name alone does not: it may be `AMD EPYC` for every generation."""
    facts = _read_facts()
    flags = sorted(flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    described = {"name": cpu_name(), "machine": platform.machine(), "flags": " ".join(flags)}
    for name in ("vendor_id", "cpu family", "model", "stepping"):
        described[name] = facts.get(name, "")
    return described


def _read_facts() -> dict[str, str]:
    """What Linux says of the first core."""
    try:
        first = _INFO.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
