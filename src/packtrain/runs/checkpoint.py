"""Decides which checkpoint of a run is read, and checks that it is whole: every file must match its hash.

A checkpoint is a folder `checkpoints/step-NNNNNNNN` of plain files: weights and the optimizer's tensors as safetensors
(no pickle), the configuration that made them as TOML, everything else as JSON, and `hashes.json`. `runs.writer` writes it.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
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
from packtrain.runs.configuration import UNLISTED, USE_ANOTHER, check_file, config_of, read_hashes
from packtrain.runs.layout import RunLayout, find_run
from packtrain.runs.manifest import as_trained, read_manifest
from packtrain.runs.retention import find_best_step
from packtrain.runs.saved_state import read_state

# Separates a parameter's name from that of an entry of its optimizer state.
ENTRY = "/"
# The entry of a parameter that is its average over steps, and no part of the optimizer's state.
AVERAGE = "average"
AverageKind = Literal["ema", "tail"]
"""How weights were averaged over steps: the values of train.average that make an average."""
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
        with _explain_tensors(self.folder):
            return list_tensors(self.folder)

    def read_into(self, parts: Mapping[str, TensorPart]) -> None:
        """Fills the tensors of `parts`, each of which the checkpoint must have in that shape. Raises CheckpointError."""
        with _explain_tensors(self.folder):
            read_parts(self.folder, parts)

    def read_whole(self, device: str = "cpu", *, only_weights: bool = False) -> dict[str, Tensor]:
        """Every tensor, whole: weights, and the optimizer's state unless `only_weights`."""
        stored = {name: found for name, found in self.stored.items() if not (only_weights and ENTRY in name)}
        tensors = {name: torch.empty(found.shape, dtype=found.dtype, device=device) for name, found in stored.items()}
        self.read_into({name: TensorPart.whole(tensor) for name, tensor in tensors.items()})
        return tensors

    @property
    def has_average(self) -> bool:
        """Whether it holds averages of the weights."""
        return any(name.endswith(ENTRY + AVERAGE) for name in self.stored)

    def read_averaged(self, device: str = "cpu") -> dict[str, Tensor]:
        """The average of each weight, whole, by the weight's name. Raises CheckpointError if one is missing."""
        tensors = {}
        for name, found in self.stored.items():
            if ENTRY not in name:
                mean = self.stored.get(f"{name}{ENTRY}{AVERAGE}")
                if mean is None or mean != found:
                    raise CheckpointError(f"{self.folder} has no average of {name} that fits it; {USE_ANOTHER}")
                tensors[name] = torch.empty(found.shape, dtype=found.dtype, device=device)
        self.read_into({f"{name}{ENTRY}{AVERAGE}": TensorPart.whole(tensor) for name, tensor in tensors.items()})
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
    average: AverageKind | None = None
    """Of what kind the weights are an average over steps; None: they are those of `step`."""
    leaves_average: bool = False
    """Whether the checkpoint has an average that was not taken, although the run was validated with it."""


def read(folder: Path, ranks: Ranks | None = None) -> Checkpoint:
    """Opens a checkpoint after comparing each file with its hash. Raises CheckpointError for the first that differs.

    Each rank checks a share of the files; all raise, or none.
    """
    ranks = ranks or Ranks()
    with ranks.together():
        hashes = read_hashes(folder)
        for name, expected in sorted(hashes.items())[ranks.rank :: ranks.world_size]:
            check_file(folder, name, expected)
        strangers = [path.name for path in sorted(folder.iterdir()) if _is_stranger(path.name, hashes)]
        if strangers:
            raise CheckpointError(
                f"{folder / strangers[0]} does not belong to this checkpoint; move it elsewhere, or {USE_ANOTHER}"
            )
        state = read_state(folder)
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
    folder: Path,
    *,
    step: int | None = None,
    which: Literal["last", "best"] = "last",
    device: str = "cpu",
    average: bool | None = None,
) -> OpenRun:
    """Opens a run for evaluation, generation or export: by `step`, or its last or best checkpoint.

    `average`: whether with the average of its weights over steps or with those of its step; unless given, the average if it has
    one, which the run was validated with.

    Configuration and tokenizer are those that the checkpoint was made with; warns if the run's files now say otherwise.
    Raises RunError if the folder has no run, CheckpointError if the checkpoint is missing or damaged.
    """
    layout = find_run(folder)
    checkpoint = _choose(layout, step, which)
    config = config_of(layout, checkpoint.folder)
    model = build(config.model, seed=config.train.seed, device="meta")
    check_fits(checkpoint, {name: p.shape for name, p in model.named_parameters()})
    # Not strict: a checkpoint contains a tied weight only once.
    kind = _choose_average(checkpoint, average)
    leaves_average = kind is None and checkpoint.has_average
    values = checkpoint.read_averaged(device) if kind else checkpoint.read_whole(device, only_weights=True)
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    if device == "cpu":
        use_cpu_kernels(model)
    manifest = as_trained(read_manifest(layout), checkpoint.state, layout)
    return OpenRun(layout, config, model.eval(), checkpoint.step, layout.tokenizer, manifest, kind, leaves_average)


def _choose_average(checkpoint: Checkpoint, wanted: bool | None) -> AverageKind | None:
    """The kind of the average to take; None: the weights of the checkpoint's step."""
    if wanted and not checkpoint.has_average:
        raise CheckpointError(
            f"{checkpoint.folder} has no average of the weights; leave out --average, or train with train.average=ema"
        )
    if wanted is False or not checkpoint.has_average:
        return None
    if wanted is None:
        _log.info("using the average of the weights in %s; --no-average takes those of its step", checkpoint.folder)
    kind: AverageKind = checkpoint.state["average"]["kind"]
    return kind


def check_fits(checkpoint: Checkpoint, shapes: Mapping[str, torch.Size]) -> None:
    """Compares a checkpoint with a model's weights by name, shape and type. Raises CheckpointError for the first that differs."""
    weights = {name: tensor for name, tensor in checkpoint.stored.items() if ENTRY not in name}
    stored = {name: tensor.shape for name, tensor in weights.items()}
    for name in sorted(shapes.keys() | stored.keys()):
        if name not in shapes:
            what = "the model does not have it"
        elif name not in stored:
            what = "the checkpoint does not have it"
        elif shapes[name] != stored[name]:
            what = f"the checkpoint has shape {list(stored[name])} and the model has {list(shapes[name])}"
        elif weights[name].dtype != torch.float32:
            what = f"the checkpoint has it as {weights[name].dtype} and packtrain saves weights as torch.float32"
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


def _is_stranger(name: str, hashes: Mapping[str, str]) -> bool:
    """Whether a file is not the checkpoint's. Systems leave hidden files of their own, which nothing reads."""
    if name in hashes or name in UNLISTED:
        return False
    return not name.startswith(".") or name.endswith(".safetensors")


@contextlib.contextmanager
def _explain_tensors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    # The libraries that read a file's header raise almost anything for one that they do not understand.
    except Exception as error:  # noqa: BLE001
        raise CheckpointError(
            f"the tensors of {folder} cannot be read ({' '.join(str(error).split())[:200]}); {USE_ANOTHER}"
        ) from None
