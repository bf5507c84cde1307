"""Decides how the scan and the tokenizing of all slices run over the workers, and when to stop early."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import SourceError
from packtrain.prepare.sources.row import BROKEN, NO_TEXT, NOT_UTF8
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.disk_budget import DiskBudget
from packtrain.prepare.steps.encode import tokenize_slice
from packtrain.prepare.steps.keep import read_keep
from packtrain.prepare.steps.ledger import Intake
from packtrain.prepare.steps.results import SCANS, TOKENS, Results
from packtrain.prepare.steps.scan import UNREADABLE, num_unreadable, read_notes, read_scan, scan_slice
from packtrain.prepare.workers.pool import Task, Workers

log = logging.getLogger("packtrain")

# What to do about rows that cannot be read.
_MENDING = {
    BROKEN: "mend the source",
    NO_TEXT: "set source.text_column",
    NOT_UTF8: "convert the source to UTF-8 (iconv does)",
}


def scan_slices(
    place: Results,
    plan: Slicing,
    slices: Sequence[Slice],
    workers: Workers,
    room: DiskBudget,
    on_rows: Callable[[int], None],
) -> int:
    """Scan those of these slices that are not scanned yet; how many. `on_rows` gets the rows scanned so far.

    Raises SourceError as soon as more rows cannot be read than source.max_bad_fraction allows of the whole plan, and
    DiskFullError as soon as `room` finds that the rest will not fit.
    """
    missing = missing_scans(place, slices)
    room.to_scan(missing, plan.rows)
    tasks = [Task(scan_slice, (place, work), work.describe()) for work in missing]
    done = sum(work.rows for work in slices) - sum(work.rows for work in missing)
    unreadable = 0
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        scan = read_scan(place, missing[number])
        unreadable += num_unreadable(scan)
        # Certain by now, however good the rest is: a large source need not be read to its end to be refused.
        if unreadable > plan.rows * place.recipe.source.max_bad_fraction:
            _refuse_unreadable(place, plan.slices, plan.rows)
        room.scanned(missing[number], int(scan["utf8_bytes"][scan["reason"] == 0].sum()))
        on_rows(done)
    return len(missing)


def missing_scans(place: Results, slices: Sequence[Slice]) -> list[Slice]:
    """Those of these slices that are not scanned yet."""
    there = {f"{SCANS}/{name}" for name in place.store.names(SCANS)}
    return [work for work in slices if not there.issuperset(place.stage_one_names(work))]


def _refuse_unreadable(place: Results, slices: Sequence[Slice], rows: int) -> None:
    intake = Intake()
    for work in slices:
        if place.store.exists(place.scan_name(work)):
            intake.add(read_scan(place, work), read_notes(place, work))
    bad = {reason: intake.dropped[reason] for reason in UNREADABLE if intake.dropped[reason]}
    examples = "; ".join(intake.samples[reason][0] for reason in bad)
    counted = ", ".join(f"{count} {reason}" for reason, count in bad.items())
    allowed = place.recipe.source.max_bad_fraction
    raise SourceError(
        f"{sum(bad.values())} of {rows} rows cannot be read ({counted}), more than source.max_bad_fraction={allowed} "
        f"allows; for example {examples}: {', '.join(_MENDING[reason] for reason in bad)}, or raise source.max_bad_fraction"
    )


def tokens_keys(place: Results, slices: Sequence[Slice], tokenizer: Tokenizer) -> list[str]:
    """Under which names the results of stage two lie, slice by slice."""
    return [place.tokens_key(work, read_keep(place, work), tokenizer.hash) for work in slices]


def tokenize(
    place: Results,
    slices: Sequence[Slice],
    keys: Sequence[str],
    tokenizer: Tokenizer,
    workers: Workers,
    room: DiskBudget,
    on_rows: Callable[[int], None],
) -> int:
    """Stage two on each of these slices that has no record under its key; how many there were.

    Raises DiskFullError as soon as `room` finds that the rest will not fit.
    """
    there = place.store.names(TOKENS)
    missing = [work for work, key in zip(slices, keys, strict=True) if f"{key}.json" not in there]
    key_of = dict(zip(slices, keys, strict=True))
    for work in slices:
        if f"{key_of[work]}.json" in there:
            room.measured(_record(place, key_of[work]))
    room.to_tokenize(place, missing)
    done = sum(work.rows for work in slices) - sum(work.rows for work in missing)
    tasks = [Task(tokenize_slice, (place, work, tokenizer.hash), work.describe()) for work in missing]
    for number, _ in workers.run(tasks):
        done += missing[number].rows
        record = _record(place, key_of[missing[number]])
        if "differs" in record["backend"]:
            log.warning(
                "%s is tokenized by tokenizers, as fastokens does not agree: %s",
                missing[number].describe(),
                record["backend"]["differs"],
            )
        room.tokenized(record)
        on_rows(done)
    return len(missing)


def _record(place: Results, key: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(place.store.read(f"{TOKENS}/{key}.json"))
    return record
