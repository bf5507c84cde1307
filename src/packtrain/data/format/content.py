"""Decides how much of a dataset is read before it is trusted: all of its files, a sample of them, or none."""

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from packtrain.config.data import VerifyMode
from packtrain.data.format.manifest import SPLITS, ShardInfo, SplitName
from packtrain.data.format.shards import Dataset, refuse_shard
from packtrain.errors import DatasetError
from packtrain.storage.atomic import hash_file
from packtrain.storage.regular import explain

SAMPLE_BYTES = 1 << 30
"""Read at most for a sample, give or take a shard: a few seconds."""

_Shard = tuple[SplitName, ShardInfo]


def check_content(
    dataset: Dataset,
    mode: VerifyMode,
    *,
    sides: Sequence[SplitName] = SPLITS,
    seed: int | None = None,
    budget: int = SAMPLE_BYTES,
    share: tuple[int, int] = (0, 1),
    should_stop: Callable[[], bool] = lambda: False,
) -> int:
    """Compare files of a dataset with the hashes in its manifest, and give the bytes that were read.

    `full` reads every file; `sample` reads ids and indexes of random shards, drawn with `seed`, up to `budget` bytes: half of
    it for the validation side, so that a dataset within the budget is read whole. `share` is (i, n) for the i-th of n processes that
    divide the work. Stops early, without a word, once `should_stop` says so. Raises DatasetError that names the shard.
    """
    if mode == "none":
        return 0
    every = [(side, shard) for side in SPLITS if side in sides for shard in dataset.manifest.splits.get(side, ())]
    chosen = every if mode == "full" else list(_draw(every, random.Random(seed), budget))
    suffixes = ("tok", "idx.npy", "src.parquet") if mode == "full" else ("tok", "idx.npy")
    done = 0
    for side, shard in chosen[share[0] :: share[1]]:
        for suffix in suffixes:
            if should_stop():
                return done
            compare_hash(dataset, side, shard, suffix)
            done += shard.files[suffix].size
        split = dataset.split(side)
        split.shard_ends(split.shards.index(shard))
    return done


def check_what_is_read(dataset: Dataset) -> None:
    """From now on, compare each file of a dataset with its hash before it is first read, instead of a sample before all of it."""
    for side in SPLITS:
        check = functools.partial(compare_hash, dataset, side)
        known: set[tuple[str, str]] = set()

        def check_once(shard: ShardInfo, suffix: str, check: Callable[..., None] = check, known: Any = known) -> None:
            if (shard.name, suffix) not in known:
                check(shard, suffix)
                known.add((shard.name, suffix))

        dataset.split(side).before_reading = check_once


def _draw(every: Sequence[_Shard], draw: random.Random, budget: int) -> Iterator[_Shard]:
    """Random shards: validation until half the budget is spent, then training, then what is left of validation."""
    left = budget
    waiting: list[_Shard] = []
    for side, until in (("validation", budget // 2), ("train", 0)):
        found = [entry for entry in every if entry[0] == side]
        for number, entry in enumerate(draw.sample(found, len(found))):
            # One shard of each side at least.
            if number and left <= until:
                waiting.append(entry)
                continue
            left -= _size(entry)
            yield entry
    for entry in waiting:
        if left <= 0:
            return
        left -= _size(entry)
        yield entry


def _size(entry: _Shard) -> int:
    return entry[1].files["tok"].size + entry[1].files["idx.npy"].size


def compare_hash(dataset: Dataset, side: SplitName, shard: ShardInfo, suffix: str) -> None:
    """Raise DatasetError unless a file of a shard has the hash that the manifest says."""
    path = dataset.folder / side / f"{shard.name}.{suffix}"
    try:
        if hash_file(path) == shard.files[suffix].hash:
            return
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({explain(error)})") from None
    problem = f"the content of {path.name} changed, as its hash is not the one in the manifest"
    raise refuse_shard(dataset.folder, side, shard, problem)
