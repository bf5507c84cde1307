"""Decides what a run records about its machine, its versions and its dataset."""

import logging
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Self

import psutil
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

import packtrain
from packtrain.config.cores import count_cores
from packtrain.config.data import MixedDataset
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets, open_run_datasets
from packtrain.errors import DatasetError, RunError
from packtrain.model.cpu.name import cpu_name
from packtrain.runs.layout import RunLayout
from packtrain.runs.saved_state import describe_misfit
from packtrain.storage.json_file import MOST_COUNT, read_json

_log = logging.getLogger("packtrain")
_LIBRARIES = ("torch", "numpy", "tokenizers", "safetensors", "transformers", "bitsandbytes", "torchao")


def describe_run(
    *, device: torch.device, dataset: dict[str, Any], num_parameters: int, num_steps: int, world_size: int
) -> dict[str, Any]:
    """The content of a run's manifest.json: versions, hardware, dataset, parameters, steps, git commit and command."""
    return {
        "created": time.time(),
        "command": sys.argv,
        "versions": versions(),
        "hardware": {**hardware(device), "world_size": world_size},
        "git_commit": read_git_commit(),
        "dataset": dataset,
        "parameters": num_parameters,
        "steps": num_steps,
    }


def describe_sources(sources: RunDatasets) -> dict[str, Any]:
    """What a run records about its data: `hash` and `tokenizer`, and the folder, hash, recipe and ledger of each dataset.

    A single dataset's are beside `tokenizer`; those of a mixture are in a list, `sources`, with name, weight and max_epochs.
    """
    described = [
        {
            "folder": str(source.dataset.folder.resolve()),
            "hash": source.dataset.manifest.hash,
            "recipe": source.dataset.manifest.recipe,
            "ledger": source.dataset.manifest.ledger,
        }
        for source in sources.parts
    ]
    tokenizer = sources.tokenizer.model_dump()
    if len(described) == 1:
        return described[0] | {"tokenizer": tokenizer}
    mixed = [
        {"name": source.name, "weight": source.weight, "max_epochs": source.max_epochs} | facts
        for source, facts in zip(sources.parts, described, strict=True)
    ]
    return {"hash": sources.hash, "tokenizer": tokenizer, "sources": mixed}


def read_manifest(layout: RunLayout) -> dict[str, Any]:
    """A run's manifest.json, with at least its dataset. Raises RunError if it is missing or damaged."""
    if not layout.manifest.exists():
        raise RunError(f"{layout.manifest} is missing; train again with --resume, which writes it again")

    def refuse(reason: str) -> RunError:
        return RunError(
            f"{layout.manifest} is damaged ({reason}); restore a copy of it, or move it away and train again with --resume, "
            "which writes it again"
        )

    found = read_json(layout.manifest, refuse)
    try:
        recorded = _RunManifest.model_validate(found)
    except ValidationError as failure:
        raise refuse(describe_misfit(failure)) from None
    for described, source in zip(list_datasets(found), recorded.dataset.listed, strict=True):
        described |= {"recipe": source.recipe, "ledger": source.ledger}
    return dict(found)


def list_datasets(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The datasets in a run's manifest.json, the one with the largest weight first; empty if it has none."""
    dataset = manifest.get("dataset") or {}
    return dataset.get("sources", [dataset] if dataset else [])


def as_trained(manifest: dict[str, Any], state: dict[str, Any], layout: RunLayout) -> dict[str, Any]:
    """A run's manifest with the dataset's hash and tokenizer that its checkpoint's `state` names; warns if it had others.

    Raises RunError if neither names a tokenizer.
    """
    saved: dict[str, Any] = {}
    if state.get("tokenizer"):
        saved["tokenizer"] = state["tokenizer"]
    if isinstance((state.get("loader") or {}).get("manifest_hash"), str):
        saved["hash"] = state["loader"]["manifest_hash"]
    edited = sorted(key for key, value in saved.items() if manifest["dataset"].get(key, value) != value)
    if edited:
        _log.warning(
            "%s names another dataset than the checkpoint was trained on (%s differs); the checkpoint's is used",
            layout.manifest,
            " and ".join(f"dataset.{key}" for key in edited),
        )
    return manifest | {"dataset": manifest["dataset"] | saved}


class _Recorded(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _RecordedTokenizer(_Recorded):
    hash: str
    adds_bos: bool
    adds_eos: bool


class _RecordedRecipe(_Recorded):
    source: dict[str, Any] = {}


class _RecordedSource(_Recorded):
    folder: str
    hash: str = ""
    name: str = ""
    weight: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    max_epochs: FiniteFloat | None = None
    recipe: dict[str, Any] = {}
    ledger: dict[str, Any] = {}

    @model_validator(mode="after")
    def _recipe_has_a_source(self) -> Self:
        _RecordedRecipe.model_validate(self.recipe)
        return self


class _RecordedData(_Recorded):
    hash: str
    tokenizer: _RecordedTokenizer | None = None
    sources: Annotated[list[_RecordedSource], Field(min_length=1)] | None = None

    @property
    def listed(self) -> list[_RecordedSource]:
        return self.sources or [_RecordedSource.model_validate(self.model_dump(exclude={"sources"}))]

    @model_validator(mode="after")
    def _names_a_folder(self) -> Self:
        _ = self.listed
        return self


class _RunManifest(_Recorded):
    dataset: _RecordedData
    steps: Annotated[int, Field(ge=1, lt=MOST_COUNT)] | None = None
    hardware: dict[str, Any] = {}
    versions: dict[str, Any] = {}


def reopen_run_datasets(config: RunConfig, manifest: dict[str, Any], run: Path) -> RunDatasets:
    """The datasets that the run in the folder `run` was trained on, even if it was started from another folder.

    Raises DatasetError if it names none, or if they do not exist.
    """
    data, recorded = config.data, list_datasets(manifest)
    if data.dataset is None and not recorded:
        raise DatasetError(f"{run} does not name its dataset (data.dataset in its config.toml); give the folder of one")
    named = [data.dataset] if isinstance(data.dataset, str) else [part.folder for part in data.dataset or ()]
    if recorded and not (named and all(Path(folder).is_dir() for folder in named)):
        parts = tuple(
            MixedDataset(folder=source["folder"], weight=source.get("weight", 1), max_epochs=source.get("max_epochs"))
            for source in recorded
        )
        data = data.model_copy(update={"dataset": parts})
    return open_run_datasets(data)


def versions() -> dict[str, str]:
    """The installed versions of packtrain, Python and the libraries that affect results."""
    found = {"packtrain": packtrain.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The device's name, its memory in bytes, and the machine that it is in."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name() + " (its GPU)" * (device.type == "mps"),
        "device_type": device.type,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else psutil.virtual_memory().total,
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def read_git_commit() -> str | None:
    """Commit of the code in the current folder, with `-dirty` for uncommitted changes; None outside a repository."""
    try:
        # --exclude: otherwise the name of a tag would replace the hash.
        command = ["git", "describe", "--always", "--abbrev=64", "--exclude=*", "--dirty"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if found.returncode else found.stdout.strip()
