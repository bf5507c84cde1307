"""Decides how a run is saved and found again: written aside, hashed, renamed; verified whenever it is read.

A checkpoint is a folder `checkpoints/step-NNNNNNNN` of plain files: the weights and the optimizer's tensors as
safetensors (no pickle), everything else as JSON. `hashes.json` is written last and names every file, so that a torn
checkpoint is recognised as such.
"""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from packtrain.config.load import from_toml
from packtrain.config.run import RunConfig
from packtrain.data.atomic import flush_folder, flush_to_disk, hash_file
from packtrain.errors import CheckpointError, DiskFullError
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.runs.layout import RunLayout, existing_run, write_json

FORMAT_VERSION = 1
_log = logging.getLogger("packtrain")
_MODEL, _OPTIMIZER, _STATE, _HASHES = "model.safetensors", "optimizer.safetensors", "state.json", "hashes.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `state` is the JSON part, tensors are read when asked for."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def model_tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.folder / _MODEL, device=device)

    def optimizer_tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.folder / _OPTIMIZER, device=device)


@dataclass(frozen=True)
class OpenRun:
    """A run opened for use: the model in evaluation mode with the weights of `step`."""

    layout: RunLayout
    config: RunConfig
    model: Llama
    step: int
    tokenizer_folder: Path
    manifest: dict[str, Any]


