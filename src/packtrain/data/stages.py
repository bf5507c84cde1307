"""Decides what a worker does with a slice: scan it (clean, hash, split), and later tokenize what was kept of it."""

import array
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain.config.recipe import Recipe
from packtrain.data import documents
from packtrain.data.atomic import disk_errors, write_atomically
from packtrain.data.clean import EMPTY, TOO_LONG, TOO_SHORT, cleaner
from packtrain.data.delimited import BROKEN, FILTERED, NO_TEXT, NOT_UTF8
from packtrain.data.lengths import length_histogram, longer_than
from packtrain.data.shards import SPLITS, id_dtype
from packtrain.data.signatures import signer, write_signatures
from packtrain.data.slices import Row, Slice
from packtrain.data.split import content_hash, is_validation
from packtrain.data.tokenizer import Tokenizer, load_tokenizer
from packtrain.data.writer import ShardWriter
from packtrain.errors import SourceError, TokenizerError

UNREADABLE = (BROKEN, NO_TEXT, NOT_UTF8)
# Every scan numbers these alike, so that unreadable rows are known by number; what filters add follows, scan by scan.
REASONS = (*UNREADABLE, FILTERED, EMPTY, TOO_SHORT, TOO_LONG)
# Of a row: the content hash, a hash of the cleaned text, its UTF-8 bytes, 0 or 1 + the reason's position in its scan's
# `ScanNotes.reasons`, and its side.
SCAN = np.dtype(
    [("content", "<u8", (2,)), ("text", "<u8"), ("utf8_bytes", "<u8"), ("reason", "u1"), ("is_validation", "?")]
)
_SAMPLES = 3
_BATCH_BYTES = 1 << 19


@dataclass(frozen=True)
class Workplace:
    """What every slice's work needs: the recipe, and the folder where results are put."""

    recipe: Recipe
    folder: Path

    def scan_path(self, work: Slice) -> Path:
        return self.folder / "scan" / f"{work.name}.scan"

    def near_path(self, work: Slice) -> Path:
        return self.folder / "scan" / f"{work.name}.near"

    def keep_path(self, work: Slice) -> Path:
        return self.folder / "keep" / f"{work.name}.keep"

    def record_path(self, work: Slice) -> Path:
        return self.folder / "slices" / f"{work.name}.json"

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"


class ScanNotes(NamedTuple):
    """What a scan says besides its rows: its reasons by position, and up to three dropped rows, in words, for each."""

    reasons: list[str]
    samples: dict[str, list[str]]


def make_folders(place: Workplace) -> None:
    """Make the folders that the stages write to."""
    for name in ("scan", "keep", "slices", *SPLITS):
        (place.folder / name).mkdir(parents=True, exist_ok=True)


class Texts(NamedTuple):
    """A row after cleaning: its text, and why it is left out, if it is."""

    row: Row
    text: str
    reason: str | None
    detail: str


def cleaned(work: Slice, recipe: Recipe, want_ids: bool = False) -> Iterator[Texts]:
    """The rows of a slice, cleaned, in source order; those left out are among them."""
    clean = cleaner(recipe.clean)
    for row in documents.read(work, documents.reading_config(recipe.source), want_ids):
        if row.text is None:
            yield Texts(row, "", row.problem, row.detail)
        else:
            text, reason = clean(row.text)
            yield Texts(row, text, reason, "")


def scan_slice(place: Workplace, work: Slice, *, attempt: int) -> None:  # noqa: ARG001  stages are called alike
    """Stage one: write what has to be known of every row before the first is kept: a line of notes, then SCAN[rows].

    With dedup.near, the signatures of the clean rows are written beside it.
    """
    records: list[tuple[bytes, int, int, int, bool]] = []
    numbers = {reason: number for number, reason in enumerate(REASONS, 1)}
    samples: dict[str, list[str]] = {}
    sign = signer(place.recipe.dedup) if place.recipe.dedup.near else None
    signatures: list[npt.NDArray[np.uint32]] = []
    for row, text, reason, detail in cleaned(work, place.recipe):
        if reason is not None:
            size = len(text.encode("utf-8", "surrogatepass"))
            records.append((bytes(16), 0, size, numbers.setdefault(reason, len(numbers) + 1), False))
            seen = samples.setdefault(reason, [])
            if len(seen) < _SAMPLES:
                seen.append(f"{row.file} row {row.row}" + (f": {detail}" if detail else ""))
            continue
        data = text.encode()
        content = content_hash(text)
        side = is_validation(content, place.recipe.split)
        if sign is not None:
            signatures.append(sign(text))
        records.append((content, xxhash.xxh3_64_intdigest(data), len(data), 0, side))
    scan = np.zeros(len(records), dtype=SCAN)
    if records:
        content_column, *others = zip(*records, strict=True)
        scan["content"] = np.frombuffer(b"".join(content_column), "<u8").reshape(-1, 2)
        for name, column in zip(("text", "utf8_bytes", "reason", "is_validation"), others, strict=True):
            scan[name] = column
    notes = ScanNotes(list(numbers), samples)
    with disk_errors(place.folder):
        if sign is not None:
            write_signatures(place.near_path(work), signatures, place.recipe.dedup)
        write_atomically(place.scan_path(work), json.dumps(notes._asdict()).encode() + b"\n" + scan.tobytes())


def read_scan(place: Workplace, work: Slice) -> npt.NDArray[Any]:
    """What `scan_slice` found of every row, SCAN[rows]."""
    data = place.scan_path(work).read_bytes()
    return np.frombuffer(data, dtype=SCAN, offset=data.index(b"\n") + 1)


