"""Runs one contender: for each line of standard input, takes a step and prints a line of figures.

    python -m benchmarks.contenders NAME SHAPE

SHAPE is JSON: the model's sizes under Hugging Face's names, `rows`, `seq_len`, `optimizer` and its settings, `grad_clip`,
`threads`, `device`, `precision`; here the device is the CPU. Runs in the contender's own environment.
"""

import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Build the contender, then take a step for each line of input."""
    name, shape = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(shape["threads"])
    tokens = torch.randint(
        shape["vocab_size"], (shape["rows"], shape["seq_len"] + 1), generator=torch.Generator().manual_seed(0)
    )
    # Standard output is for figures only.
    with contextlib.redirect_stdout(sys.stderr):
        step = importlib.import_module(f"benchmarks.contenders.{name}").build(shape, tokens)
    for _ in sys.stdin:
        start, processor_start = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            loss = step()
        figures: dict[str, Any] = {
            "seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time() - processor_start,
            "loss": loss,
            "peak_bytes": _peak_bytes(),
        }
        print(json.dumps(figures), flush=True)


def _peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
