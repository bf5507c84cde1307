"""Decides what a worker does with a slice: scan it (clean, hash), and later tokenize what was kept of it.

A result is named by a hash of all that it depends on, so what was done for one recipe or source serves any other with equal
inputs, and nothing else.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain import __version__
from packtrain.config.recipe import ID_KINDS, Recipe
from packtrain.data import documents, imported
from packtrain.data.clean import EMPTY, TOO_LONG, TOO_SHORT, Cleaner
from packtrain.data.delimited import BROKEN, FILTERED, NO_TEXT, NOT_UTF8
from packtrain.data.locks import WORK_FOLDER
from packtrain.data.shards import FORMAT_VERSION, canonical_json
from packtrain.data.signatures import algorithm_version, packed_signatures, signer
from packtrain.data.slices import Row, Slice
from packtrain.data.split import content_hash, held_out
from packtrain.data.store import Store
from packtrain.data.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import SourceError

UNREADABLE = (BROKEN, NO_TEXT, NOT_UTF8)
# Every scan numbers these alike, so that unreadable rows are known by number; what filters add follows, scan by scan.
REASONS = (*UNREADABLE, FILTERED, EMPTY, TOO_SHORT, TOO_LONG)
# Of a row: the content hash, a hash of the cleaned text, its UTF-8 bytes, and 0 or 1 + the reason's position in its scan's
# `ScanNotes.reasons`.
SCAN = np.dtype([("content", "<u8", (2,)), ("text", "<u8"), ("utf8_bytes", "<u8"), ("reason", "u1")])
# Of a recipe, what no scan depends on; a key of a recipe that is not named here counts.
_NOT_FOR_SCANS = ("prepare", "tokenizer", "split", "dedup")
_NOT_FOR_SCANS_OF_SOURCE = (
    *("path", "repo", "config", "split", "revision", "function"),
    *("id_column", "max_documents", "max_bad_fraction"),
)
_SAMPLES = 3
SCANS, TOKENS = f"{WORK_FOLDER}/scan", f"{WORK_FOLDER}/tokens"


@dataclass(frozen=True)
class Workplace:
    """What every slice's work needs: the recipe, where results are put, and which choice of documents it is for."""

    recipe: Recipe
    store: Store
    choice: str = ""
    tokenizer_hash: str | None = None
    """Of a source of ids, what a scan decodes them with."""

    def scan_key(self, work: Slice) -> str:
        return f"{self._scan_inputs}{work.fingerprint}"

    def scan_name(self, work: Slice) -> str:
        return f"{SCANS}/{_key(self.scan_key(work))}.scan"

    def near_name(self, work: Slice) -> str:
        return f"{SCANS}/{_key((self.scan_key(work), self._near_inputs))}.near"

    def keep_name(self, work: Slice) -> str:
        return f"{WORK_FOLDER}/keep-{self.choice}/{work.name}.keep"

    @property
    def counts_name(self) -> str:
        """The counts of the choice, written when it is complete."""
        return f"{WORK_FOLDER}/keep-{self.choice}/counts.json"

    def tokens_key(self, work: Slice, keep: npt.NDArray[np.bool_], tokenizer_hash: str) -> str:
        """Names the shards and the record of a slice in the folder TOKENS."""
        recipe = self.recipe
        around = (recipe.tokenizer.bos, recipe.tokenizer.eos, recipe.source.id_column)
        inputs = (self.scan_key(work), _keep_hash(keep), recipe.split.model_dump(), tokenizer_hash, around)
        return _key((FORMAT_VERSION, *inputs))

    @cached_property
    def _scan_inputs(self) -> str:
        tree = self.recipe.model_dump(mode="json", exclude=set(_NOT_FOR_SCANS))
        for key in _NOT_FOR_SCANS_OF_SOURCE:
            del tree["source"][key]
        return _key((__version__, SCAN.descr, tree, self.tokenizer_hash))

    @cached_property
    def _near_inputs(self) -> tuple[int, ...] | None:
        dedup = self.recipe.dedup
        if not dedup.near:
            return None
        return (algorithm_version(), dedup.near_words, dedup.near_bands, dedup.near_band_rows)

    def stage_one_names(self, work: Slice) -> tuple[str, ...]:
        """What `scan_slice` writes."""
        names = (self.scan_name(work),)
        return (self.near_name(work), *names) if self.recipe.dedup.near else names


def choice_key(place: Workplace, slices: Sequence[Slice]) -> str:
    """Names the choice among the documents of these slices."""
    recipe = place.recipe
    scans = [place.stage_one_names(work) for work in slices]
    return _key((scans, recipe.dedup.model_dump(), recipe.split.model_dump(), recipe.source.max_bad_fraction))


def tokenizer_name(tokenizer_hash: str) -> str:
    """The folder of a tokenizer."""
    return f"{WORK_FOLDER}/tokenizer-{tokenizer_hash[:32]}"


def _key(inputs: Any) -> str:
    return hashlib.sha256(canonical_json(inputs)).hexdigest()[:32]


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


