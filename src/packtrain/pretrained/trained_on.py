"""Decides on which datasets a model was trained, by what its run or the export that it is from says."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from packtrain.config.data import DataConfig, MixedDataset
from packtrain.data.feed.datasets import RunDatasets, open_run_datasets
from packtrain.data.format.shards import open_dataset
from packtrain.errors import DatasetError, PacktrainError
from packtrain.pretrained import gguf_header
from packtrain.pretrained.open import OpenModel
from packtrain.runs.manifest import list_datasets
from packtrain.storage.json_file import parse_json, read_bounded

SEAL = "packtrain.json"
"""The file of an export that says what packtrain wrote, of which run and from which datasets."""
_OF_HUB = ("repo", "config", "split", "revision")


class TrainingDataset(BaseModel):
    """A dataset that a model was trained on."""

    model_config = ConfigDict(strict=True, frozen=True)

    folder: str | None = None
    """Where it was on the machine of the run; None if that is not known, as after an upload."""
    hash: str
    name: str | None = None
    """In a mixture."""
    weight: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    max_epochs: Annotated[FiniteFloat, Field(gt=0)] | None = None
    source: dict[str, Any] = {}
    """Where its text was from: the `kind`, and for a dataset of the hub its repo, config, split and revision."""

    @property
    def repo(self) -> str | None:
        """The dataset of the Hugging Face hub that the text is from, if it is from one."""
        found = self.source.get("repo")
        return found if self.source.get("kind") == "hf" and isinstance(found, str) else None


def find_training_datasets(opened: OpenModel) -> list[TrainingDataset]:
    """Those of the run, or those that an export names, also one that was made from an export. Empty if nothing says."""
    if opened.run is not None:
        return [_of_manifest(part) for part in list_datasets(opened.run.manifest)]
    folder = opened.folder.parent if opened.folder.is_file() else opened.folder
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ValidationError):
        seal = parse_json(read_bounded(folder / SEAL))
        # Another model may lie beside those that packtrain wrote.
        if opened.folder.is_dir() or opened.folder.name in seal["files"]:
            return [TrainingDataset.model_validate(part) for part in seal["datasets"]]
    return _of_gguf(opened.folder)


def reopen_training_datasets(opened: OpenModel) -> RunDatasets:
    """The datasets of a model that is not a run's, where they were when it was exported.

    Raises DatasetError if the model does not name them, or if they are not there as they were.
    """
    instead = "give --dataset FOLDER, --text FILE or --tasks NAME"
    found = find_training_datasets(opened)
    if not found:
        raise DatasetError(
            f"{opened.folder} is a model and not a run, and does not say what it was trained on, so it has no validation split "
            f"of its own; {instead}"
        )
    for part in found:
        if part.folder is None:
            raise DatasetError(
                f"{opened.folder} was trained on a dataset with the hash {part.hash[:12]}{_from(part)}, and does not say where "
                f"that is; {instead}"
            )
        try:
            now = open_dataset(Path(part.folder)).manifest.hash
        except (PacktrainError, OSError):
            raise DatasetError(
                f"{opened.folder} was trained on {part.folder}{_from(part)}, which is not there any more; {instead}"
            ) from None
        if now != part.hash:
            raise DatasetError(
                f"{opened.folder} was trained on {part.folder}, which has changed since (its hash was {part.hash[:12]} and is "
                f"{now[:12]}), so the model may have been trained on what is held out there now; {instead}"
            )
    parts = tuple(
        MixedDataset(folder=str(part.folder), weight=part.weight, max_epochs=part.max_epochs) for part in found
    )
    return open_run_datasets(DataConfig(dataset=parts))


def _of_manifest(part: dict[str, Any]) -> TrainingDataset:
    source = part.get("recipe", {}).get("source", {})
    kept = ("kind", *_OF_HUB) if source.get("kind") == "hf" else ("kind",)
    return TrainingDataset(
        folder=part["folder"],
        hash=part.get("hash", ""),
        name=part.get("name"),
        weight=part.get("weight", 1.0),
        max_epochs=part.get("max_epochs"),
        source={key: source[key] for key in kept if source.get(key) is not None},
    )


def _of_gguf(path: Path) -> list[TrainingDataset]:
    """What the header of a GGUF says, which has no folders."""
    if not path.is_file() or not gguf_header.is_gguf(path):
        return []
    values = gguf_header.read_header(path).values
    versions = [values.get(f"general.dataset.{number}.version") for number in range(_count(values))]
    return [TrainingDataset(hash=version) for version in versions if isinstance(version, str) and version]


def _count(values: dict[str, Any]) -> int:
    count = values.get("general.dataset.count")
    return min(count, len(values)) if type(count) is int else 0


def _from(part: TrainingDataset) -> str:
    return "" if part.repo is None else f" (text of {part.repo} on the hub)"
