"""Decides what one of several processes does of a dataset that they prepare together, with nothing but the folder they share.

Each scans its range of the slices. Which documents are kept is known only when all are scanned; whoever comes after that
tokenizes its range, so the same command, given twice, does both. `prepare` then does what is missing and finishes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import MANIFEST
from packtrain.errors import ConfigError
from packtrain.prepare.run import Prepared, Progress, Shown, already_finished
from packtrain.prepare.steps.choose import choose
from packtrain.prepare.steps.disk_budget import DiskBudget
from packtrain.prepare.steps.job import begin, id_bytes, settle_tokenizer
from packtrain.prepare.steps.passes import missing_scans, scan_slices, tokenize, tokens_keys
from packtrain.prepare.steps.workspace import lock_dataset
from packtrain.prepare.workers.executors import open_workers
from packtrain.storage.store import open_store


@dataclass(frozen=True)
class RangeDone:
    """What was done of a range just now, and what the whole still lacks; `is_tokenized` says that the range is complete."""

    first: int
    stop: int
    slices: int
    scanned: int
    tokenized: int
    is_tokenized: bool
    unscanned: int


def parse_range(text: str) -> Callable[[int], tuple[int, int]]:
    """What `a:b` (slices a to b - 1, either may be left out) or `i/n` (the i-th of n equal parts, from 0) means of a count.

    Raises ConfigError for anything else.
    """
    if match := re.fullmatch(r"(\d+)/(\d+)", text):
        part, parts = int(match[1]), int(match[2])
        if part < parts:
            return lambda count: (count * part // parts, count * (part + 1) // parts)
    if match := re.fullmatch(r"(\d*):(\d*)", text):
        first, stop = int(match[1] or 0), int(match[2]) if match[2] else None
        if stop is None or first < stop:
            return lambda count: (min(first, count), count if stop is None else min(stop, count))
    raise ConfigError(
        f"--slice-range {text} is no range; write FIRST:STOP, such as 0:16, or PART/PARTS with parts from 0, such as 3/16"
    )


def prepare_range(
    recipe: Recipe, out: str | Path, range_: str, *, on_progress: Progress | None = None
) -> RangeDone | Prepared:
    """Do what can be done for a range of slices, beside other processes that do theirs in the same folder.

    Gives a Prepared if the dataset is finished. Raises as `prepare` does.
    """
    chosen = parse_range(range_)
    store = open_store(out)
    with lock_dataset(store, shared=True):
        if store.exists(MANIFEST):
            return already_finished(recipe, store)
        job = begin(recipe, store)
        place, plan = job.place, job.plan
        first, stop = chosen(len(plan.slices))
        own = plan.slices[first:stop]
        progress = Shown(sum(work.rows for work in own), on_progress)
        room = DiskBudget(store, recipe, id_bytes(job))
        with open_workers(recipe.prepare, store) as workers:
            scanned = scan_slices(place, plan, own, workers, room, progress.scanned)
            unscanned = len(missing_scans(place, plan.slices))
            tokenized = 0
            if not unscanned:
                choose(place, plan)
                tokenizer = settle_tokenizer(job)
                keys = tokens_keys(place, own, tokenizer)
                tokenized = tokenize(place, own, keys, tokenizer, workers, room, progress.tokenized)
        return RangeDone(first, stop, len(plan.slices), scanned, tokenized, not unscanned, unscanned)
