"""Runs each benchmark with small settings, in minutes; each takes more options (`python -m benchmarks.step -h`)."""

import subprocess
import sys

SMALL = {
    "startup": ["--rounds", "3"],
    "loader": ["--rounds", "2", "--tokens", "5e6", "--documents", "20000"],
    "prepare": ["--megabytes", "8"],
    "dedup": ["--documents", "1e6"],
    "memory": ["llama2-15m", "train.micro_batch_size=4", "train.activation_gb=0.02"],
    "ladder": ["demo", "train.steps=200"],
    "plan": ["--cells", "demo, 8 rows, muon", "--rounds", "1"],
    "curves": ["--seeds", "1", "--steps", "40", "--hidden", "32"],
    "checkpoint": ["--shape", "15m"],
    "serve": ["--shape", "15m", "--rounds", "2", "--requests", "200"],
    "step": ["--shape", "15m", "--rounds", "2", "--steps", "3"],
    "evaluate": ["--shape", "15m", "--rounds", "2"],
}

if __name__ == "__main__":
    for name, options in SMALL.items():
        print(f"\n{name} {' '.join(options)}", flush=True)
        # One process each, so that what one leaves in memory does not count for another's peak.
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=True)
