"""Decides whether a model comes back from its files: saved, loaded and exported in a temporary folder, compared bit by bit."""

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from packtrain.config.load import to_toml
from packtrain.data.feed.datasets import RunDatasets
from packtrain.doctor.finding import Finding, fault, skipped
from packtrain.doctor.trial import Trial, build
from packtrain.export.run import Export, export_run
from packtrain.optim.build import export_state
from packtrain.parallel.ranks import Ranks
from packtrain.runs.checkpoint import open_run, read
from packtrain.runs.layout import RunLayout
from packtrain.runs.logs import measure_logs
from packtrain.runs.metrics import JsonLines
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter
from packtrain.train.loop import describe_state
from packtrain.train.run_folder import record_start
from packtrain.train.setup import Parts
from packtrain.train.state import collect

_CHECK = "save, load, export"
_REPORT = "report this bug, of packtrain or of a library, with what `packtrain doctor` prints"


def check_round_trip(trial: Trial, datasets: RunDatasets, *, export: Callable[..., Export] = export_run) -> Finding:
    """Saves the model as a run does, loads it as `--resume` does, and exports it; a fault names what came back different."""
    parts = trial.parts
    needed = _needed_bytes(parts)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        return skipped(
            _CHECK,
            f"it writes {needed / 1e9:.2f} GB, and the temporary folder {tempfile.gettempdir()} has {free / 1e9:.2f} GB free; "
            "set TMPDIR to a folder on another disk",
        )
    with tempfile.TemporaryDirectory(prefix="packtrain-doctor-") as scratch:
        layout = RunLayout(Path(scratch) / "run")
        _save(parts, datasets, layout)
        weights = {name: p.detach().cpu() for name, p in parts.model.named_parameters()}
        if different := _compare_loaded(parts, weights, datasets, layout):
            return fault(
                _CHECK,
                f"loaded from its checkpoint, {different} differs from what was saved",
                f"do not start the run, which could not be resumed; {_REPORT}",
            )
        exported = export(open_run(layout.folder), Path(scratch) / "exported")
        stored: dict[str, Tensor] = {}
        for file in exported.folder.glob("*.safetensors"):
            stored |= safetensors.torch.load_file(file)
        if different := find_difference(weights, stored):
            return fault(
                _CHECK,
                f"{different} of the export differs from the model's",
                f"do not publish an export; {_REPORT}",
            )
    return Finding(
        _CHECK,
        "ok",
        f"{len(weights)} tensors and the optimizer's state came back bitwise the same, and transformers' logits from the export "
        f"within {exported.checks.max_logit_difference:.0e}{trial.reduced}",
    )


def find_difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is missing, or has other bits; None if all are the same."""
    for name, tensor in expected.items():
        if name not in found or found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            return name
        # As bytes: NaN is not equal to itself, and -0.0 is equal to 0.0.
        ours, theirs = (t.detach().cpu().contiguous().flatten().view(torch.uint8) for t in (tensor, found[name]))
        if not torch.equal(ours, theirs):
            return name
    return next((name for name in found if name not in expected), None)


def _save(parts: Parts, datasets: RunDatasets, layout: RunLayout) -> None:
    layout.folder.mkdir()
    # A run of one step may not have a checkpoint of its second.
    parts.progress.step = 1
    ranks = parts.placement.ranks
    tensors, numbers = collect(parts.model, parts.optimizer, ranks)
    state = describe_state(parts, parts.loader.state()) | {"optimizer_numbers": numbers}
    with (
        record_start(layout, parts, datasets, None, None) as events,
        JsonLines(layout.metrics) as metrics,
        CheckpointWriter(layout, ranks, Retention(1)) as writer,
    ):
        writer.save(tensors, state, made_by=to_toml(parts.config), logs=measure_logs(metrics, events))
        writer.wait()


def _compare_loaded(
    parts: Parts, weights: Mapping[str, Tensor], datasets: RunDatasets, layout: RunLayout
) -> str | None:
    """The first tensor or number of a resumed run that is not what was saved."""
    saved = read(layout.checkpoint(1), Ranks())
    log = logging.getLogger("packtrain")
    level = log.level
    # What a build warns of was said when the trial was built.
    log.setLevel(logging.ERROR)
    try:
        loaded = build(parts.config, datasets, parts.placement.device, saved)
    finally:
        log.setLevel(level)
    loaded.loader.close()
    resumed = {name: p.detach().cpu() for name, p in loaded.model.named_parameters()}
    state, numbers = export_state(parts.optimizer)
    found_state, found_numbers = export_state(loaded.optimizer)
    if different := find_difference(weights, resumed) or find_difference(state, found_state):
        return different
    if _as_plain(numbers) != _as_plain(found_numbers):
        return "a number of the optimizer's state"
    return None


def _as_plain(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, int | float) else value for name, value in numbers.items()}


def _needed_bytes(parts: Parts) -> int:
    """A checkpoint and an export in float32, and ten megabytes for everything else."""
    weights = sum(p.nbytes for p in parts.model.parameters())
    return int(1.02 * (2 * weights + sum(t.nbytes for t in export_state(parts.optimizer)[0].values()))) + 10**7
