"""Decides whether the documents of a finished dataset are on the sides that its recipe says, and how many are on both."""

from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from packtrain.config.base import Section
from packtrain.config.split import SplitConfig
from packtrain.data.format.manifest import Manifest, ShardInfo, SplitName
from packtrain.data.format.shards import Dataset, Split
from packtrain.errors import DatasetError
from packtrain.prepare.copies.equal import mark_validation
from packtrain.prepare.sources.sides import is_held_out

S = TypeVar("S", bound=Section)


def find_side_problem(dataset: Dataset, name: SplitName, shard: ShardInfo) -> str | None:
    """A document on the wrong side, as far as content, names of files or source order say; None if there is none."""
    config = split_config(dataset.manifest)
    split = dataset.split(name)
    number = split.shards.index(shard)
    if config.by == "content":
        hashes = _read_hashes(split, number)
        wrong = np.flatnonzero(mark_validation(hashes, config) != (name == "validation"))
        says = "its content hash and the recipe's split"
    elif config.by == "files":
        files = split.sources_of_shard(number, ["file"])["file"].to_pylist()
        held = {file: is_held_out(file, config.validation_files) for file in set(files)}
        wrong = np.flatnonzero([held[file] != (name == "validation") for file in files])
        says = "the name of its file and the recipe's split"
    elif config.by == "tail":
        last = max((s.name for s in dataset.split("train").shards), default="")
        wrong = np.arange(int(name == "validation" and shard.name < last))
        says = "its place in the source, which is before some of the training text"
    else:
        return None
    return f"document {int(wrong[0])} of it belongs to the other side, by {says}" if len(wrong) else None


def count_leaked(dataset: Dataset) -> int:
    """How many validation documents are in training too. By content there is none if every document is on its side."""
    if split_config(dataset.manifest).by == "content":
        return 0
    validation = dataset.split("validation")
    held = [_read_hashes(validation, number) for number in range(len(validation.shards))]
    known, counts = np.unique(_as_bytes(np.concatenate([np.empty((0, 2), np.uint64), *held])), return_counts=True)
    is_leaked = np.zeros(len(known), dtype=np.bool_)
    train = dataset.split("train")
    for number in range(len(train.shards)) if len(known) else ():
        is_leaked |= np.isin(known, _as_bytes(_read_hashes(train, number)))
    return int(counts[is_leaked].sum())


def _read_hashes(split: Split, shard: int) -> np.ndarray:
    """The content hashes of a shard, uint64[documents, 2]."""
    hashes = split.sources_of_shard(shard, ["hash"])["hash"].to_pylist()
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)


def _as_bytes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view("S16").reshape(-1)


def split_config(manifest: Manifest) -> SplitConfig:
    """How the recipe of a dataset says it is split."""
    return read_recipe(SplitConfig, manifest.recipe.get("split") or {})


def read_recipe(kind: type[S], tree: Any) -> S:
    """A recorded recipe or a section of one. Raises DatasetError if this version cannot read it."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise DatasetError(
            f"this version cannot read the recipe in the manifest ({reason}); verify it with the version that prepared it"
        ) from None
