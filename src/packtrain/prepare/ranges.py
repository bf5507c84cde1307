"""Decides what each of several processes does for a dataset that they prepare together, sharing nothing but its folder.

Each process scans its range of the slices. Which documents are kept is known only when all slices are scanned; a process
that starts after that tokenizes its range. So the same command, run twice, does both. `prepare` then does what is missing
and finishes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import MANIFEST
from packtrain.errors import ConfigError
from packtrain.prepare.run import Prepared
from packtrain.prepare.steps import passes
from packtrain.prepare.steps.choose import choose
from packtrain.prepare.steps.disk_budget import DiskBudget
from packtrain.prepare.steps.finished import lock_dataset, read_finished
from packtrain.prepare.steps.job import plan_job, settle_tokenizer
from packtrain.storage.store import open_store


@dataclass(frozen=True)
class RangeDone:
    """What this run did for a range, and what is missing: slices that are not scanned yet, and whether the range is tokenized."""

    first: int
    stop: int
    slices: int
    scanned: int
    tokenized: int
    is_tokenized: bool
    unscanned: int


def parse_range(text: str) -> Callable[[int], tuple[int, int]]:
    """Turn `a:b` (slices a to b - 1; either may be left out) or `i/n` (part i of n equal parts, from 0) into a function.

    It takes the number of slices and gives the range. Raises ConfigError for anything else.
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
        f"--slice-range {text} is not a range; write FIRST:STOP, such as 0:16, or PART/PARTS with parts from 0, such as 3/16"
    )


def prepare_range(
    recipe: Recipe, out: str | Path, range_: str, *, on_progress: passes.Progress | None = None
) -> RangeDone | Prepared:
    """Do what is possible now for a range of slices, while other processes do theirs in the same folder.

    Returns a Prepared if the dataset is finished. Raises as `prepare` does.
    """
    chosen = parse_range(range_)
    store = open_store(out)
    with lock_dataset(store, shared=True):
        if store.exists(MANIFEST):
            return Prepared(store.where, read_finished(recipe, store), was_finished=True)
        job = plan_job(recipe, store)
        results, slicing = job.results, job.slicing
        first, stop = chosen(len(slicing.slices))
        own = slicing.slices[first:stop]
        progress = passes.PassProgress(sum(piece.rows for piece in own), on_progress)
        budget = DiskBudget(store, recipe, job.id_bytes)
        with passes.open_workers(recipe.prepare, store) as workers:
            scanned = passes.scan_slices(results, slicing, own, workers, budget, progress.scanned)
            unscanned = len(passes.find_unscanned(results, slicing.slices))
            tokenized = 0
            if not unscanned:
                choose(results, slicing)
                tokenizer = settle_tokenizer(job)
                keys = passes.make_token_keys(results, own, tokenizer)
                tokenized = passes.tokenize_slices(results, own, keys, tokenizer, workers, budget, progress.tokenized)
        return RangeDone(first, stop, len(slicing.slices), scanned, tokenized, not unscanned, unscanned)
