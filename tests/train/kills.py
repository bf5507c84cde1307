"""Run by `test_kills`: runs that are killed at random moments and resumed by the same call end like an uninterrupted run.

Each attempt is a fork of this process, which has imported everything and computed nothing, so that an attempt costs
what training costs. `python -m tests.train.kills DATASET FOLDER NUM_KILLS SEED [key=value ...]` prints where the kills hit.
"""

import collections
import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from packtrain.config.load import load_run_config
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.conftest import TINY
from tests.train.test_resume import final_state

KILLS_PER_RUN = 5


def main(dataset: str, folder: Path, num_kills: int, seed: int, settings: list[str]) -> None:
    config = load_run_config("demo", [*TINY, f"data.dataset={dataset}", *settings]).config
    whole = folder / "whole"
    loaded = folder / "modules"
    assert end(start_attempt(config, whole, loaded)) == 0
    for name in loaded.read_text().split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    start = time.monotonic()
    assert end(start_attempt(config, folder / "again")) == 0
    seconds = time.monotonic() - start
    expected = final_state(whole)
    moments = random.Random(seed)
    hits: collections.Counter[str] = collections.Counter()
    run = 0
    while sum(hits.values()) < num_kills:
        run += 1
        parts = folder / f"run-{run}"
        for _ in range(KILLS_PER_RUN):
            child = start_attempt(config, parts)
            # Some before the first step, the others anywhere.
            time.sleep(moments.uniform(0, seconds * moments.choice([0.1, 0.8, 0.8])))
            if os.waitpid(child, os.WNOHANG)[0]:
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            hits[moment(parts, config)] += 1
        assert end(start_attempt(config, parts)) == 0, f"run {run} cannot be resumed"
        assert final_state(parts) == expected, f"run {run} ended differently"
    print(json.dumps({"kills": sum(hits.values()), "runs": run, "seconds_unbroken": round(seconds, 1), "in": hits}))


def start_attempt(config, folder: Path, loaded: Path | None = None) -> int:
    """The process id of a child that trains or resumes. At its end it writes the names of its modules to `loaded`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        train(config, folder, resume=True)
        if loaded is not None:
            loaded.write_text("\n".join(name for name in sys.modules if name.startswith("torch.")))
        code = 0
    finally:
        # Must not flush or close a second time what the parent has open.
        os._exit(code)


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def moment(folder: Path, config) -> str:
    """What a killed run was doing, as far as its folder shows."""
    layout = RunLayout(folder)
    events = read_jsonl(layout.events)
    if not events or events[-1]["event"] in ("started", "resumed"):
        lines = [line for line in read_jsonl(layout.metrics) if line["step"] > (events[-1]["step"] if events else 0)]
        if not lines:
            return "starting or the first step"
    if list(layout.checkpoints.glob(".step-*.tmp")):
        return "saving"
    lines = read_jsonl(layout.metrics)
    last = lines[-1]
    if "val_loss" not in last and last["step"] % config.evaluate.every == 0:
        return "evaluation"
    return "a step"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
