"""Decides how the rows to keep are read again, and that they are still what their scan says."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from packtrain.errors import SourceError
from packtrain.prepare.sources.slices import Row, Slice
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import open_tokenizer, read_scan, read_source_rows
from packtrain.prepare.steps.sides import CutPart, assign_sides, part_ids, part_text, read_cut
from packtrain.prepare.text.clean import Cleaner


class KeptDocument(NamedTuple):
    """A row to keep, with its text after cleaning and what its scan says of it."""

    row: Row
    text: str
    utf8_bytes: int
    content: bytes
    side: int


def read_kept_documents(
    results: Results, piece: Slice, keep: np.ndarray, want_ids: bool = False
) -> Iterator[KeptDocument]:
    """Yield the documents of the rows of a scanned slice that `keep`, bool[rows], marks: one for each, but two for the row
    that split.by=tail cuts. Raises SourceError if the source changed since.
    """
    scan = read_scan(results, piece)
    sides = assign_sides(results, piece, scan)
    cut = read_cut(results) if results.recipe.split.by == "tail" else None
    at = cut.row if cut is not None and cut.at and cut.piece == piece.number else None
    for position, row, text in read_marked_rows(results, piece, scan, keep, want_ids):
        if cut is not None and position == at:
            first, second = cut_row(results, row, text, cut.at)
            parts = ((first, 0), (second, 1)) if cut.keeps_first else ((second, 1),)
            for part, side in parts:
                yield KeptDocument(row._replace(ids=part.ids), part.text, part.utf8_bytes, part.content, side)
            continue
        content, _, num_bytes, _ = scan[position]
        yield KeptDocument(row, text, int(num_bytes), content.tobytes(), int(sides[position]))


def read_marked_rows(
    results: Results, piece: Slice, scan: np.ndarray, marked: np.ndarray, want_ids: bool = False
) -> Iterator[tuple[int, Row, str]]:
    """Yield the position, row and cleaned text of the rows that `marked`, bool[rows], marks. Raises SourceError as above."""
    clean = Cleaner(results.recipe.clean)
    count = 0
    for count, row in enumerate(read_source_rows(results, piece, want_ids), 1):
        if count > len(marked) or not marked[count - 1]:
            continue
        text = _clean_again(row.text or "", int(scan[count - 1]["text"]), clean)
        if text is None:
            raise _source_changed(results, piece, f"{row.file} row {row.row}")
        yield count - 1, row, text
    if count != len(marked):
        raise _source_changed(results, piece, piece.describe())


def cut_row(results: Results, row: Row, text: str, at: int) -> tuple[CutPart, CutPart]:
    """The two parts of a row that is cut after `at` characters of its cleaned text, or that many of its ids."""
    wanted = results.recipe.tokenizer
    if results.tokenizer_hash is None:
        return part_text(text, at)
    return part_ids(row.ids, text, at, open_tokenizer(results.store, results.tokenizer_hash), wanted.bos, wanted.eos)


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