def save(
    layout: RunLayout, *, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Writes the checkpoint of `state["step"]`, then removes old ones beyond the newest `keep` and the best.

    The best is the one with the lowest `state["val_loss"]`. Raises DiskFullError,
    with every earlier checkpoint untouched, where there is no room.
    """
    target = layout.checkpoint(int(state["step"]))
    aside = target.with_name(f".{target.name}.tmp")
    _check_room(layout, sum(t.nbytes for t in model.values()) + sum(t.nbytes for t in optimizer.values()))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        safetensors.torch.save_file(_on_cpu(model), aside / _MODEL)
        safetensors.torch.save_file(_on_cpu(optimizer), aside / _OPTIMIZER)
        write_json(aside / _STATE, {"format": FORMAT_VERSION, **state})
        files = (_MODEL, _OPTIMIZER, _STATE)
        for name in files:
            _sync_file(aside / name)
        write_json(aside / _HASHES, {name: hash_file(aside / name) for name in files})
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        # safetensors writes from Rust and passes the system's error on as text.
        if "No space left" in str(error):
            raise DiskFullError(_no_room(layout)) from None
        raise
    remove(target)
    aside.rename(target)
    flush_folder(layout.checkpoints)
    prune(layout, keep)
    return target


def read(folder: Path) -> Checkpoint:
    """Opens a checkpoint after comparing every file with its hash. Raises CheckpointError that says what does not fit."""
    try:
        hashes = json.loads((folder / _HASHES).read_text())
    except (OSError, ValueError):
        raise CheckpointError(
            f"{folder} is no whole checkpoint ({_HASHES} is missing or torn); {_USE_ANOTHER}"
        ) from None
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file() or hash_file(path) != expected:
            what = "missing" if not path.is_file() else "not what was written (its hash differs)"
            raise CheckpointError(f"{path} is {what}; {_USE_ANOTHER}")
    state = json.loads((folder / _STATE).read_text())
    if state.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {state.get('format')} and this packtrain reads {FORMAT_VERSION}; "
            "use the packtrain version named in the run's manifest.json"
        )
    return Checkpoint(folder, state)


def newest(layout: RunLayout, *, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint (of step `at_most` or before), or None. A torn one is passed over with a warning."""
    for step in reversed(layout.saved_steps()):
        if at_most is not None and step > at_most:
            continue
        try:
            return read(layout.checkpoint(step))
        except CheckpointError as error:
            _log.warning("skipping a checkpoint: %s", error)
    return None


def open_run(
    folder: Path, *, step: int | None = None, which: Literal["last", "best"] = "last", device: str = "cpu"
) -> OpenRun:
    """Opens a run for evaluation, generation or export: by `step`, or its last or best checkpoint.

    Raises RunError where there is no run, CheckpointError where there is no such checkpoint or it is not whole.
    """
    layout = existing_run(folder)
    config = from_toml(RunConfig, layout.config.read_text(), str(layout.config))
    checkpoint = _choose(layout, step, which)
    model = build(config.model, seed=config.train.seed, device="meta")
    load_weights(model, checkpoint.model_tensors(device), checkpoint.folder)
    model.tie_weights()
    manifest = json.loads(layout.manifest.read_text())
    return OpenRun(layout, config, model.eval(), checkpoint.step, layout.tokenizer, manifest)


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Makes `tensors`, a checkpoint's, the weights of the model, strictly; a model on the meta device takes them as they are.

    Raises CheckpointError naming the first that does not fit.
    """
    own = dict(model.named_parameters())
    for name in sorted(own.keys() ^ tensors.keys()):
        where = "the model has no such weight" if name in tensors else "the checkpoint lacks it"
        raise CheckpointError(
            f"{source} does not fit the model: {name}: {where}; give the configuration it was trained with"
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source} does not fit the model: {name} has shape {list(tensor.shape)} and the model needs "
                f"{list(own[name].shape)}; give the configuration it was trained with"
            )
    # Not strict: a tied weight stands in a checkpoint once.
    model.load_state_dict(tensors, strict=False, assign=any(p.is_meta for p in own.values()))


def prune(layout: RunLayout, keep: int) -> None:
    """Removes what earlier saves left half-written, and all checkpoints but the newest `keep` and the best."""
    for aside in layout.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(aside, ignore_errors=True)
    steps = layout.saved_steps()
    best = best_step(layout)
    for step in steps[:-keep]:
        if step != best:
            remove(layout.checkpoint(step))


def best_step(layout: RunLayout) -> int | None:
    """The saved step with the lowest validation loss, or None where no saved step was validated."""
    losses = {}
    for step in layout.saved_steps():
        loss = _saved_val_loss(layout.checkpoint(step))
        if loss is not None:
            losses[step] = loss
    return min(losses, key=lambda step: (losses[step], -step)) if losses else None


def _saved_val_loss(folder: Path) -> float | None:
    try:
        loss = json.loads((folder / _STATE).read_text()).get("val_loss")
    except (OSError, ValueError):
        return None
    return None if loss is None else float(loss)


def _choose(layout: RunLayout, step: int | None, which: Literal["last", "best"]) -> Checkpoint:
    steps = layout.saved_steps()
    if not steps:
        raise CheckpointError(f"{layout.folder} has no checkpoint yet; let `packtrain train` reach its first one")
    if step is not None:
        if step not in steps:
            raise CheckpointError(f"{layout.folder} has no checkpoint of step {step}; there are {_listed(steps)}")
        return read(layout.checkpoint(step))
    if which == "best":
        best = best_step(layout)
        if best is None:
            raise CheckpointError(f"no checkpoint of {layout.folder} was validated; leave --best out, or give --step")
        return read(layout.checkpoint(best))
    found = newest(layout)
    if found is None:
        raise CheckpointError(f"no checkpoint of {layout.folder} is whole; train again with --resume")
    return found


def remove(folder: Path) -> None:
    """Takes a checkpoint away under another name first, so that a kill in between leaves no torn one under its own."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old.tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _check_room(layout: RunLayout, needed_bytes: int) -> None:
    # One part in a hundred for headers and the file system.
    if shutil.disk_usage(layout.folder).free < needed_bytes * 1.01 + 1_000_000:
        raise DiskFullError(_no_room(layout, needed_bytes))


def _no_room(layout: RunLayout, needed_bytes: int | None = None) -> str:
    need = f"{needed_bytes / 1e9:.2f} GB" if needed_bytes else "more room"
    free = shutil.disk_usage(layout.folder).free / 1e9
    return (
        f"the disk of {layout.folder} has {free:.2f} GB left and a checkpoint needs {need}; free some or lower "
        "checkpoint.keep, then go on with --resume"
    )


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _sync_file(path: Path) -> None:
    with path.open("rb") as handle:
        flush_to_disk(handle.fileno())


def _listed(steps: list[int]) -> str:
    return ", ".join(str(step) for step in steps)


_USE_ANOTHER = "give --step with another of the run's checkpoints, or train again with --resume"
