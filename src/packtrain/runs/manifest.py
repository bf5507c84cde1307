"""Decides what a run remembers of the machine, the versions and the dataset it was trained with."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

import packtrain

_LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "bitsandbytes", "torchao")


def describe_run(
    *, device: torch.device, dataset: dict[str, Any], num_parameters: int, num_steps: int, world_size: int
) -> dict[str, Any]:
    """The content of a run's manifest.json: versions, hardware, dataset, parameters, steps, git commit and command."""
    return {
        "created": time.time(),
        "command": sys.argv,
        "versions": versions(),
        "hardware": {**hardware(device), "world_size": world_size},
        "git_commit": git_commit(),
        "dataset": dataset,
        "parameters": num_parameters,
        "steps": num_steps,
    }


def versions() -> dict[str, str]:
    """Versions of packtrain, Python and the libraries that decide numbers, as installed."""
    found = {"packtrain": packtrain.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The device in words, its memory in bytes, and the machine around it."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "device_type": device.type,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else psutil.virtual_memory().total,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """Commit of the code in the current folder, with `-dirty` for uncommitted changes; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return None
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
