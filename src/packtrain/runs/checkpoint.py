"""Decides which checkpoint of a run is read, and that it is whole: every file is held against its hash.

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
from packtrain.data.atomic import hash_file
from packtrain.errors import CheckpointError, CheckpointFormatError
from packtrain.model.init import build
from packtrain.model.llama import Llama
from packtrain.parallel.parts import StoredTensor, TensorPart, list_tensors, read_parts
from packtrain.parallel.ranks import Ranks
from packtrain.runs.layout import RunLayout, existing_run, saved_config
from packtrain.runs.manifest import read_manifest
from packtrain.runs.retention import STATE, best_step
from packtrain.runs.writer import FORMAT_VERSION, HASHES

# Of the first format the tensors lie in two files without parts, which read the same.
_READABLE = (1, FORMAT_VERSION)
# Between a parameter's name and the entry of the optimizer's state that belongs to it.
ENTRY = "/"
_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `state` is the JSON part, tensors are read when asked for."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @functools.cached_property
    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor by its name: a weight's, or that of an entry of its optimizer state, `weight/entry`."""
        return list_tensors(self.folder)

    def read(self, parts: Mapping[str, TensorPart]) -> None:
        """Fills the tensors of `parts`, however the run that wrote the checkpoint was divided."""
        read_parts(self.folder, parts)

    def model_tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        """The weights, whole."""
        return self._whole([name for name in self.stored if ENTRY not in name], device)

    def optimizer_tensors(self, device: str = "cpu") -> dict[str, Tensor]:
        """The optimizer's state, whole."""
        return self._whole([name for name in self.stored if ENTRY in name], device)

    def _whole(self, names: list[str], device: str) -> dict[str, Tensor]:
        tensors = {n: torch.empty(self.stored[n].shape, dtype=self.stored[n].dtype, device=device) for n in names}
        self.read({name: TensorPart.whole(tensor) for name, tensor in tensors.items()})
        return tensors


@dataclass(frozen=True)
class OpenRun:
    """A run opened for use: the model in evaluation mode with the weights of `step`."""

    layout: RunLayout
    config: RunConfig
    model: Llama
    step: int
    tokenizer_folder: Path
    manifest: dict[str, Any]


def read(folder: Path, ranks: Ranks | None = None) -> Checkpoint:
    """Opens a checkpoint after comparing every file with its hash. Raises CheckpointError that says what does not fit.

    Over several ranks each compares its share of the files; all raise, or none.
    """
    ranks = ranks or Ranks()
    with ranks.together():
        hashes = _json(folder / HASHES)
        for name, expected in sorted(hashes.items())[ranks.rank :: ranks.world_size]:
            path = folder / name
            if not path.is_file() or hash_file(path) != expected:
                what = "missing" if not path.is_file() else "not what was written (its hash differs)"
                raise CheckpointError(f"{path} is {what}; {_USE_ANOTHER}")
        strangers = [path.name for path in folder.glob("*.safetensors") if path.name not in hashes]
        if strangers:
            raise CheckpointError(f"{folder / strangers[0]} is not of this checkpoint; move it away, or {_USE_ANOTHER}")
        state = _json(folder / STATE)
        if state.get("format") not in _READABLE:
            raise CheckpointFormatError(
                f"{folder} has checkpoint format {state.get('format')} and this packtrain reads up to {FORMAT_VERSION}; "
                "use the packtrain version named in the run's manifest.json"
            )
    return Checkpoint(folder, state)


def newest(layout: RunLayout, ranks: Ranks | None = None, *, at_most: int | None = None) -> Checkpoint | None:
    """The newest whole checkpoint (of step `at_most` or before), or None; the same on all ranks. A torn one is passed
    over with a warning. Raises CheckpointFormatError where it is another version's: going on from one before would lose it."""
    ranks = ranks or Ranks()
    # As the main rank sees them: a shared disk may show other machines a folder later.
    steps = ranks.gather(layout.saved_steps())[0]
    for step in reversed([step for step in steps if at_most is None or step <= at_most]):
        try:
            return read(layout.checkpoint(step), ranks)
        except CheckpointFormatError:
            raise
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
    config = saved_config(layout)
    checkpoint = _choose(layout, step, which)
    model = build(config.model, seed=config.train.seed, device="meta")
    check_fits(checkpoint, {name: p.shape for name, p in model.named_parameters()})
    # Not strict: a tied weight stands in a checkpoint once.
    model.load_state_dict(checkpoint.model_tensors(device), strict=False, assign=True)
    model.tie_weights()
    return OpenRun(layout, config, model.eval(), checkpoint.step, layout.tokenizer, read_manifest(layout))


def check_fits(checkpoint: Checkpoint, shapes: Mapping[str, torch.Size]) -> None:
    """Raises CheckpointError naming the first weight of a model, given by name and shape, that does not fit."""
    stored = {name: tensor.shape for name, tensor in checkpoint.stored.items() if ENTRY not in name}
    for name in sorted(shapes.keys() | stored.keys()):
        if name not in shapes:
            what = "the model has no such weight"
        elif name not in stored:
            what = "the checkpoint lacks it"
        elif shapes[name] != stored[name]:
            what = f"it has shape {list(stored[name])} there and the model needs {list(shapes[name])}"
        else:
            continue
        raise CheckpointError(
            f"{checkpoint.folder} does not fit the model: {name}: {what}; give the configuration it was trained with"
        )


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


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.parent} is no whole checkpoint ({path.name} is missing or torn); {_USE_ANOTHER}")
    return value


def _listed(steps: list[int]) -> str:
    return ", ".join(str(step) for step in steps)


_USE_ANOTHER = "give --step with another of the run's checkpoints, or train again with --resume"
