"""Decides how `packtrain plan --after RUN` sets what was planned for a run beside what it did."""

from pathlib import Path
from typing import Any

from packtrain.cli import screen
from packtrain.cli.figures import duration
from packtrain.errors import RunError


def compare_run(folder: Path, probe: bool | None) -> dict[str, Any]:
    """What `plan.after` makes of a run's files. Measures this machine's rate if the run was on it.

    Raises RunError if the folder has no run, or one that has not taken a step.
    """
    from packtrain.cli.rate import find_rate
    from packtrain.model.cpu.name import cpu_name
    from packtrain.plan.after import compare_with_plan, measure_metrics
    from packtrain.runs.layout import find_run, load_config
    from packtrain.runs.metrics import read_events, read_metrics

    layout = find_run(folder)
    config, metrics, events = load_config(layout), read_metrics(layout.metrics), read_events(layout.events)
    if not any("loss" in line for line in metrics):
        raise RunError(
            f"{folder} has no metrics of a step yet, so there is nothing to set beside the plan; wait for its first line "
            f"(log.every={config.log.every} steps)"
        )
    manifest = _read_manifest(layout.manifest)
    hardware = manifest.get("hardware", {})
    is_here = hardware.get("device_type") != "cpu" or hardware.get("device") == cpu_name()
    is_alone = hardware.get("world_size", 1) == 1
    rate = find_rate(config, probe) if is_here and is_alone else None
    return {"run": str(folder), **compare_with_plan(config, manifest, measure_metrics(metrics), events, rate)}


def show_comparison(outcome: dict[str, Any]) -> None:
    """Prints a line for each of memory, rate and hours, and what the estimates follow from."""
    table = screen.table("", "estimated", "measured", "measured / estimated")
    for name, label, shown in (
        ("memory_bytes", "memory", lambda value: f"{value / 1e9:.2f} GB"),
        ("tokens_per_s", "tokens/s", lambda value: f"{value:,.0f}"),
        ("hours", "time", duration),
    ):
        row = outcome[name]
        cells = ["unknown" if row[key] is None else shown(row[key]) for key in ("estimated", "measured")]
        table.add_row(label, *cells, "" if row["ratio"] is None else f"{row['ratio']:.2f}")
    screen.console.print(
        f"{outcome['run']}: {outcome['steps']:,} steps on {outcome['device'] or 'an unknown device'}, {outcome['precision']}",
        soft_wrap=True,
        markup=False,
    )
    screen.console.print(table)
    screen.console.print(_ORIGINS[outcome["rate_from"]], style="dim")


_ORIGINS = {
    "probe": "estimated: memory is computed, and the rate is that of a few steps on this machine now (measured)",
    "assumed MFU": "estimated: memory is computed, and the rate is 40% of the device's peak (assumed)",
    None: "estimated: memory is computed; no rate is known of the machine that the run was on",
}


def _read_manifest(path: Path) -> dict[str, Any]:
    from packtrain.storage.json_file import read_json

    found = read_json(path, lambda reason: RunError(f"{path} cannot be read ({reason}); restore a copy of it"))
    if not isinstance(found, dict) or not isinstance(found.get("hardware", {}), dict):
        raise RunError(f"{path} is not the manifest of a run; restore a copy of it")
    return found
