"""Decides how a call is timed on a device that computes behind the program's back."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, from an idle device until it is idle again."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def seconds_of_kernel(call: Callable[[], Any], device: torch.device, calls: int = 10, rounds: int = 5) -> float:
    """Seconds of a call, the median of `rounds`, each of `calls` in a row so that starting them costs nothing; after a first
    round that compiles. On a CPU each round has one call."""
    calls = calls if device.type == "cuda" else 1

    def repeat() -> None:
        for _ in range(calls):
            call()

    repeat()
    return statistics.median(seconds(repeat, device) for _ in range(rounds)) / calls
