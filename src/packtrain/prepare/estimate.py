"""Decides what a sample of a source says about all of it: documents, tokens, disk, hours and copies, and how certain it is."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from packtrain.config.cores import count_cores
from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS, id_dtype
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ConfigError, DiskFullError, SourceError
from packtrain.prepare.sources.sides import is_part_held_out
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.choose import choose
from packtrain.prepare.steps.disk_budget import scan_bytes, sort_bytes
from packtrain.prepare.steps.encode import tokenize_slice
from packtrain.prepare.steps.job import Job, plan_job, settle_tokenizer
from packtrain.prepare.steps.ledger import Selection, merge_lengths
from packtrain.prepare.steps.passes import Progress, make_token_keys, read_record
from packtrain.prepare.steps.sampling import CopiesBound, Sample, bound_copies, draw_sample, source_bytes
from packtrain.prepare.steps.scan import read_scan, scan_slice
from packtrain.prepare.steps.text_loss import refuse_loss, sum_losses
from packtrain.prepare.steps.train_tokenizer import SAMPLE_BYTES
from packtrain.prepare.workers.pool import LocalWorkers, Task
from packtrain.storage.store import LocalStore

# Half of a 95 % interval of a normal distribution, in standard deviations.
_TWO_SIDED = 1.96


def estimate(recipe: Recipe, on_progress: Progress | None = None) -> dict[str, Any]:
    """Prepare a sample of a recipe's source in a temporary folder, and estimate the whole dataset, as JSON-able values.

    The same source and recipe give the same sample, so everything but the seconds is the same each time. Raises what
    `prepare` raises for source and tokenizer, and ConfigError for a function without source.max_documents.
    """
    if recipe.source.kind == "function" and recipe.source.max_documents is None:
        raise ConfigError(
            "--dry-run cannot know how many documents a function yields; write source.max_documents=N to try its first N"
        )
    with tempfile.TemporaryDirectory(prefix="packtrain-dry-run-") as temporary:
        store = LocalStore(Path(temporary))
        try:
            with store.writing():
                started = time.perf_counter()
                job = plan_job(recipe, store)
                planning_s = time.perf_counter() - started
                chosen = draw_sample(job.slicing)
                part = replace(job, slicing=Slicing(chosen.slices, job.slicing.revision))
                return _prepare_sample(job, part, chosen, planning_s, on_progress)
        except DiskFullError:
            raise DiskFullError(
                f"the disk of {Path(temporary).parent} has no room for a sample; set TMPDIR to a folder on another disk"
            ) from None


def _prepare_sample(
    job: Job, part: Job, chosen: Sample, planning_s: float, on_progress: Progress | None
) -> dict[str, Any]:
    recipe, slices = job.results.recipe, chosen.slices
    # The nodes of a cluster do not see the temporary folder.
    with LocalWorkers(count_cores() if recipe.prepare.executor != "local" else _count_workers(recipe)) as workers:
        scan_s = _time_slices(workers, slices, scan_slice, (part.results,), on_progress, 0)
        selection = choose(part.results, part.slicing, needs_both_sides=chosen.is_whole)
        if not sum(selection.kept.documents.values()):
            raise SourceError("no document of the sample is left after cleaning; relax clean and source.filter")
        started = time.perf_counter()
        tokenizer = settle_tokenizer(part)
        training_s = 0.0 if recipe.tokenizer.name else time.perf_counter() - started
        tokenize_s = _time_slices(workers, slices, tokenize_slice, (part.results, tokenizer.hash), on_progress, 1)
    keys = make_token_keys(part.results, slices, tokenizer)
    records = [read_record(part.results, key) for key in keys]
    for record in records:
        refuse_loss(record, recipe)
    return _Extrapolation(job, chosen, selection, records, tokenizer).report(scan_s, tokenize_s, training_s, planning_s)


class _Extrapolation:
    """From the records of a sample to the whole source."""

    def __init__(
        self, job: Job, chosen: Sample, selection: Selection, records: list[dict[str, Any]], tokenizer: Tokenizer
    ) -> None:
        self._job, self._chosen, self._selection, self._records = job, chosen, selection, records
        self._rows = sum(piece.rows for piece in chosen.slices)
        self._by_rows = job.slicing.rows / self._rows
        # The sizes of all files are known, and text follows them more closely than the number of rows.
        self._by_bytes = source_bytes(job.slicing.slices) / max(1, source_bytes(chosen.slices))
        self._tokenizer = tokenizer
        self._shards: list[dict[str, Any]] = [record["shards"] for record in records]
        self._every_shard = [shard for shards in self._shards for shard in shards.values()]

    def report(
        self, scan_s: list[float], tokenize_s: list[float], training_s: float, planning_s: float
    ) -> dict[str, Any]:
        recipe, selection = self._job.results.recipe, self._selection
        kept, intake, leaks = selection.kept, selection.intake, selection.copies.documents["in_validation"]
        tokens, documents = sum(self._tokens().values()), sum(kept.documents.values())
        longer_than = merge_lengths(self._records).longer_than
        return {
            "source": {"rows": self._job.slicing.rows, "bytes": source_bytes(self._job.slicing.slices)},
            "sample": {
                "rows": self._rows,
                "bytes": source_bytes(self._chosen.slices),
                "runs": sum(len(runs) for runs in self._chosen.runs),
                "is_whole": self._chosen.is_whole,
            },
            "documents": {
                **self._by_side({name: kept.documents[name] for name in SPLITS}, self._by_rows),
                "dropped": {
                    **{name: round(intake.dropped[name] * self._by_rows) for name in intake.reasons()},
                    **({"in_validation": round(leaks * self._by_rows)} if leaks else {}),
                },
            },
            "tokens": {**self._by_side(self._tokens(), self._by_bytes), "relative_error": self._relative_error()},
            "utf8_bytes": self._by_side({name: kept.utf8_bytes[name] for name in SPLITS}, self._by_bytes),
            "bytes_per_token": sum(kept.utf8_bytes.values()) / max(1, tokens),
            "tokens_per_document": tokens / documents,
            "longer_than": {key: value["documents"] / documents for key, value in longer_than.items()},
            "duplicates": vars(self._copies()),
            **self._loss(),
            "tokenizer": {"trained_on_sample": not self._chosen.is_whole and recipe.tokenizer.name is None},
            "disk": self._disk(),
            "time": self._time(scan_s, tokenize_s, training_s, planning_s),
        }

    def _by_side(self, counted: dict[str, int], times: float) -> dict[str, int]:
        """Counts of both sides. For a sample, their sum is divided as the recipe or the files say, which leaves less to chance."""
        if self._chosen.is_whole:
            return counted
        split, seen = self._job.results.recipe.split, sum(counted.values())
        if split.by in ("content", "tail"):
            fraction = split.validation_fraction
        elif split.by == "column":
            fraction = counted["validation"] / max(1, seen)
        else:
            parts = [part for piece in self._job.slicing.slices for part in piece.parts]
            held = sum(part.size for part in parts if is_part_held_out(part, split))
            fraction = held / max(1, sum(part.size for part in parts))
        total = round(seen * times)
        validation = round(total * fraction)
        return {"train": total - validation, "validation": validation}

    def _loss(self) -> dict[str, Any]:
        """What the tokenizer loses of the text, as in a ledger; nothing if it loses none."""
        loss, scales = sum_losses(self._records), {"documents": self._by_rows, "utf8_bytes": self._by_bytes}
        return (
            {"tokenizer_loss": {unit: self._by_side(loss[unit], times) for unit, times in scales.items()}}
            if loss
            else {}
        )

    def _tokens(self) -> dict[str, int]:
        return {name: sum(shards[name]["tokens"] for shards in self._shards if name in shards) for name in SPLITS}

    def _relative_error(self) -> float | None:
        """Half the 95 % interval of the number of tokens, relative to it, from how slices differ (Cochran 1977, 6.4)."""
        if self._chosen.is_whole:
            return 0.0
        tokens = np.array([sum(shard["tokens"] for shard in shards.values()) for shards in self._shards], dtype=float)
        sizes = np.array([source_bytes([piece]) for piece in self._chosen.slices], dtype=float)
        more = len(sizes) - 1
        if more < 1 or tokens.sum() == 0:
            return None
        residual = tokens - sizes * tokens.sum() / sizes.sum()
        deviation = math.sqrt(len(sizes) / more * float((residual**2).sum())) / float(tokens.sum())
        # Student's t, to the first term of its expansion.
        return deviation * (_TWO_SIDED + (_TWO_SIDED**3 + _TWO_SIDED) / (4 * more))

    def _copies(self) -> CopiesBound:
        runs = []
        for piece, sizes in zip(self._chosen.slices, self._chosen.runs, strict=True):
            scan = read_scan(self._job.results, piece)
            # Planning counts blank lines as rows; a scan does not.
            ends = np.cumsum(sizes)[:-1] * len(scan) // max(1, sum(sizes))
            runs += [part["content"][part["reason"] == 0] for part in np.split(scan, ends)]
        share = 1.0 if self._chosen.is_whole else self._rows / self._job.slicing.rows
        near_copies = self._selection.copies.documents["near_duplicates"]
        return bound_copies(runs, share, near_copies, has_near=self._job.results.recipe.dedup.near)

    def _disk(self) -> dict[str, int]:
        id_bytes = np.dtype(id_dtype(self._tokenizer.vocab_size)).itemsize
        tokens = sum(self._tokens().values()) * id_bytes * self._by_bytes
        final = sum(len(data) for data in self._tokenizer.files().values())
        documents = sum(shard["documents"] for shard in self._every_shard)
        final += round(tokens + documents * 8 * self._by_rows + self._source_files())
        rows, recipe = self._job.slicing.rows, self._job.results.recipe
        at_most = round(rows * scan_bytes(recipe) + max(rows * sort_bytes(recipe), final))
        return {"final": final, "at_most_while_working": at_most}

    def _source_files(self) -> float:
        """Bytes of all .src.parquet files, each of which has a fixed part besides what its documents take."""
        documents = np.array([shard["documents"] for shard in self._every_shard], dtype=float)
        sizes = np.array([shard["files"]["src.parquet"]["size"] for shard in self._every_shard], dtype=float)
        if documents.max() < 2 * documents.min():
            return self._by_rows * float(sizes.sum())
        each, fixed = np.polyfit(documents, sizes, 1)
        files = len(SPLITS) * len(self._job.slicing.slices)
        return self._by_rows * float(each * documents.sum()) + files * float(fixed)

    def _time(
        self, scan_s: list[float], tokenize_s: list[float], training_s: float, planning_s: float
    ) -> dict[str, float]:
        count = _count_workers(self._job.results.recipe)
        train_text = self._selection.kept.utf8_bytes["train"]
        training = training_s * min(SAMPLE_BYTES, train_text * self._by_bytes) / max(1, train_text)
        parts = {
            "plan_s": planning_s,
            "scan_s": self._whole_seconds(scan_s) / count,
            "train_tokenizer_s": training,
            "tokenize_s": self._whole_seconds(tokenize_s) / count,
        }
        return {"workers": count, **parts, "hours": sum(parts.values()) / 3600}

    def _whole_seconds(self, seconds: list[float]) -> float:
        """By the median of the slices: the first slice of each worker takes longer, as it loads the libraries."""
        pairs = zip(seconds, self._chosen.slices, strict=True)
        rate = statistics.median(taken / max(1, source_bytes([piece])) for taken, piece in pairs)
        return rate * source_bytes(self._job.slicing.slices)


def _count_workers(recipe: Recipe) -> int:
    return recipe.prepare.workers or count_cores()


def _time_slices(
    workers: LocalWorkers,
    slices: Sequence[Slice],
    step: Callable[..., None],
    arguments: tuple[Any, ...],
    on_progress: Progress | None,
    earlier_steps: int,
) -> list[float]:
    """Run one of two steps on each slice; returns the seconds that a worker took for each."""
    results, *others = arguments
    tasks = [Task(_time_slice, (step, results, piece, *others), piece.describe()) for piece in slices]
    taken = [0.0] * len(slices)
    rows = sum(piece.rows for piece in slices)
    done = earlier_steps * rows
    for number, seconds in workers.run(tasks):
        taken[number] = seconds
        done += slices[number].rows
        if on_progress is not None:
            on_progress(done, 2 * rows)
    return taken


def _time_slice(step: Callable[..., None], *arguments: Any, attempt: int) -> float:
    start = time.perf_counter()
    step(*arguments, attempt=attempt)
    return time.perf_counter() - start
