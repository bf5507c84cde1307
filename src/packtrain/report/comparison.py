"""Decides how two runs differ: in settings, data, machine and results."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packtrain.report.collect import RunRecord, collect, differing_settings
from packtrain.report.held_out import has_same_tokens, validated_on
from packtrain.report.numbers import number
from packtrain.runs.status import read_status


@dataclass(frozen=True)
class RunResults:
    """What a run reached; None for what its files do not say."""

    state: str
    step: int | None
    steps: int | None
    tokens: int | None
    loss: float | None
    """Of the last logged step, in nats per token."""
    val_loss: float | None
    """Of the last validation, in nats per token."""
    val_bpb: float | None
    """Of the last validation, in bits per byte."""
    best_bpb: float | None
    """The lowest bits per byte of any validation."""
    best_step: int | None
    train_s: float | None
    """Seconds spent in steps, as logged."""
    tokens_per_s: float | None
    """Over all logged steps."""
    parameters: int | None


@dataclass(frozen=True)
class RunDifference:
    """How two runs differ."""

    settings: dict[str, tuple[Any, Any]]
    """Those that differ, by key; None for one that is unset."""
    results: tuple[RunResults, RunResults]
    same_data: bool | None
    """Whether both were trained on the same datasets; None if a manifest does not say."""
    same_held_out: bool | None
    """Whether their validation losses are of the same text; None if that is unknown."""
    at_same_tokens: tuple[int, float, float] | None
    """The most tokens after which both were validated, and bits per byte of each there."""
    machine: dict[str, tuple[Any, Any]]
    """Versions and hardware that differ."""
    missing: tuple[list[str], list[str]]
    """What the files of each lack."""

    def as_tree(self) -> dict[str, Any]:
        """For JSON: `equal` says whether settings and data are the same."""
        return {"equal": not self.settings and self.same_data is True, **asdict(self)}


def compare_runs(first: Path, second: Path) -> RunDifference:
    """How two runs differ. Raises RunError if a folder is not a run; whatever else is missing or broken is only listed."""
    records = (collect(first), collect(second))
    a, b = records
    same_data = _compare_data(a.manifest, b.manifest)
    texts = [validated_on(record).identity for record in records]
    held_out = None if None in texts else texts[0] == texts[1]
    return RunDifference(
        settings={key: (values[0], values[1]) for key, values in differing_settings(list(records))},
        results=(_results(a), _results(b)),
        same_data=same_data,
        same_held_out=held_out,
        at_same_tokens=_find_same_tokens(a, b) if held_out and has_same_tokens(records) else None,
        machine=_compare_machines(a, b),
        missing=(_list_missing(a), _list_missing(b)),
    )


def _list_missing(record: RunRecord) -> list[str]:
    """What is wrong with the files of a run; that it has not been evaluated is nothing wrong."""
    return [sentence for sentence in record.missing if "has not been evaluated yet" not in sentence]


def _results(record: RunRecord) -> RunResults:
    status = read_status(record.folder)
    validated = [line for line in record.validation if math.isfinite(number(line.get("val_bpb")))]
    best = min(validated, key=lambda line: number(line["val_bpb"]), default=None)
    train_s, tokens = _time_of(record)
    parameters = record.manifest.get("parameters")
    return RunResults(
        state=status.state,
        step=status.step,
        steps=status.steps,
        tokens=status.tokens,
        loss=status.loss,
        val_loss=status.val_loss,
        val_bpb=status.val_bpb,
        best_bpb=None if best is None else number(best["val_bpb"]),
        best_step=None if best is None else int(best["step"]),
        train_s=train_s,
        tokens_per_s=tokens / train_s if train_s else None,
        parameters=parameters if isinstance(parameters, int) else None,
    )


def _time_of(record: RunRecord) -> tuple[float | None, float]:
    """Seconds of all logged steps, and their tokens: each line gives the mean time of the steps since the one before."""
    import numpy as np

    taken = record.column("step_s") * np.diff(record.column("step"), prepend=0)
    # One after the other: another order of adding would change the last digit.
    seconds = float(np.cumsum(taken[np.isfinite(taken)])[-1:].sum())
    tokens = float(record.column("tokens")[-1:].sum())
    return (seconds or None), (tokens if math.isfinite(tokens) else 0.0)


def _find_same_tokens(a: RunRecord, b: RunRecord) -> tuple[int, float, float] | None:
    found: list[dict[int, float]] = []
    for record in (a, b):
        tokens_of = record.tokens_at([line["step"] for line in record.validation]).round().tolist()
        bits = [number(line.get("val_bpb")) for line in record.validation]
        found.append(dict(zip(map(int, tokens_of), bits, strict=True)))
    common = [tokens for tokens in found[0].keys() & found[1].keys() if all(math.isfinite(f[tokens]) for f in found)]
    return (max(common), found[0][max(common)], found[1][max(common)]) if common else None


def _compare_data(a: dict[str, Any], b: dict[str, Any]) -> bool | None:
    hashes = [m["dataset"].get("hash") if isinstance(m.get("dataset"), dict) else None for m in (a, b)]
    return None if None in hashes else hashes[0] == hashes[1]


def _compare_machines(a: RunRecord, b: RunRecord) -> dict[str, tuple[Any, Any]]:
    found = []
    for record in (a, b):
        facts: dict[str, Any] = {}
        for part in ("versions", "hardware"):
            table = record.manifest.get(part)
            facts |= {f"{part}.{key}": value for key, value in table.items()} if isinstance(table, dict) else {}
        facts["git_commit"] = record.manifest.get("git_commit")
        found.append(facts)
    keys = dict.fromkeys([*found[0], *found[1]])
    return {key: (found[0].get(key), found[1].get(key)) for key in keys if found[0].get(key) != found[1].get(key)}
