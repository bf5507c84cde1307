"""Decides how a report sets what was planned for a run beside what it did."""

from typing import Any

from packtrain.errors import PacktrainError
from packtrain.plan.after import Measured, compare_with_plan
from packtrain.plan.rates import read_rate
from packtrain.report import figures, sections
from packtrain.report.collect import RunRecord
from packtrain.report.markup import Markup, el
from packtrain.runs.layout import find_run, load_config

_ORIGINS = {
    "probe": "The rate is that of a few steps, which a probe timed on this machine.",
    "assumed MFU": "The rate is that of the device's peak at an assumed 40%.",
    None: "No rate was measured beforehand; `packtrain plan` does that on the machine of a run.",
}
_ROWS = (
    ("memory_bytes", "Memory", figures.size),
    ("tokens_per_s", "Tokens per second", figures.exact),
    ("hours", "Time so far", lambda hours: figures.duration(hours * 3600)),
)


def planned(record: RunRecord) -> Markup:
    """Memory, rate and time of a run, estimated and measured; without a step or a sound configuration, a sentence."""
    measured = _measure(record)
    if measured is None:
        return _section(el("p", "Nothing to set beside the plan yet.", class_="absent"))
    try:
        config = load_config(find_run(record.folder))
    except PacktrainError:
        return _section(el("p", "Without its configuration, nothing can be planned for this run.", class_="absent"))
    hardware = record.manifest.get("hardware")
    manifest = {"hardware": hardware if _is_sound(hardware) else {}}
    outcome = compare_with_plan(config, manifest, measured, record.events, read_rate(config))
    rows = []
    for key, label, shown in _ROWS:
        found = outcome[key]
        cells = ["unknown" if found[side] is None else shown(found[side]) for side in ("estimated", "measured")]
        rows.append((label, *cells, "" if found["ratio"] is None else f"{found['ratio']:.2f}"))
    head = ("", "Estimated", "Measured", "Measured / estimated")
    lead = f"Memory is computed from the shape of the run. {_ORIGINS[outcome['rate_from']]}"
    return _section(sections.table(head, rows, numbers=(1, 2, 3)), lead=lead)


def _section(*children: Markup, lead: str = "") -> Markup:
    return sections.section("plan", "Plan and run", *children, lead=lead)


def _measure(record: RunRecord) -> Measured | None:
    """As `plan.after.measure_metrics`, by whole columns, which may have anything in them; None without a step."""
    import numpy as np

    names = ("step", "tokens", "tokens_per_s", "memory_bytes")
    step, tokens, rate, memory = (np.nan_to_num(record.column(name), nan=0.0, posinf=0.0) for name in names)
    is_step = (step > 0) & (tokens > 0)
    if not is_step.any():
        return None
    told = is_step & (rate > 0)
    seconds = float((np.diff(tokens[told], prepend=0.0) / rate[told]).sum())
    total = int(tokens[told][-1]) if told.any() else 0
    most = int(memory[is_step].max())
    return Measured(int(step[is_step][-1]), total, total / seconds if seconds > 0 else None, max(0, most) or None)


def _is_sound(hardware: Any) -> bool:
    """Whether a manifest says what its machine was, in values of the right kinds."""
    if not isinstance(hardware, dict):
        return False
    world_size, kind = hardware.get("world_size", 1), hardware.get("device_type", "cpu")
    return type(world_size) is int and 0 < world_size < 1_000_000 and isinstance(kind, str)
