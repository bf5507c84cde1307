"""Decides whether a folder can be this run's: a new one is empty, one to resume holds the same run, data and checkpoints."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from packtrain.config.load import to_toml
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import CheckpointError, DatasetError, RunError
from packtrain.plan.parameters import num_parameters
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.configuration import changes, config_of
from packtrain.runs.layout import RunLayout, load_config, write_json
from packtrain.runs.logs import find_gaps
from packtrain.runs.manifest import describe_run, describe_sources, hardware, versions
from packtrain.runs.metrics import Events, read_events, rewind_metrics
from packtrain.storage.atomic import TEMPORARY_PATTERN, hash_bytes, write_atomically
from packtrain.train.resume import check_same_run, tell_continuation
from packtrain.train.setup import Parts

_log = logging.getLogger("packtrain")


def check_folder(layout: RunLayout, *, resume: bool) -> None:
    """Raises RunError if the folder cannot be this run's: it holds other things, or a run that is not to be resumed."""
    if not layout.config.is_file():
        strangers = [entry.name for entry in layout.folder.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise RunError(
                f"{layout.folder} is not empty and does not hold a run (it has {strangers[0]}); give another --run folder"
            )
    elif not resume:
        raise RunError(
            f"{layout.folder} already holds a run; add --resume to continue it, or give another --run folder"
        )


def check_continues(
    layout: RunLayout, config: RunConfig, datasets: RunDatasets, saved: Checkpoint | None
) -> RunConfig | None:
    """The configuration that made the checkpoint `saved`, or that a run without one was started with; None for a new run.

    Raises CheckpointError if there are checkpoints but none is whole: a run must not start over unasked. Raises RunError if
    `config` is another run's, DatasetError if the run was trained on other data.
    """
    if not layout.config.is_file():
        return None
    if saved is None and layout.saved_steps():
        load_config(layout)
        raise CheckpointError(
            f"no checkpoint of {layout.folder} is complete on a disk that all processes of the run share; "
            f"put one back, or move {layout.checkpoints} away to start over"
        )
    before = config_of(layout, saved.folder if saved else None)
    check_same_run(before, config, str(layout.folder))
    _check_same_data(layout, datasets)
    return before


def record_start(
    layout: RunLayout,
    parts: Parts,
    datasets: RunDatasets,
    saved: Checkpoint | None,
    before: RunConfig | None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Events:
    """Writes a run's files other than its checkpoints, cuts the metrics back to the checkpoint, and opens the events.

    Each setting that differs from those of `before`, which made the checkpoint, is an event. `recorded`: what the
    manifest of a new run says besides, by field; None for what it does not have.
    """
    gaps = find_gaps(layout, saved.folder, saved.step) if saved else []
    # A kill leaves half-written files.
    for left in (*layout.folder.glob(TEMPORARY_PATTERN), *layout.checkpoints.glob(f"step-*/{TEMPORARY_PATTERN}")):
        left.unlink(missing_ok=True)
    # First of all: this file makes the folder a run's.
    made_by = to_toml(parts.config).encode()
    write_atomically(layout.config, made_by)
    rewind_metrics(layout.metrics, parts.progress.step)
    if not layout.manifest.is_file():
        # Not a copy of the folder, which may have other files: its two files, written again.
        load_tokenizer(datasets.tokenizer_folder).save(layout.tokenizer)
        write_json(
            layout.manifest,
            describe_run(
                device=parts.placement.device,
                dataset=describe_sources(datasets),
                num_parameters=num_parameters(parts.config.model),
                num_steps=parts.num_steps,
                world_size=parts.placement.ranks.world_size,
            )
            | {field: value for field, value in (recorded or {}).items() if value},
        )
    passed_over = [step for step in layout.saved_steps() if step > parts.progress.step]
    events = Events(layout.events, on_event)
    for gap in gaps:
        _log.warning("%s %s; training continues, and events.jsonl notes the gap", layout.folder / gap.file, gap.reason)
        events.record("log_gap", step=parts.progress.step, file=gap.file, reason=gap.reason)
    changed = to_jsonable_python(changes(before, parts.config)) if before else {}
    events.record(
        "resumed" if saved else "started",
        step=parts.progress.step,
        dataset_hash=datasets.hash,
        config_hash=hash_bytes(made_by),
        versions=versions(),
        hardware=hardware(parts.placement.device),
        world_size=parts.placement.ranks.world_size,
        steps=parts.num_steps,
        **({"changed": changed} if before else {}),
        **({"passed_over": passed_over} if passed_over else {}),
    )
    for key, (old, now) in changed.items():
        events.record("changed", step=parts.progress.step, key=key, before=old, after=now)
    if before is not None:
        was = before.num_steps(parts.loader.layout.num_rows)
        tell_continuation(layout, before, parts.config, parts.progress.step, parts.num_steps, was)
    return events


def _check_same_data(layout: RunLayout, datasets: RunDatasets) -> None:
    events = [e for e in read_events(layout.events) if e["event"] in ("started", "resumed")]
    if not events or events[-1]["dataset_hash"] == datasets.hash:
        return
    if len(datasets.parts) > 1:
        raise DatasetError(
            f"the mixture of {datasets.name} is not what {layout.folder} was trained on (other datasets, weights or "
            "max_epochs); set data.dataset back to what it was, or start another --run from its weights with --continue-from"
        )
    raise DatasetError(
        f"{datasets.name} is not the dataset that {layout.folder} was trained on (its manifest differs); "
        "set data.dataset to that dataset's folder, or start another --run from its weights with --continue-from"
    )