def read_notes(place: Workplace, work: Slice) -> ScanNotes:
    """What the numbers of `read_scan(...)["reason"]` mean, and samples of each."""
    with place.scan_path(work).open("rb") as file:
        return ScanNotes(**json.loads(file.readline()))


def num_unreadable(scan: npt.NDArray[Any]) -> int:
    """Rows that could not be read, as against those that cleaning left out."""
    return int(((scan["reason"] > 0) & (scan["reason"] <= len(UNREADABLE))).sum())


def write_keep(place: Workplace, work: Slice, keep: npt.NDArray[np.bool_]) -> None:
    """Put down which rows of a slice are to be tokenized, bool[rows]."""
    write_atomically(place.keep_path(work), len(keep).to_bytes(8, "little") + np.packbits(keep).tobytes())


def read_keep(place: Workplace, work: Slice) -> npt.NDArray[np.bool_]:
    """What `write_keep` put down."""
    data = place.keep_path(work).read_bytes()
    rows = int.from_bytes(data[:8], "little")
    return np.unpackbits(np.frombuffer(data, np.uint8, offset=8), count=rows).astype(np.bool_)


def keep_hash(keep: npt.NDArray[np.bool_]) -> str:
    """Names a choice of rows, so that a slice made for another choice is not taken for this one's."""
    return xxhash.xxh3_128_hexdigest(np.packbits(keep).tobytes() + len(keep).to_bytes(8, "little"))


def tokenize_slice(place: Workplace, work: Slice, *, attempt: int) -> None:
    """Stage two: write the shards of the rows that `write_keep` named, then the record that they are finished.

    A second attempt, after a worker died, takes smaller batches. The files are the same for any batch size.
    """
    tokenizer = _open_tokenizer(place.tokenizer_folder)
    dtype = id_dtype(tokenizer.vocab_size)
    keep = read_keep(place, work)
    with disk_errors(place.folder):
        writers = [ShardWriter(place.folder / name, work.name, dtype) for name in SPLITS]
        try:
            for batch in _batches(place, work, keep, _BATCH_BYTES >> (2 * (attempt - 1))):
                _tokenize(batch, tokenizer, place.recipe, writers)
            closed = {name: writer.close() for name, writer in zip(SPLITS, writers, strict=True)}
        except BaseException:
            for writer in writers:
                writer.abandon()
            raise
        lengths = [pair[1] for pair in closed.values() if pair is not None]
        record = {
            "keep": keep_hash(keep),
            "tokenizer": tokenizer.hash,
            "shards": {name: pair[0].model_dump() for name, pair in closed.items() if pair is not None},
            "lengths": length_histogram(lengths),
            "longer": longer_than(lengths),
        }
        write_atomically(place.record_path(work), json.dumps(record).encode())


class _Kept(NamedTuple):
    row: Row
    text: str
    utf8_bytes: int
    content: bytes
    side: int


def _batches(place: Workplace, work: Slice, keep: npt.NDArray[np.bool_], batch_bytes: int) -> Iterator[list[_Kept]]:
    known = read_scan(place, work)
    clean = cleaner(place.recipe.clean)
    rows = documents.read(work, documents.reading_config(place.recipe.source), want_ids=True)
    batch: list[_Kept] = []
    size = count = 0
    for count, row in enumerate(rows, 1):
        if count > len(keep) or not keep[count - 1]:
            continue
        content, text_hash, num_bytes, _, side = known[count - 1]
        text = row.text or ""
        # Most text comes clean; that it does is seen faster than made so.
        if xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) != text_hash:
            text, _ = clean(text)
            if xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) != text_hash:
                raise SourceError(f"{row.file} row {row.row} changed while it was prepared; run the same command again")
        batch.append(_Kept(row, text, int(num_bytes), content.tobytes(), int(side)))
        size += int(num_bytes)
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if count != len(keep):
        raise SourceError(f"{work.describe()} changed while it was prepared; run the same command again")
    if batch:
        yield batch


def _tokenize(batch: list[_Kept], tokenizer: Tokenizer, recipe: Recipe, writers: list[ShardWriter]) -> None:
    before = [tokenizer.bos_id] if recipe.tokenizer.bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if recipe.tokenizer.eos and tokenizer.eos_id is not None else []
    encoded = tokenizer.encode_batch([kept.text for kept in batch])
    for side, writer in enumerate(writers):
        # Five times as fast as a numpy array made from the lists.
        joined = array.array("I")
        lengths: list[int] = []
        utf8_bytes = 0
        for kept, ids in zip(batch, encoded, strict=True):
            if kept.side != side:
                continue
            for part in (before, ids, after):
                joined.fromlist(part)
            lengths.append(len(before) + len(ids) + len(after))
            utf8_bytes += kept.utf8_bytes
            writer.describe(kept.row.file, kept.row.row, kept.row.id, kept.content)
        if not lengths:
            continue
        stream = np.frombuffer(joined, dtype=np.uint32)
        if int(_control_table(tokenizer)[stream].sum()) != len(lengths) * (len(before) + len(after)):
            raise TokenizerError(
                f"the tokenizer makes control tokens from plain text (in {batch[0].row.file}, from row {batch[0].row.row}); "
                "a document could forge its own end: name another tokenizer"
            )
        writer.add(stream, lengths, utf8_bytes)


@lru_cache(maxsize=1)
def _open_tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@lru_cache(maxsize=1)
def _control_table(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    table = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    table[list(tokenizer.control_ids)] = True
    return table
