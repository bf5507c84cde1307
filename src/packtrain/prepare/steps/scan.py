"""Decides what a worker does with a slice: scan it (clean, hash), and later tokenize what was kept of it.

A result is named by a hash of all that it depends on, so what was done for one recipe or source serves any other with equal
inputs, and nothing else.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain.config.recipe import ID_KINDS
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.prepare.copies.signatures import packed_signatures, signer
from packtrain.prepare.sources import documents, imported
from packtrain.prepare.sources.row import BROKEN, FILTERED, NO_TEXT, NOT_UTF8, Row
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.results import SCAN, Results, tokenizer_name
from packtrain.prepare.text.clean import EMPTY, TOO_LONG, TOO_SHORT, Cleaner
from packtrain.prepare.text.identity import content_hash, held_out
from packtrain.storage.store import Store

UNREADABLE = (BROKEN, NO_TEXT, NOT_UTF8)

# Every scan numbers these alike, so that unreadable rows are known by number; what filters add follows, scan by scan.
REASONS = (*UNREADABLE, FILTERED, EMPTY, TOO_SHORT, TOO_LONG)

_SAMPLES = 3


class ScanNotes(NamedTuple):
    """What a scan says besides its rows: its reasons by position, and up to three dropped rows, in words, for each."""

    reasons: list[str]
    samples: dict[str, list[str]]


class Texts(NamedTuple):
    """A row after cleaning: its text, and why it is left out, if it is."""

    row: Row
    text: str
    reason: str | None
    detail: str


def source_rows(place: Results, work: Slice, want_ids: bool = False) -> Iterator[Row]:
    """The rows of a slice as they are, but for those of a source of ids, which are decoded."""
    recipe = place.recipe
    rows = documents.read(work, documents.reading_config(recipe.source), want_ids)
    if place.tokenizer_hash is None:
        return rows
    return imported.decoded(rows, open_tokenizer(place.store, place.tokenizer_hash), recipe.tokenizer)


def cleaned(place: Results, work: Slice) -> Iterator[Texts]:
    """The rows of a slice, cleaned, in source order; those left out are among them."""
    clean = Cleaner(place.recipe.clean) if place.recipe.source.kind not in ID_KINDS else _as_it_is
    for row in source_rows(place, work):
        if row.text is None:
            yield Texts(row, "", row.problem, row.detail)
        else:
            text, reason = clean(row.text)
            yield Texts(row, text, reason, "")


def _as_it_is(text: str) -> tuple[str, str | None]:
    """What a source of ids gets in place of cleaning: its ids are kept, unless they stand for no text at all."""
    return text, None if text else EMPTY


def scan_slice(place: Results, work: Slice, *, attempt: int) -> None:  # noqa: ARG001  stages are called alike
    """Stage one: write what has to be known of every row before the first is kept: a line of notes, then SCAN[rows].

    With dedup.near, the signatures of the clean rows are written before it.
    """
    records: list[tuple[bytes, int, int, int]] = []
    numbers = {reason: number for number, reason in enumerate(REASONS, 1)}
    samples: dict[str, list[str]] = {}
    sign = signer(place.recipe.dedup) if place.recipe.dedup.near else None
    signatures: list[npt.NDArray[np.uint32]] = []
    for row, text, reason, detail in cleaned(place, work):
        if reason is not None:
            size = len(text.encode("utf-8", "surrogatepass"))
            records.append((bytes(16), 0, size, numbers.setdefault(reason, len(numbers) + 1)))
            seen = samples.setdefault(reason, [])
            if len(seen) < _SAMPLES:
                seen.append(f"{row.file} row {row.row}" + (f": {detail}" if detail else ""))
            continue
        data = text.encode()
        if sign is not None:
            signatures.append(sign(text))
        records.append((content_hash(text), xxhash.xxh3_64_intdigest(data), len(data), 0))
    scan = np.zeros(len(records), dtype=SCAN)
    if records:
        content_column, *others = zip(*records, strict=True)
        scan["content"] = np.frombuffer(b"".join(content_column), "<u8").reshape(-1, 2)
        for name, column in zip(("text", "utf8_bytes", "reason"), others, strict=True):
            scan[name] = column
    notes = ScanNotes(list(numbers), samples)
    with place.store.writing():
        if sign is not None:
            place.store.write(place.near_name(work), packed_signatures(signatures, place.recipe.dedup))
        place.store.write(place.scan_name(work), json.dumps(notes._asdict()).encode() + b"\n" + scan.tobytes())


def read_scan(place: Results, work: Slice) -> npt.NDArray[Any]:
    """What `scan_slice` found of every row, SCAN[rows]."""
    data = place.store.read(place.scan_name(work))
    return np.frombuffer(data, dtype=SCAN, offset=data.index(b"\n") + 1)


def read_notes(place: Results, work: Slice) -> ScanNotes:
    """What the numbers of `read_scan(...)["reason"]` mean, and samples of each."""
    data = place.store.read(place.scan_name(work))
    return ScanNotes(**json.loads(data[: data.index(b"\n")]))


def num_unreadable(scan: npt.NDArray[Any]) -> int:
    """Rows that could not be read, as against those that cleaning left out."""
    return int(((scan["reason"] > 0) & (scan["reason"] <= len(UNREADABLE))).sum())


def sides(place: Results, work: Slice, scan: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """Of each row of a scan the position of its side in SPLITS; -1 of a row that was dropped."""
    side = np.full(len(scan), -1, dtype=np.int8)
    is_clean = scan["reason"] == 0
    if place.recipe.split.by == "files":
        by_name = [imported.is_held_out(part.file) for part in work.parts]
        side[is_clean] = np.repeat(by_name, [part.rows for part in work.parts])[is_clean]
    else:
        side[is_clean] = held_out(scan["content"][is_clean], place.recipe.split)
    return side


@lru_cache(maxsize=1)
def open_tokenizer(store: Store, tokenizer_hash: str) -> Tokenizer:
    """The tokenizer in the work folder; the same object while it is asked for again."""
    return load_tokenizer(store.folder(tokenizer_name(tokenizer_hash)))
