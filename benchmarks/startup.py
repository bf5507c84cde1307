"""Seconds and peak memory of short commands, which are mostly start-up; medians.

python -m benchmarks.startup --json startup.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = (("--help",), ("config", "llama2-437m"), ("plan", "llama2-437m"), ("doctor",))


def measure(words: tuple[str, ...]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one run of `packtrain`, from the start of Python."""
    command = [sys.executable, "-m", "packtrain", *words]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    # wait4 has reaped the process, so Popen must not wait for it again.
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, words
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs = [[measure(words) for words in COMMANDS] for _ in range(options.rounds)]
    results = []
    for index, words in enumerate(COMMANDS):
        seconds = statistics.median(run[index][0] for run in runs)
        peak = statistics.median(run[index][1] for run in runs)
        results.append({"command": " ".join(words), "seconds": seconds, "peak_bytes": peak})
        print(f"packtrain {' '.join(words):<20} {seconds:.2f} s   {peak / 1e6:,.0f} MB")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
