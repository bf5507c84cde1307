"""Decides what a report knows about a run: it reads the files that are there, complete or not, and says what is missing."""

import logging
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packtrain.config.load import flatten, from_toml
from packtrain.config.run import RunConfig
from packtrain.errors import CheckpointError, ConfigError
from packtrain.report.lines import parse_object
from packtrain.report.metrics_lines import TrainingLines
from packtrain.report.numbers import number
from packtrain.report.tail import LogReader
from packtrain.runs.configuration import describe_edits, find_edits, read_made_by
from packtrain.runs.layout import RunLayout, find_run
from packtrain.runs.logs import find_gaps
from packtrain.storage.json_file import describe_os_error
from packtrain.storage.regular import is_regular

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger("packtrain")

_MAX_SAMPLE_CHARS = 4000


@dataclass(frozen=True)
class Setting:
    """A value of the configuration, and its default if that is known."""

    key: str
    value: Any
    default: Any
    is_changed: bool


@dataclass(frozen=True)
class Continuation:
    """What the model wrote at a step."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class RunRecord:
    """Everything that the files of a run say. If a file is missing, its list or dict is empty and `missing` says so."""

    folder: Path
    name: str
    settings: list[Setting]
    manifest: dict[str, Any]
    training: TrainingLines
    validation: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[Continuation]
    evaluation: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    """Every evaluation that was kept, on text and in tasks, by step."""

    def setting(self, key: str) -> Any:
        """A value of the configuration by dotted key; None if it is unset or unknown."""
        return next((s.value for s in self.settings if s.key == key), None)

    @property
    def last_step(self) -> int:
        """The last step in metrics.jsonl; 0 if there is none."""
        return max([self.training.last_step, *(int(line["step"]) for line in self.validation[-1:])])

    @property
    def planned_steps(self) -> int | None:
        """Steps that the configuration sets or, for epochs, that the last start or the manifest gives; None if none says."""
        steps, tokens, batch = (self.setting(f"train.{k}") for k in ("steps", "tokens", "global_batch_tokens"))
        if steps is None and tokens is not None and batch:
            return int(tokens) // int(batch)
        if steps is None:
            starts = (e.get("steps") for e in reversed(self.events) if e.get("event") in ("started", "resumed"))
            steps = next(starts, None) or self.manifest.get("steps")
        return None if steps is None else int(number(steps)) if math.isfinite(number(steps)) else None

    def column(self, name: str) -> "np.ndarray":
        """A column of the training lines, float64[lines]; NaN for a line that lacks it or has no number there."""
        return self.training.column(name)

    def tokens_at(self, steps: "Sequence[int] | np.ndarray") -> "np.ndarray":
        """Training tokens seen by each of `steps`, float64[steps], in proportion to the nearest line that counts tokens."""
        import numpy as np

        asked = np.asarray(steps, dtype=np.float64)
        at, tokens = self.column("step"), self.column("tokens")
        is_known = np.isfinite(tokens) & (tokens > 0) & (at > 0)
        if not is_known.any():
            batch = number(self.setting("train.global_batch_tokens"))
            return asked * (batch if math.isfinite(batch) else 0.0)
        at, tokens = at[is_known], tokens[is_known]
        after = np.searchsorted(at, asked).clip(0, len(at) - 1)
        before = (after - 1).clip(0)
        nearest = np.where(np.abs(at[before] - asked) <= np.abs(at[after] - asked), before, after)
        return np.asarray(tokens[nearest] * asked / at[nearest])


def collect(folder: Path, reader: LogReader | None = None) -> RunRecord:
    """Reads a run directory. Raises RunError if `folder` is not a run; anything else missing or broken is only listed.

    With the `reader` of the last time, only new lines of the logs are read.
    """
    layout = find_run(folder)
    missing: list[str] = []
    reader = reader or LogReader()
    lines = reader.read_metrics(layout.metrics, missing)
    training, validation = lines.training, lines.validation
    if not training:
        missing.append("No training step has been logged yet.")
    if not validation:
        missing.append("No validation has been run yet.")
    events = reader.read(layout.events, missing)
    told = _describe_gaps(layout, events, reader)
    settings = _read_settings(layout, missing, told)
    for sentence in told:
        _log.warning("%s: %s", folder, sentence)
    missing += told
    samples = _read_samples(layout, reader, missing)
    evaluation = _read_object(layout.evaluation, missing)
    if not evaluation and not layout.evaluation.exists():
        missing.append("The run has not been evaluated yet; `packtrain evaluate` adds yardsticks to compare with.")
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        settings=settings,
        manifest=_read_object(layout.manifest, missing, needed="The run has no manifest.json yet."),
        training=training,
        validation=validation,
        events=events,
        samples=samples,
        evaluation=evaluation,
        missing=missing,
        measured=_read_measured(layout, missing),
    )


def _describe_gaps(layout: RunLayout, events: list[dict[str, Any]], reader: LogReader) -> list[str]:
    """What metrics.jsonl, events.jsonl and manifest.json have lost: as noted when the run was resumed, and since its newest checkpoint."""
    noted = [f"{event.get('file')} {event.get('reason')}" for event in events if event.get("event") == "log_gap"]
    noted += reader.once_per_start(layout.folder, lambda: _find_lost(layout))
    return [f"{sentence}, so parts of this page may be missing." for sentence in dict.fromkeys(noted)]


def _find_lost(layout: RunLayout) -> list[str]:
    steps = layout.saved_steps()
    found = find_gaps(layout, layout.checkpoint(steps[-1]), steps[-1]) if steps else []
    return [f"{gap.file} {gap.reason}" for gap in found]


def differing_settings(records: list[RunRecord]) -> list[tuple[str, list[Any]]]:
    """Keys whose values differ between the runs, with the value in each (None: unset)."""
    keys = dict.fromkeys(s.key for record in records for s in record.settings)
    rows = [(key, [record.setting(key) for record in records]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _read_object(path: Path, missing: list[str], needed: str | None = None) -> dict[str, Any]:
    if not path.exists():
        if needed:
            missing.append(needed)
        return {}
    record = parse_object(_read_bytes(path, missing))
    if record is None:
        missing.append(f"{path.name} cannot be read: it is not a JSON object.")
    return record or {}


def _read_bytes(path: Path, missing: list[str]) -> bytes:
    """The bytes of a file; none of a file that is missing or cannot be read."""
    if not path.exists():
        return b""
    if not is_regular(path):
        missing.append(f"{path.name} cannot be read: it is not a plain file.")
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        missing.append(f"{path.name}: {describe_os_error(error)}.")
        return b""


def _read_samples(layout: RunLayout, reader: LogReader, missing: list[str]) -> list[Continuation]:
    if not layout.samples.is_dir():
        return []
    samples = []
    for path in sorted(layout.samples.glob("step-*.jsonl")):
        digits = path.stem.removeprefix("step-")
        if not digits.isdecimal():
            continue
        for line in reader.read(path, missing):
            prompt, text = str(line.get("prompt", "")), str(line.get("text", ""))
            samples.append(Continuation(int(digits), prompt, text[:_MAX_SAMPLE_CHARS]))
    return samples


def _read_measured(layout: RunLayout, missing: list[str]) -> list[dict[str, Any]]:
    return [_read_object(path, missing) for path in sorted(layout.evaluations.glob("step-*/*.json"))]


def _read_settings(layout: RunLayout, missing: list[str], told: list[str]) -> list[Setting]:
    """The settings that made the newest checkpoint or, without one, those of config.toml."""
    text = _read_bytes(layout.config, missing).decode("utf-8", errors="replace")
    try:
        current = from_toml(RunConfig, text, layout.config.name)
        config = dict(flatten(_made_by(layout, current, told)))
    except ConfigError as error:
        # A run of another version of packtrain still gets its report.
        told.append(f"Changed settings are not marked, as this version of packtrain cannot read them: {error}.")
        try:
            return [Setting(key, value, None, False) for key, value in _leaves(tomllib.loads(text))]
        except (tomllib.TOMLDecodeError, RecursionError):
            return []
    defaults = dict(flatten(RunConfig()))
    # A section that is unset by default has no defaults to compare with.
    return [Setting(key, value, defaults.get(key), value != defaults.get(key)) for key, value in config.items()]


def _made_by(layout: RunLayout, current: RunConfig, told: list[str]) -> RunConfig:
    """The configuration of the newest checkpoint that has one, unless a resumed run has changed settings itself."""
    for step in reversed(layout.saved_steps()):
        try:
            made_by = read_made_by(layout.checkpoint(step))
        except CheckpointError:
            continue
        if made_by is None:
            break
        if not (edits := find_edits(layout, made_by, current)):
            return current
        told.append(f"{describe_edits(layout, edits)}.")
        return made_by
    return current


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in tree.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return leaves
