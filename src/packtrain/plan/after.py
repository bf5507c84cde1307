"""Decides how a run compares with what is planned for it: memory, tokens per second and hours, estimated and measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from packtrain.config.run import RunConfig
from packtrain.plan.activations import PrecisionName
from packtrain.plan.cost import ASSUMED_MFU, hours_of
from packtrain.plan.devices import peak_flops
from packtrain.plan.memory import PROCESS_BYTES_ELSEWHERE, needed_bytes
from packtrain.plan.parameters import flops_per_token

# What begins a stretch of a run, in events.jsonl.
_STARTS = ("started", "resumed")


@dataclass(frozen=True)
class Measured:
    """What the steps of a run took, by its metrics."""

    steps: int
    tokens: int
    """Of the lines that have a rate."""
    tokens_per_s: float | None
    """Over all steps together."""
    memory_bytes: int | None
    """The most of any line."""


def measure_metrics(metrics: Iterable[dict[str, Any]]) -> Measured:
    """What the lines of metrics.jsonl say. Each speaks for the steps since the last."""
    lines = [line for line in metrics if isinstance(line.get("loss"), int | float) and line.get("tokens")]
    seconds, tokens = 0.0, 0
    for line in lines:
        if (line.get("tokens_per_s") or 0) > 0:
            seconds += (line["tokens"] - tokens) / line["tokens_per_s"]
            tokens = line["tokens"]
    memory = max((line.get("memory_bytes") or 0 for line in lines), default=0) or None
    return Measured(lines[-1]["step"] if lines else 0, tokens, tokens / seconds if seconds > 0 else None, memory)


def compare_with_plan(
    config: RunConfig,
    manifest: dict[str, Any],
    measured: Measured,
    events: Sequence[dict[str, Any]] = (),
    rate: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What was planned for a run and what it did, from its configuration, manifest, metrics and events.

    `memory_bytes`, `tokens_per_s` and `hours` each have `estimated`, `measured` and `ratio` (measured over estimated); any of
    them is None if it is not known. Memory is that of the main process, or of its GPU's allocator. Hours are those of the steps
    done so far, with their validations; measured, those of the clock while the run was at work, if `events` are given.

    `rate` is what a probe measured (`plan.rates.read_rate`), and counts only if it is of the machine that the run was on. A GPU
    without one counts at an assumed MFU. `rate_from` says which: `probe`, `assumed MFU` or None. `steps` is how many are done.
    """
    hardware = manifest.get("hardware", {})
    device_type, world_size = hardware.get("device_type", "cpu"), hardware.get("world_size", 1)
    known = rate if rate is not None and is_of(rate, manifest) else None
    precision = _precision(config, known, device_type)
    estimated_rate, origin = _estimate_rate(config, known, hardware, world_size)
    return {
        "device": hardware.get("device"),
        "precision": precision,
        "rate_from": origin,
        "steps": measured.steps,
        "memory_bytes": _set_beside(
            _estimate_memory(config, precision, device_type, world_size),
            measured.memory_bytes,
        ),
        "tokens_per_s": _set_beside(estimated_rate, measured.tokens_per_s),
        "hours": _set_beside(
            hours_of(config, measured.tokens, estimated_rate)["hours"], _measure_hours(events) if events else None
        ),
    }


def is_of(rate: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Whether a probe's rate is of the machine that a run was on, and of one process as the run was."""
    hardware = manifest.get("hardware", {})
    same = all(rate.get(key) == hardware.get(key) for key in ("device", "device_type", "cores", "threads"))
    return same and hardware.get("world_size", 1) == 1


def _set_beside(estimated: float | None, measured: float | None) -> dict[str, float | None]:
    ratio = measured / estimated if measured and estimated else None
    return {"estimated": estimated, "measured": measured, "ratio": ratio}


def _precision(config: RunConfig, rate: dict[str, Any] | None, device_type: str) -> PrecisionName:
    if rate is not None:
        name: PrecisionName = rate["precision"]
        return name
    wanted = config.train.precision
    return wanted if wanted != "auto" else "fp32" if device_type == "cpu" else "bf16"


def _estimate_memory(config: RunConfig, precision: PrecisionName, device_type: str, world_size: int) -> int | None:
    rows = max(1, min(config.rows_per_pass, config.rows_per_step // world_size))
    shards = (config.parallel.shard_size or world_size) if config.parallel.mode == "fsdp" else 1
    if world_size > 1:
        config = config.model_copy(update={"parallel": config.parallel.model_copy(update={"lanes": 1})})
    accumulates = rows * world_size < config.rows_per_step
    needed = needed_bytes(config, rows, precision, device_type, accumulates=accumulates, num_shards=shards)
    if needed is None or device_type == "cpu":
        return needed
    # A GPU's metrics are those of the allocator alone.
    return needed - PROCESS_BYTES_ELSEWHERE


def _estimate_rate(
    config: RunConfig, rate: dict[str, Any] | None, hardware: dict[str, Any], world_size: int
) -> tuple[float | None, str | None]:
    if rate is not None:
        return rate["tokens_per_s"], "probe"
    peak = peak_flops(str(hardware.get("device"))) if hardware.get("device_type") == "cuda" else None
    if peak is None:
        return None, None
    return peak * ASSUMED_MFU * world_size / flops_per_token(config.model, config.data.seq_len), "assumed MFU"


def _measure_hours(events: Sequence[dict[str, Any]]) -> float | None:
    """Hours between the first and last event of each stretch of the run."""
    seconds, began, last = 0.0, None, None
    for event in events:
        at = event.get("time")
        if not isinstance(at, int | float):
            continue
        if event.get("event") in _STARTS:
            seconds += last - began if began is not None and last is not None else 0.0
            began = at
        last = at
    seconds += last - began if began is not None and last is not None else 0.0
    return seconds / 3600 or None
