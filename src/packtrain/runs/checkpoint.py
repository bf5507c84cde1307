"""Decides which checkpoint of a run is read, and checks that it is whole: every file must match its hash.

A checkpoint is a folder `checkpoints/step-NNNNNNNN` of plain files: weights and the optimizer's tensors as safetensors
(no pickle), everything else as JSON, and `hashes.json`. `runs.writer` writes it.
"""

import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from packtrain.config.run import RunConfig
from packtrain.errors import CheckpointError, CheckpointFormatError
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.parallel.parts import StoredTensor, TensorPart, list_tensors, read_parts
from packtrain.parallel.ranks import Ranks
from packtrain.runs.layout import RunLayout, find_run, load_config
from packtrain.runs.manifest import read_manifest
from packtrain.runs.retention import STATE, find_best_step
from packtrain.runs.writer import FORMAT_VERSION, HASHES
from packtrain.storage.atomic import hash_file

# The first format has all tensors in two files, not in parts; both are read alike.
_READABLE = (1, FORMAT_VERSION)
# Separates a parameter's name from that of an entry of its optimizer state.
ENTRY = "/"
_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `state` is the JSON part; tensors are read on demand."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @functools.cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Each tensor by name: `weight`, or `weight/entry` for an entry of its optimizer state."""
        return list_tensors(self.folder)

    def read_whole(self, device: str = "cpu", *, only_weights: bool = False) -> dict[str, Tensor]:
        """Every tensor, whole: weights, and the optimizer's state unless `only_weights`."""
        stored = {name: found for name, found in self.stored.items() if not (only_weights and ENTRY in name)}
        tensors = {name: torch.empty(found.shape, dtype=found.dtype, device=device) for name, found in stored.items()}
        read_parts(self.folder, {name: TensorPart.whole(tensor) for name, tensor in tensors.items()})
        return tensors


@dataclass(frozen=True)
class OpenRun:
    """A run to use: its model, in evaluation mode, with the weights of `step`."""

    layout: RunLayout
    config: RunConfig
    model: Llama
    step: int
    tokenizer_folder: Path
    manifest: dict[str, Any]


def read(folder: Path, ranks: Ranks | None = None) -> Checkpoint:
    """Opens a checkpoint after comparing each file with its hash. Raises CheckpointError for the first that differs.

    Each rank checks a share of the files; all raise, or none.
    """
    ranks = ranks or Ranks()
    with ranks.together():
        hashes = _read_json(folder / HASHES)
        for name, expected in sorted(hashes.items())[ranks.rank :: ranks.world_size]:
            path = folder / name
            if not path.is_file() or hash_file(path) != expected:
                what = "missing" if not path.is_file() else "damaged (its hash differs from the saved one)"
                raise CheckpointError(f"{path} is {what}; {_USE_ANOTHER}")
        strangers = [path.name for path in folder.glob("*.safetensors") if path.name not in hashes]
        if strangers:
            raise CheckpointError(
                f"{folder / strangers[0]} does not belong to this checkpoint; move it elsewhere, or {_USE_ANOTHER}"
            )
        state = _read_json(folder / STATE)
        if state.get("format") not in _READABLE:
            raise CheckpointFormatError(
                f"{folder} has checkpoint format {state.get('format')} and this packtrain reads up to {FORMAT_VERSION}; "
                "use the packtrain version named in the run's manifest.json"
            )
    return Checkpoint(folder, state)


def find_newest(layout: RunLayout, ranks: Ranks | None = None, *, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint (of step `at_most` or before), or None; the same on all ranks.

    Skips a damaged one with a warning. Raises CheckpointFormatError if the newest is another version's: continuing from an
    older one would overwrite it.
    """
    ranks = ranks or Ranks()
    # From the main rank: on a shared disk other machines may see a folder later.
    steps = ranks.gather(layout.saved_steps())[0]
    for step in reversed([step for step in steps if at_most is None or step <= at_most]):
        try:
            return read(layout.checkpoint(step), ranks)
        except CheckpointFormatError:
            raise
        except CheckpointError as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
    return None


def open_run(
    folder: Path, *, step: int | None = None, which: Literal["last", "best"] = "last", device: str = "cpu"
) -> OpenRun:
    """Opens a run for evaluation, generation or export: by `step`, or its last or best checkpoint.

    Raises RunError if the folder has no run, CheckpointError if the checkpoint is missing or damaged.
    """
    layout = find_run(folder)
    config = load_config(layout)
    checkpoint = _choose(layout, step, which)
    model = build(config.model, seed=config.train.seed, device="meta")
    check_fits(checkpoint, {name: p.shape for name, p in model.named_parameters()})
    # Not strict: a checkpoint contains a tied weight only once.
    model.load_state_dict(checkpoint.read_whole(device, only_weights=True), strict=False, assign=True)
    model.tie_weights()
    if device == "cpu":
        use_cpu_kernels(model)
    return OpenRun(layout, config, model.eval(), checkpoint.step, layout.tokenizer, read_manifest(layout))


def check_fits(checkpoint: Checkpoint, shapes: Mapping[str, torch.Size]) -> None:
    """Compares a checkpoint with a model's weights by name and shape. Raises CheckpointError for the first that differs."""
    stored = {name: tensor.shape for name, tensor in checkpoint.stored.items() if ENTRY not in name}
    for name in sorted(shapes.keys() | stored.keys()):
        if name not in shapes:
            what = "the model does not have it"
        elif name not in stored:
            what = "the checkpoint does not have it"
        elif shapes[name] != stored[name]:
            what = f"the checkpoint has shape {list(stored[name])} and the model has {list(shapes[name])}"
        else:
            continue
        raise CheckpointError(
            f"{checkpoint.folder} does not fit the model: {name}: {what}; use the configuration that it was trained with"
        )


def _choose(layout: RunLayout, step: int | None, which: Literal["last", "best"]) -> Checkpoint:
    steps = layout.saved_steps()
    if not steps:
        raise CheckpointError(f"{layout.folder} has no checkpoint yet; let `packtrain train` run until it saves one")
    if step is not None:
        if step not in steps:
            raise CheckpointError(
                f"{layout.folder} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}"
            )
        return read(layout.checkpoint(step))
    if which == "best":
        best = find_best_step(layout)
        if best is None:
            raise CheckpointError(
                f"no checkpoint of {layout.folder} has a validation loss; leave out --best, or give --step"
            )
        return read(layout.checkpoint(best))
    found = find_newest(layout)
    if found is None:
        raise CheckpointError(f"all checkpoints of {layout.folder} are damaged; train again with --resume")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path.parent} is not a whole checkpoint ({path.name} is missing or damaged); {_USE_ANOTHER}"
        )
    return value


_USE_ANOTHER = "give --step with another checkpoint of the run, or train again with --resume"
