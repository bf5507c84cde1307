"""Decides how the peak memory of a command is measured: for each of its processes, by the kernel's own figure."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

INTERVAL_S = 0.05


def peaks(command: Sequence[str]) -> dict[str, Any]:
    """Run a command. Returns the peak bytes of the command, of its largest child and of all together, and its seconds.

    The peaks of single processes are the kernel's figures (VmHWM), read until each ends. The sum is of resident sizes at one
    moment; pages that processes share count for each.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen: dict[int, int] = {}
    together = 0
    while process.poll() is None:
        resident = 0
        for pid in (process.pid, *_children(process.pid)):
            status = _status(pid)
            seen[pid] = max(seen.get(pid, 0), status.get("VmHWM", 0))
            resident += status.get("VmRSS", 0)
        together = max(together, resident)
        time.sleep(INTERVAL_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    own = seen.pop(process.pid)
    return {
        "seconds": time.perf_counter() - start,
        "processes": len(seen),
        "parent_bytes": own,
        "worker_bytes": max(seen.values(), default=own),
        "together_bytes": together,
    }


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS")))
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in fields}
