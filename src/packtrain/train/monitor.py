"""Decides what a run reports: lines of metrics.jsonl, optional trackers, and a record for the progress display."""

import math
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from packtrain.config.run import RunConfig
from packtrain.config.runs import LogConfig
from packtrain.plan.parameters import flops_per_token
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import JsonLines, rewind_metrics
from packtrain.train.device import peak_rate
from packtrain.train.step import Placement, StepResult
from packtrain.train.trackers import Trackers

Record = dict[str, Any]


@dataclass
class Monitor:
    """Collects what the steps did. Only the main rank has a metrics file and trackers; they are None on the others."""

    config: LogConfig
    device: torch.device
    metrics: JsonLines | None
    trackers: Trackers | None
    flops_per_token: float
    peak_flops: float | None
    on_step: Callable[[Record], None] | None = None
    on_event: Callable[[Record], None] | None = None

    def __post_init__(self) -> None:
        self._start_window()

    def after_step(
        self, step: int, result: StepResult, *, lr: float, tokens: int, new_tokens: int, step_s: float
    ) -> None:
        """Adds one step; writes a line if one is due. `tokens` counts all targets so far, `new_tokens` those of this step."""
        self._window_s += step_s
        self._window_tokens += new_tokens
        self._window_steps += 1
        record = self._record(step, result, lr, tokens)
        if self.on_step is not None:
            self.on_step(record)
        if step % self.config.every == 0:
            self._write(record)
            self._start_window()

    def after_validation(self, step: int, record: Record) -> None:
        """Writes a validation line, with the values that `Validator.validate` gives."""
        line = {"step": step, **record}
        if self.on_step is not None:
            self.on_step(line)
        self._write(line)

    def after_samples(self, step: int, samples: list[dict[str, str]]) -> None:
        """Tells what the model wrote; the file in samples/ is written already."""
        if self.on_event is not None:
            self.on_event({"event": "sampled", "step": step, "samples": samples})

    def rewind(self, step: int) -> None:
        """Removes the lines after `step`, from which the run continues."""
        self._start_window()
        if self.metrics is not None:
            self.metrics.close()
            rewind_metrics(self.metrics.path, step)
            self.metrics = JsonLines(self.metrics.path)

    def sync(self) -> None:
        """Waits until every line so far is on disk: a checkpoint must not be ahead of its metrics."""
        if self.metrics is not None:
            self.metrics.sync()

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()
        if self.trackers is not None:
            self.trackers.close()

    def _start_window(self) -> None:
        self._window_s, self._window_tokens, self._window_steps = 0.0, 0, 0

    def _record(self, step: int, result: StepResult, lr: float, tokens: int) -> Record:
        tokens_per_s = self._window_tokens / self._window_s if self._window_s else math.nan
        record = {
            "step": step,
            "tokens": tokens,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": round(tokens_per_s, 1),
            "step_s": round(self._window_s / self._window_steps, 6),
            "memory_bytes": peak_memory_bytes(self.device),
        }
        if self.peak_flops:
            record["mfu"] = round(tokens_per_s * self.flops_per_token / self.peak_flops, 4)
        return record

    def _write(self, record: Record) -> None:
        if self.metrics is not None:
            self.metrics.append(record)
        if self.trackers is not None:
            self.trackers.log(record)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: of the allocator on CUDA, of the process (resident set) elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def open_monitor(
    config: RunConfig,
    placement: Placement,
    layout: RunLayout,
    on_step: Callable[[Record], None] | None,
    on_event: Callable[[Record], None] | None = None,
) -> Monitor:
    """A rank's monitor; the main rank's appends to the run's files and calls `on_step` and `on_event`."""
    is_main = placement.ranks.is_main
    return Monitor(
        config.log,
        device=placement.device,
        metrics=JsonLines(layout.metrics) if is_main else None,
        trackers=Trackers(config, layout) if is_main else None,
        flops_per_token=flops_per_token(config.model, config.data.seq_len),
        peak_flops=peak_rate(placement.device, placement.precision, placement.ranks.world_size),
        on_step=on_step if is_main else None,
        on_event=on_event if is_main else None,
    )
