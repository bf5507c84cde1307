"""Decides what a line of results is, which runs are the same experiment, and how lines are kept."""

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "results" / "learn.jsonl"


def name_experiment(what: dict[str, Any]) -> str:
    """A hash of everything that decides the figures but the seed and the version of the code."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of results; of the same experiment the last only. Raises ConfigError for a line that is not one."""
    from packtrain.errors import ConfigError

    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(file.read_text().splitlines() if file.is_file() else [], start=1):
        try:
            line = json.loads(text)
            experiment = line["experiment"]
            assert {"name", "corpus", "tokens", "runs", "mean"} <= line.keys()
        except (ValueError, KeyError, TypeError, AssertionError):
            raise ConfigError(f"line {number} of {file} is not a result of this benchmark; remove it") from None
        found.pop(experiment, None)
        found[experiment] = line
    return list(found.values())


def append_line(file: Path, line: dict[str, Any]) -> None:
    """Adds a line in one write, so that two processes may share the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def describe_runs(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and what a run took on average. A seed that diverged leaves no mean."""
    failed = [run for run in runs if "failed" in run]
    if failed:
        return {"mean": None, "spread": None, "failed": f"seed {failed[0]['seed']}: {failed[0]['failed']}"}
    bits = [run["bits_per_byte"] for run in runs]
    curves = [run["curve"] for run in runs]
    processor = _mean([run["processor_s"] for run in runs])
    minutes = _mean([run["processor_s"] and run["processor_s"] / run["threads"] / 60 for run in runs])
    wall = _mean([run["wall_s"] for run in runs])
    return {
        "bits_per_byte": bits,
        "mean": round(statistics.mean(bits), 5),
        "spread": round(statistics.stdev(bits), 5) if len(bits) > 1 else None,
        "loss": round(statistics.mean(run["loss"] for run in runs), 5),
        "curve": [
            [points[0][0], round(statistics.mean(point[1] for point in points), 5)]
            for points in zip(*curves, strict=False)
            if len({point[0] for point in points}) == 1
        ],
        "processor_s": processor and round(processor, 2),
        "minutes": minutes and round(minutes, 3),
        "wall_s": wall and round(wall, 2),
        "tokens_per_s": wall and round(runs[0]["tokens"] / wall, 1),
        "skipped_steps": sum(run["skipped_steps"] for run in runs),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Their mean; None if nobody measured any of them. A run of another origin may have none."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def describe_place() -> dict[str, Any]:
    """The machine, the versions, the day and the commit."""
    from packtrain.runs.manifest import hardware, read_git_commit, versions
    from packtrain.train.device import resolve_device

    known = hardware(resolve_device("auto"))
    return {
        "machine": {key: known[key] for key in ("device", "cores", "threads", "platform")},
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": read_git_commit(),
    }
