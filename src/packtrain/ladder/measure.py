"""Decides how fast this machine trains a model of the ladder: by a few steps of the training itself."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.ladder.family import largest_divisor
from packtrain.train.device import resolve_device
from packtrain.train.run import train

_STEPS, _WARM_STEPS = 6, 2
_MOST_TOKENS = 4096


class RateMeter:
    """Measures seconds per token of models, each once, and remembers them.

    On a CPU, processor seconds over threads: other programs slow the clock on the wall, but not this one, so that they do not
    spoil the division of the budget. `slowdown` says by how much they did while it measured.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[ModelConfig, int], float] = {}
        self._wall, self._busy = 0.0, 0.0

    @property
    def slowdown(self) -> float:
        """Seconds on the wall for each second of this machine when it is idle; 1 before anything is measured."""
        return max(1.0, self._wall / self._busy) if self._busy else 1.0

    def __call__(self, config: RunConfig) -> float:
        """Seconds per token of a training step of `config`, as on an idle machine."""
        rows = max(1, min(config.rows_per_step, _MOST_TOKENS // config.data.seq_len))
        key = (config.model, rows)
        if key not in self._known:
            self._known[key] = self._measure(config, rows)
        return self._known[key]

    def _measure(self, config: RunConfig, rows: int) -> float:
        marks: list[tuple[float, float]] = []

        def on_step(_: dict[str, Any]) -> None:
            marks.append((time.perf_counter(), time.process_time() / torch.get_num_threads()))

        with tempfile.TemporaryDirectory(prefix="packtrain-ladder-") as scratch:
            train(_probe(config, rows), Path(scratch) / "run", resume=False, on_step=on_step)
        (wall, busy), (last_wall, last_busy) = marks[_WARM_STEPS - 1], marks[-1]
        seconds = last_wall - wall
        on_cpu = resolve_device(config.train.device).type == "cpu"
        spent = min(seconds, last_busy - busy) if on_cpu else seconds
        self._wall, self._busy = self._wall + seconds, self._busy + spent
        return max(spent, 1e-9) / ((_STEPS - _WARM_STEPS) * rows * config.data.seq_len)


def _probe(config: RunConfig, rows: int) -> RunConfig:
    changed = config.model_dump()
    changed["train"] |= {
        "steps": _STEPS,
        "global_batch_tokens": rows * config.data.seq_len,
        "micro_batch_size": largest_divisor(rows, config.rows_per_pass),
    }
    changed["schedule"] |= {"warmup_steps": 1}
    changed["evaluate"] |= {"every": 0}
    changed["checkpoint"] |= {"every": 0}
    changed["log"] |= {"every": 1}
    changed["track"] = {key: False if value is True else value for key, value in changed["track"].items()}
    changed["data"] |= {"verify": "none"}
    return RunConfig.model_validate(changed)
