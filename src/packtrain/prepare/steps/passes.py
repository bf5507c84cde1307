"""Decides how all slices are scanned and tokenized: on which workers, and when to stop early."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from packtrain.config.cores import count_cores
from packtrain.config.prepare import PrepareConfig
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.disk_budget import DiskBudget
from packtrain.prepare.steps.encode import tokenize_slice
from packtrain.prepare.steps.results import SCANS, TOKENS, Results
from packtrain.prepare.steps.scan import read_keep, read_notes, read_scan, scan_slice
from packtrain.prepare.steps.text_loss import refuse_loss
from packtrain.prepare.steps.unreadable import UnreadableRows
from packtrain.prepare.workers.pool import LocalWorkers, Task
from packtrain.prepare.workers.ray import RayWorkers
from packtrain.storage.store import Store

Progress = Callable[[int, int], None]
"""Is called with documents done and documents in all."""
Workers = LocalWorkers | RayWorkers

log = logging.getLogger("packtrain")

# Relative costs of a document, so that a progress bar moves evenly.
_SCAN_COST, _TOKENIZE_COST = 1, 9


def open_workers(config: PrepareConfig, store: Store) -> Workers:
    """The workers that a recipe names, as a context; their results go to `store`."""
    if config.executor == "local":
        return LocalWorkers(config.workers or count_cores())
    # An existing cluster knows how many cores it has.
    count = config.workers or (count_cores() if config.ray_address is None else None)
    return RayWorkers(count, config.ray_address, store)


def scan_slices(
    results: Results,
    slicing: Slicing,
    slices: Sequence[Slice],
    workers: Workers,
    budget: DiskBudget,
    on_rows: Callable[[int], None],
) -> int:
    """Scan the slices that are not scanned yet; returns how many these were. `on_rows` gets the rows scanned so far.

    Raises SourceError as soon as more cannot be read than source.max_bad_fraction allows, of the whole source or of a file,
    and DiskFullError as soon as `budget` finds that the rest will not fit.
    """
    missing = find_unscanned(results, slices)
    budget.to_scan(missing, slicing.rows)
    tasks = [Task(scan_slice, (results, piece), piece.describe()) for piece in missing]
    done = sum(piece.rows for piece in slices) - sum(piece.rows for piece in missing)
    unreadable = UnreadableRows(results, slicing.slices)
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        scan = read_scan(results, missing[number])
        unreadable.add(missing[number], read_notes(results, missing[number]))
        budget.scanned(missing[number], int(scan["utf8_bytes"][scan["reason"] == 0].sum()))
        on_rows(done)
    return len(missing)


def find_unscanned(results: Results, slices: Sequence[Slice]) -> list[Slice]:
    """The slices that are not scanned yet."""
    existing = {f"{SCANS}/{name}" for name in results.store.names(SCANS)}
    return [piece for piece in slices if not existing.issuperset(results.scan_names(piece))]


def make_token_keys(results: Results, slices: Sequence[Slice], tokenizer: Tokenizer) -> list[str]:
    """The names of the tokenized results, slice by slice."""
    return [results.tokens_key(piece, read_keep(results, piece), tokenizer.hash) for piece in slices]


def tokenize_slices(
    results: Results,
    slices: Sequence[Slice],
    keys: Sequence[str],
    tokenizer: Tokenizer,
    workers: Workers,
    budget: DiskBudget,
    on_rows: Callable[[int], None],
) -> int:
    """Tokenize the slices without a record under their key; returns how many these were. `on_rows` gets the rows done so far.

    Raises TokenizerError as soon as a slice has lost text and the recipe does not allow it, and DiskFullError as soon as
    `budget` finds that the rest will not fit.
    """
    existing = results.store.names(TOKENS)
    missing: list[tuple[Slice, str]] = []
    for piece, key in zip(slices, keys, strict=True):
        if f"{key}.json" in existing:
            record = read_record(results, key)
            refuse_loss(record, results.recipe)
            budget.measured(record)
        else:
            missing.append((piece, key))
    budget.to_tokenize(results, [piece for piece, _ in missing])
    done = sum(piece.rows for piece in slices) - sum(piece.rows for piece, _ in missing)
    tasks = [Task(tokenize_slice, (results, piece, tokenizer.hash), piece.describe()) for piece, _ in missing]
    for number, _ in workers.run(tasks):
        piece, key = missing[number]
        done += piece.rows
        record = read_record(results, key)
        refuse_loss(record, results.recipe)
        if "differs" in record["backend"]:
            log.warning(
                "%s is tokenized by tokenizers, because fastokens gives other ids: %s",
                piece.describe(),
                record["backend"]["differs"],
            )
        budget.tokenized(record)
        on_rows(done)
    return len(missing)


def read_record(results: Results, key: str) -> dict[str, Any]:
    """What `tokenize_slice` recorded of a slice: its shards and the lengths of its documents."""
    record: dict[str, Any] = json.loads(results.store.read(f"{TOKENS}/{key}.json"))
    return record


class PassProgress:
    """Reports the progress of both passes as one count of documents."""

    def __init__(self, rows: int, report: Progress | None) -> None:
        self._rows, self._report = rows, report

    def scanned(self, rows: int) -> None:
        self._show(_SCAN_COST * rows)

    def tokenized(self, rows: int) -> None:
        self._show(_SCAN_COST * self._rows + _TOKENIZE_COST * rows)

    def _show(self, cost: int) -> None:
        if self._report is not None:
            self._report(cost // (_SCAN_COST + _TOKENIZE_COST), self._rows)
