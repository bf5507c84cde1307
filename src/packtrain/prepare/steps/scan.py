"""Decides what is noted of every row of a slice (hashes, size, why it is dropped), and how the rows to keep are read again."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import SourceError
from packtrain.prepare.copies.equal import hash_content, mark_validation
from packtrain.prepare.copies.signatures import make_signer, pack_signatures
from packtrain.prepare.sources import imported
from packtrain.prepare.sources.documents import read_rows
from packtrain.prepare.sources.slices import BROKEN, FILTERED, NO_TEXT, NOT_UTF8, TOO_LARGE, Row, Slice
from packtrain.prepare.steps.results import SCAN, Results, pack_keep, tokenizer_path
from packtrain.prepare.text.clean import EMPTY, TOO_LONG, TOO_SHORT, Cleaner
from packtrain.storage.store import Store

UNREADABLE = (BROKEN, NO_TEXT, NOT_UTF8, TOO_LARGE)

# Every scan numbers these alike, so unreadable rows are known by number. Reasons that filters give follow, scan by scan.
REASONS = (*UNREADABLE, FILTERED, EMPTY, TOO_SHORT, TOO_LONG)

_SAMPLES = 3


class ScanNotes(NamedTuple):
    """What a scan says besides its rows: the reasons by number, and up to three dropped rows for each, in words."""

    reasons: list[str]
    samples: dict[str, list[str]]
    unreadable: dict[str, tuple[int, int, int]]
    """For each file with unreadable rows in the slice: its rows there, the unreadable ones, and their bytes in the source."""


class CleanedRow(NamedTuple):
    """A row after cleaning: its text, and the reason to drop it or None."""

    row: Row
    text: str
    reason: str | None
    detail: str


class KeptDocument(NamedTuple):
    """A row to keep, with its text after cleaning and what its scan says of it."""

    row: Row
    text: str
    utf8_bytes: int
    content: bytes
    side: int


def scan_slice(results: Results, piece: Slice, *, attempt: int) -> None:  # noqa: ARG001  every task gets its attempt
    """Write the scan of a slice: a line of notes, then SCAN[rows]. With dedup.near, signatures of its clean rows come first."""
    records: list[tuple[bytes, int, int, int]] = []
    numbers = {reason: number for number, reason in enumerate(REASONS, 1)}
    samples: dict[str, list[str]] = {}
    sign = make_signer(results.recipe.dedup) if results.recipe.dedup.near else None
    signatures: list[np.ndarray] = []
    rows: Counter[str] = Counter()
    unreadable: Counter[str] = Counter()
    unreadable_bytes: Counter[str] = Counter()
    for row, text, reason, detail in clean_rows(results, piece):
        rows[row.file] += 1
        if reason in UNREADABLE:
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
    notes = ScanNotes(list(numbers), samples, tallies)
    with results.store.writing():
        if sign is not None:
            results.store.write(results.near_name(piece), pack_signatures(signatures, results.recipe.dedup))
        scan = json.dumps(notes._asdict()).encode() + b"\n" + _make_scan(records).tobytes()
        results.store.write(results.scan_name(piece), scan)


def clean_rows(results: Results, piece: Slice) -> Iterator[CleanedRow]:
    """Yield the rows of a slice, cleaned, in source order; dropped rows are among them."""
    clean = _keep_ids if results.recipe.source.gives_ids else Cleaner(results.recipe.clean)
    for row in read_source_rows(results, piece):
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


def read_scan(results: Results, piece: Slice) -> np.ndarray:
    """What `scan_slice` noted of every row, SCAN[rows]."""
    data = results.store.read(results.scan_name(piece))
    return np.frombuffer(data, dtype=SCAN, offset=data.index(b"\n") + 1)


def read_notes(results: Results, piece: Slice) -> ScanNotes:
    """What the numbers in `read_scan(...)["reason"]` mean, and samples of each."""
    data = results.store.read(results.scan_name(piece))
    return ScanNotes(**json.loads(data[: data.index(b"\n")]))


def assign_sides(results: Results, piece: Slice, scan: np.ndarray) -> np.ndarray:
    """For each row of a scan, the position of its side in SPLITS; -1 for a dropped row."""
    side = np.full(len(scan), -1, dtype=np.int8)
    is_clean = scan["reason"] == 0
    if results.recipe.split.by == "files":
        by_name = [imported.is_held_out(part.file) for part in piece.parts]
        side[is_clean] = np.repeat(by_name, [part.rows for part in piece.parts])[is_clean]
    else:
        side[is_clean] = mark_validation(scan["content"][is_clean], results.recipe.split)
    return side


def write_keep(results: Results, piece: Slice, keep: np.ndarray) -> None:
    """Store which rows of a slice are kept, bool[rows]."""
    results.store.write(results.keep_name(piece), pack_keep(keep))


def read_keep(results: Results, piece: Slice) -> np.ndarray:
    """Which rows of a slice are kept, bool[rows], as `write_keep` stored it."""
    data = results.store.read(results.keep_name(piece))
    rows = int.from_bytes(data[:8], "little")
    return np.unpackbits(np.frombuffer(data, np.uint8, offset=8), count=rows).astype(np.bool_)


def read_kept_documents(
    results: Results, piece: Slice, keep: np.ndarray, want_ids: bool = False
) -> Iterator[KeptDocument]:
    """Yield the rows of a scanned slice that `keep`, bool[rows], marks. Raises SourceError if the source changed since."""
    scan = read_scan(results, piece)
    sides = assign_sides(results, piece, scan)
    clean = Cleaner(results.recipe.clean)
    count = 0
    for count, row in enumerate(read_source_rows(results, piece, want_ids), 1):
        if count > len(keep) or not keep[count - 1]:
            continue
        content, text_hash, num_bytes, _ = scan[count - 1]
        text = _clean_again(row.text or "", int(text_hash), clean)
        if text is None:
            raise _source_changed(results, piece, f"{row.file} row {row.row}")
        yield KeptDocument(row, text, int(num_bytes), content.tobytes(), int(sides[count - 1]))
    if count != len(keep):
        raise _source_changed(results, piece, piece.describe())


@lru_cache(maxsize=1)
def open_tokenizer(store: Store, tokenizer_hash: str) -> Tokenizer:
    """The tokenizer in the work folder; the last one stays loaded."""
    return load_tokenizer(store.folder(tokenizer_path(tokenizer_hash)))


def _clean_again(raw: str, wanted: int, clean: Cleaner) -> str | None:
    """The cleaned text, recognized by its hash; None if the source changed. Most texts need no cleaning, few need filters."""
    for make in (lambda: raw, lambda: clean.light(raw)[0], lambda: clean(raw)[0]):
        text = make()
        if xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) == wanted:
            return text
    return None


def _source_changed(results: Results, piece: Slice, what: str) -> SourceError:
    """Drop the slice's scan, which would be wrong even if the source changes back; returns the error to raise."""
    results.store.remove([results.counts_name, *results.scan_names(piece)])
    return SourceError(f"{what} changed while it was prepared; run the same command again")


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
