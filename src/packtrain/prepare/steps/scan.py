"""Decides what is noted of every row of a slice: hashes, size, and why it is dropped."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import SourceError
from packtrain.prepare.copies.equal import hash_content
from packtrain.prepare.copies.signatures import make_signer, pack_signatures
from packtrain.prepare.sources import imported
from packtrain.prepare.sources.documents import read_rows, read_with_values
from packtrain.prepare.sources.slices import BROKEN, FILTERED, NO_TEXT, NOT_UTF8, TOO_LARGE, Row, Slice
from packtrain.prepare.steps.results import SCAN, Results, pack_keep, tokenizer_path
from packtrain.prepare.steps.sides import SideReader
from packtrain.prepare.text.clean import EMPTY, TOO_LONG, TOO_SHORT, Cleaner
from packtrain.storage.store import Store

UNREADABLE = (BROKEN, NO_TEXT, NOT_UTF8, TOO_LARGE)

# Every scan numbers these alike, so unreadable rows are known by number. Reasons that filters give follow, scan by scan.
REASONS = (*UNREADABLE, FILTERED, EMPTY, TOO_SHORT, TOO_LONG)

_SAMPLES = 3


class ScanNotes(NamedTuple):
    """What a scan says besides its rows."""

    reasons: list[str]
    """By number."""
    samples: dict[str, list[str]]
    """Up to three dropped rows for each reason, in words."""
    rows: list[int]
    """Of each file of the slice. Planning counts blank lines too, which are no rows."""
    unreadable: dict[str, tuple[int, int, int]]
    """For each file with unreadable rows in the slice: its rows there, the unreadable ones, and their bytes in the source."""


class CleanedRow(NamedTuple):
    """A row after cleaning: its text, and the reason to drop it or None."""

    row: Row
    text: str
    reason: str | None
    detail: str


def scan_slice(results: Results, piece: Slice, *, attempt: int) -> None:  # noqa: ARG001  every task gets its attempt
    """Write the scan of a slice: a line of notes, then SCAN[rows].

    With dedup.near, signatures of its clean rows come first, and with split.by=column the sides of its rows.
    """
    recipe = results.recipe
    records: list[tuple[bytes, int, int, int]] = []
    numbers = {reason: number for number, reason in enumerate(REASONS, 1)}
    samples: dict[str, list[str]] = {}
    rows = dict.fromkeys((part.file for part in piece.parts), 0)
    sign = make_signer(recipe.dedup) if recipe.dedup.near else None
    signatures: list[np.ndarray] = []
    unreadable: Counter[str] = Counter()
    unreadable_bytes: Counter[str] = Counter()
    sides = SideReader(results) if recipe.split.by == "column" else None
    for row, text, reason, detail in clean_rows(results, piece, with_values=sides is not None):
        rows[row.file] += 1
        if sides is not None:
            sides.add(row, is_clean=reason is None)
        if reason in UNREADABLE and not row.is_null:
            unreadable[row.file] += 1
            unreadable_bytes[row.file] += row.size
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
        records.append((hash_content(text), xxhash.xxh3_64_intdigest(data), len(data), 0))
    tallies = {file: (rows[file], count, unreadable_bytes[file]) for file, count in unreadable.items()}
    notes = ScanNotes(list(numbers), samples, list(rows.values()), tallies)
    with results.store.writing():
        if sign is not None:
            results.store.write(results.near_name(piece), pack_signatures(signatures, recipe.dedup))
        if sides is not None:
            results.store.write(results.sides_name(piece), sides.pack())
        scan = json.dumps(notes._asdict()).encode() + b"\n" + _make_scan(records).tobytes()
        results.store.write(results.scan_name(piece), scan)


def clean_rows(results: Results, piece: Slice, *, with_values: bool = False) -> Iterator[CleanedRow]:
    """Yield the rows of a slice, cleaned, in source order; dropped rows are among them.

    The `id` of each row is its value of split.column `with_values`, else None.
    """
    clean = _keep_ids if results.recipe.source.gives_ids else Cleaner(results.recipe.clean)
    for row in _read_values(results, piece) if with_values else read_source_rows(results, piece):
        if row.text is None:
            yield CleanedRow(row, "", row.problem, row.detail)
        else:
            text, reason = clean(row.text)
            yield CleanedRow(row, text, reason, "")


def read_source_rows(results: Results, piece: Slice, want_ids: bool = False) -> Iterator[Row]:
    """Yield the rows of a slice as they are in the source; token ids are decoded."""
    rows = read_rows(piece, results.recipe.source, want_ids)
    if results.tokenizer_hash is None:
        return rows
    tokenizer = open_tokenizer(results.store, results.tokenizer_hash)
    return imported.decode_rows(rows, tokenizer, results.recipe.tokenizer)


def _read_values(results: Results, piece: Slice) -> Iterator[Row]:
    try:
        yield from read_rows(piece, read_with_values(results.recipe), want_ids=True)
    except SourceError as error:
        # Read in place of the id, the column is missed under its name.
        raise SourceError(str(error).replace("source.id_column", "split.column")) from None


def read_scan(results: Results, piece: Slice) -> np.ndarray:
    """What `scan_slice` noted of every row, SCAN[rows]."""
    data = results.store.read(results.scan_name(piece))
    return np.frombuffer(data, dtype=SCAN, offset=data.index(b"\n") + 1)


def read_notes(results: Results, piece: Slice) -> ScanNotes:
    """What the numbers in `read_scan(...)["reason"]` mean, and samples of each."""
    data = results.store.read(results.scan_name(piece))
    return ScanNotes(**json.loads(data[: data.index(b"\n")]))


def write_keep(results: Results, piece: Slice, keep: np.ndarray) -> None:
    """Store which rows of a slice are kept, bool[rows]."""
    results.store.write(results.keep_name(piece), pack_keep(keep))


def read_keep(results: Results, piece: Slice) -> np.ndarray:
    """Which rows of a slice are kept, bool[rows], as `write_keep` stored it."""
    data = results.store.read(results.keep_name(piece))
    rows = int.from_bytes(data[:8], "little")
    return np.unpackbits(np.frombuffer(data, np.uint8, offset=8), count=rows).astype(np.bool_)


@lru_cache(maxsize=1)
def open_tokenizer(store: Store, tokenizer_hash: str) -> Tokenizer:
    """The tokenizer in the work folder; the last one stays loaded."""
    return load_tokenizer(store.folder(tokenizer_path(tokenizer_hash)))


def _keep_ids(text: str) -> tuple[str, str | None]:
    """Takes the place of cleaning for a source of ids: the ids are kept unless they stand for no text at all."""
    return text, None if text else EMPTY


def _make_scan(records: list[tuple[bytes, int, int, int]]) -> np.ndarray:
    scan = np.zeros(len(records), dtype=SCAN)
    if records:
        contents, *others = zip(*records, strict=True)
        scan["content"] = np.frombuffer(b"".join(contents), "<u8").reshape(-1, 2)
        for name, column in zip(("text", "utf8_bytes", "reason"), others, strict=True):
            scan[name] = column
    return scan
