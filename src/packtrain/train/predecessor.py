"""Decides what a new run takes over from another run: its weights always, its optimizer and place in the data if they fit."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import CheckpointError, RunError, TokenizerError
from packtrain.parallel.parts import TensorPart
from packtrain.parallel.ranks import Ranks
from packtrain.runs import checkpoint as checkpoints
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.configuration import config_of
from packtrain.runs.layout import HASHES, RunLayout
from packtrain.storage.atomic import hash_file
from packtrain.storage.json_file import read_json
from packtrain.train.rollback import apply_rollback

# The rows of a dataset, and their order.
_ROWS = ("data.seq_len", "data.packing", "data.repack", "train.seed")


@dataclass(frozen=True)
class Predecessor:
    """A run whose checkpoint another run starts from."""

    layout: RunLayout
    checkpoint: Checkpoint
    config: RunConfig
    """What made the checkpoint."""

    @cached_property
    def hash(self) -> str:
        """Of the checkpoint: of the list of its files' hashes."""
        return hash_file(self.checkpoint.folder / HASHES)

    def read_tokenizer(self) -> Tokenizer:
        """The run's tokenizer. Raises TokenizerError if it is missing or is not the one that the weights were trained with."""
        found = load_tokenizer(self.layout.tokenizer)
        trained_with = (self.checkpoint.state.get("tokenizer") or {}).get("hash", found.hash)
        if found.hash != trained_with:
            raise TokenizerError(
                f"{self.layout.tokenizer} is not the tokenizer that the run was trained with (its hash differs); replace it "
                "with a copy of the tokenizer folder of the run's dataset"
            )
        return found

    def read(self, name: str) -> Tensor:
        """A weight, whole. Raises CheckpointError if it cannot be read."""
        stored = self.checkpoint.stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self.checkpoint.folder} does not have the weight {name}; give another checkpoint")
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self.checkpoint.read_into({name: TensorPart.whole(tensor)})
        return tensor

    def optimizer_misfit(self, config: RunConfig, is_extended: bool) -> str | None:
        """Why the optimizer's state cannot be taken over, as a clause; None if it can."""
        saved = self.checkpoint.state.get("optimizer", self.config.optim.name)
        if saved != config.optim.name:
            return f"optim.name was {saved} and is {config.optim.name}"
        return "the vocabulary is another" if is_extended else None

    def place_in(self, config: RunConfig, datasets: RunDatasets) -> dict[str, Any] | None:
        """The place in the data where the other run was; None if `config` reads other data, or lays it out in other rows."""
        place = self.checkpoint.state.get("loader")
        if not isinstance(place, dict) or place.get("manifest_hash") != datasets.hash:
            return None
        same = all(_setting(self.config, key) == _setting(config, key) for key in _ROWS)
        return place if same else None

    def as_step_zero(self, place: dict[str, Any] | None) -> Checkpoint:
        """The checkpoint as the beginning of a new run, which counts its own steps and tokens."""
        fresh = {"step": 0, "tokens": 0, "val_loss": None, "guard": {}, "loader": place, "average": None}
        return dataclasses.replace(self.checkpoint, state=self.checkpoint.state | fresh)


def find_predecessor(path: str, ranks: Ranks) -> Predecessor:
    """The run that train.continue_from names. Raises CheckpointError if there is none, or it has no whole checkpoint."""
    layout, found = find_checkpoint(path, "train.continue_from", "continue", ranks)
    return Predecessor(layout, apply_rollback(layout, found), config_of(layout, found.folder))


def find_checkpoint(given: str, key: str, verb: str, ranks: Ranks) -> tuple[RunLayout, Checkpoint]:
    """The run and checkpoint that the setting `key` names: a checkpoint's folder, or a run's folder for its newest."""
    layout, folder = locate_run(given, key)
    if folder is not None:
        return layout, checkpoints.read(folder, ranks)
    newest = checkpoints.find_newest(layout, ranks)
    if newest is None:
        raise CheckpointError(f"{given} has no complete checkpoint to {verb} from; train it until it saves one")
    return layout, newest


def locate_run(given: str, key: str) -> tuple[RunLayout, Path | None]:
    """The run that the setting `key` names, and the checkpoint if it names one. Raises CheckpointError if there is none."""
    path = Path(given)
    if (path / "config.toml").is_file():
        return RunLayout(path), None
    example = "give a run, or one of its checkpoints such as runs/NAME/checkpoints/step-00001000"
    if not path.is_dir():
        raise CheckpointError(f"{key}={path} does not exist; {example}")
    layout = RunLayout(path.resolve().parent.parent)
    if not layout.config.is_file():
        raise CheckpointError(f"{key}={path} is neither a run nor a checkpoint; {example}")
    return layout, path


def list_history(layout: RunLayout) -> list[dict[str, Any]]:
    """What the run in `layout` started from, and that one from, oldest first; empty if its own weights were new."""
    found = read_json(layout.manifest, RunError) if layout.manifest.is_file() else {}
    origin = found.get("started_from") if isinstance(found, dict) else None
    if not isinstance(origin, dict):
        return []
    earlier = origin.get("history")
    return [*(earlier if isinstance(earlier, list) else []), {k: v for k, v in origin.items() if k != "history"}]


def _setting(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
