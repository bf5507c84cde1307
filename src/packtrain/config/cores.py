"""Decides how many cores there are to use."""

import os


def count_cores() -> int:
    """Cores that this process may use, which a container or `taskset` may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