def source_rows(place: Workplace, work: Slice, want_ids: bool = False) -> Iterator[Row]:
    """The rows of a slice as they are, but for those of a source of ids, which are decoded."""
    recipe = place.recipe
    rows = documents.read(work, documents.reading_config(recipe.source), want_ids)
    if place.tokenizer_hash is None:
        return rows
    return imported.decoded(rows, open_tokenizer(place.store, place.tokenizer_hash), recipe.tokenizer)


def cleaned(place: Workplace, work: Slice) -> Iterator[Texts]:
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


def scan_slice(place: Workplace, work: Slice, *, attempt: int) -> None:  # noqa: ARG001  stages are called alike
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


def read_scan(place: Workplace, work: Slice) -> npt.NDArray[Any]:
    """What `scan_slice` found of every row, SCAN[rows]."""
    data = place.store.read(place.scan_name(work))
    return np.frombuffer(data, dtype=SCAN, offset=data.index(b"\n") + 1)


def read_notes(place: Workplace, work: Slice) -> ScanNotes:
    """What the numbers of `read_scan(...)["reason"]` mean, and samples of each."""
    data = place.store.read(place.scan_name(work))
    return ScanNotes(**json.loads(data[: data.index(b"\n")]))


def num_unreadable(scan: npt.NDArray[Any]) -> int:
    """Rows that could not be read, as against those that cleaning left out."""
    return int(((scan["reason"] > 0) & (scan["reason"] <= len(UNREADABLE))).sum())


def sides(place: Workplace, work: Slice, scan: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """Of each row of a scan the position of its side in SPLITS; -1 of a row that was dropped."""
    side = np.full(len(scan), -1, dtype=np.int8)
    is_clean = scan["reason"] == 0
    if place.recipe.split.by == "files":
        by_name = [imported.is_held_out(part.file) for part in work.parts]
        side[is_clean] = np.repeat(by_name, [part.rows for part in work.parts])[is_clean]
    else:
        side[is_clean] = held_out(scan["content"][is_clean], place.recipe.split)
    return side


def write_keep(place: Workplace, work: Slice, keep: npt.NDArray[np.bool_]) -> None:
    """Put down which rows of a slice are to be tokenized, bool[rows]."""
    place.store.write(place.keep_name(work), _packed(keep))


def read_keep(place: Workplace, work: Slice) -> npt.NDArray[np.bool_]:
    """What `write_keep` put down."""
    data = place.store.read(place.keep_name(work))
    rows = int.from_bytes(data[:8], "little")
    return np.unpackbits(np.frombuffer(data, np.uint8, offset=8), count=rows).astype(np.bool_)


def _packed(keep: npt.NDArray[np.bool_]) -> bytes:
    return len(keep).to_bytes(8, "little") + np.packbits(keep).tobytes()


def _keep_hash(keep: npt.NDArray[np.bool_]) -> str:
    return xxhash.xxh3_128_hexdigest(_packed(keep))


class Kept(NamedTuple):
    """A row to keep, with its text after cleaning and what its scan says of it."""

    row: Row
    text: str
    utf8_bytes: int
    content: bytes
    side: int


def kept_rows(place: Workplace, work: Slice, keep: npt.NDArray[np.bool_], want_ids: bool = False) -> Iterator[Kept]:
    """The rows of a scanned slice that `keep` (bool[rows]) names. Raises SourceError if the source is not as it was."""
    known = read_scan(place, work)
    side_of = sides(place, work, known)
    clean = Cleaner(place.recipe.clean)
    rows = source_rows(place, work, want_ids)
    count = 0
    for count, row in enumerate(rows, 1):
        if count > len(keep) or not keep[count - 1]:
            continue
        content, text_hash, num_bytes, _ = known[count - 1]
        text = _with_hash(row.text or "", int(text_hash), clean)
        if text is None:
            raise _changed(place, work, f"{row.file} row {row.row}")
        yield Kept(row, text, int(num_bytes), content.tobytes(), int(side_of[count - 1]))
    if count != len(keep):
        raise _changed(place, work, work.describe())


def _changed(place: Workplace, work: Slice, what: str) -> SourceError:
    """The error for a source that is not as it was scanned. The scan, of no use to a source that changes back, is dropped."""
    place.store.remove([place.counts_name, *place.stage_one_names(work)])
    return SourceError(f"{what} changed while it was prepared; run the same command again")


def _with_hash(raw: str, wanted: int, clean: Cleaner) -> str | None:
    """What cleaning once made of a text, known by its hash: most text comes clean, and few filters change any."""
    for made in (lambda: raw, lambda: clean.light(raw)[0], lambda: clean(raw)[0]):
        text = made()
        if xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) == wanted:
            return text
    return None


@lru_cache(maxsize=1)
def open_tokenizer(store: Store, tokenizer_hash: str) -> Tokenizer:
    """The tokenizer in the work folder; the same object while it is asked for again."""
    return load_tokenizer(store.folder(tokenizer_name(tokenizer_hash)))
