"""Decides what this machine's CPU is called. Imports nothing heavy: `plan` asks too."""

import platform
from pathlib import Path


def cpu_name() -> str:
    """The CPU's model, as a run's manifest.json names it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
