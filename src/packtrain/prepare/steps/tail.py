"""Decides where split.by=tail cuts the text, so that its last part is held out, and that no part equals a document across the cut."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from packtrain.prepare.sources.slices import Row, Slice, Slicing
from packtrain.prepare.steps.keep import cut_row, read_marked_rows
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import open_tokenizer, read_scan
from packtrain.prepare.steps.sides import Cut, find_place_in_ids, find_place_in_text


class _Kept(NamedTuple):
    """The kept rows of a slice: its scan, their positions there, and the number of each among all clean documents."""

    piece: Slice
    scan: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return self.scan["utf8_bytes"][self.rows].astype(np.int64)


def find_cut(results: Results, slicing: Slicing, is_left_out: np.ndarray) -> Cut:
    """The place after which the kept text has split.validation_fraction of its UTF-8 bytes.

    `is_left_out`, bool[documents], marks the clean documents that are not kept. The document in which the place is becomes
    two, unless it is one of several documents of ids: then the nearer of its ends is the place.
    """
    total = sum(int(kept.sizes.sum()) for kept in _each(results, slicing, is_left_out))
    wanted = total - round(total * results.recipe.split.validation_fraction)
    before = 0
    for kept in _each(results, slicing, is_left_out):
        ends = before + np.cumsum(kept.sizes)
        if len(ends) and ends[-1] > wanted:
            index = int(np.searchsorted(ends, wanted, side="right"))
            start = int(ends[index]) - int(kept.sizes[index])
            is_last = int(ends[index]) == total
            return _cut_at(results, kept, index, wanted - start, is_first=start == 0, is_last=is_last)
        before = int(ends[-1]) if len(ends) else before
    return Cut(len(slicing.slices), 0)


def drop_leaking_parts(
    results: Results, slicing: Slicing, cut: Cut, is_left_out: np.ndarray, is_leak: np.ndarray
) -> Cut:
    """The cut, without its first part if validation has that too; sets `is_leak` for training documents that equal the second."""
    if not cut.at:
        return cut
    first, second = (np.frombuffer(bytes.fromhex(content), "<u8") for content in cut.contents)
    is_doubled = bool((first == second).all())
    for kept in _each(results, slicing, is_left_out):
        contents = kept.scan["content"][kept.rows]
        is_after = (kept.rows > cut.row) if kept.piece.number == cut.piece else kept.piece.number > cut.piece
        is_before = (kept.rows < cut.row) if kept.piece.number == cut.piece else kept.piece.number < cut.piece
        is_doubled = is_doubled or bool(((contents == first).all(axis=1) & is_after).any())
        is_leak[kept.numbers[(contents == second).all(axis=1) & is_before]] = True
    return cut._replace(keeps_first=not is_doubled)


def _cut_at(results: Results, kept: _Kept, index: int, utf8_bytes: int, *, is_first: bool, is_last: bool) -> Cut:
    """The cut after `utf8_bytes` of a document, as near as it can be. The first and the last of all leave no side empty."""
    position, size = int(kept.rows[index]), int(kept.sizes[index])
    at_start, at_end = Cut(kept.piece.number, position), Cut(kept.piece.number, position + 1)
    nearer = at_end if is_first or (2 * utf8_bytes > size and not is_last) else at_start
    if utf8_bytes == 0:
        return at_start
    tokenizer_hash = results.tokenizer_hash
    if tokenizer_hash is not None and not (is_first and is_last):
        return nearer
    row, text = _read_row(results, kept.piece, kept.scan, position)
    if tokenizer_hash is None:
        at = find_place_in_text(text, utf8_bytes)
    else:
        at = find_place_in_ids(row.ids, utf8_bytes / size, open_tokenizer(results.store, tokenizer_hash))
    if not at:
        return nearer
    first, second = cut_row(results, row, text, at)
    return Cut(
        piece=kept.piece.number,
        row=position,
        at=at,
        utf8_bytes=(first.utf8_bytes, second.utf8_bytes),
        contents=(first.content.hex(), second.content.hex()),
        keeps_first=True,
        file=row.file,
        source_row=row.row,
    )


def _read_row(results: Results, piece: Slice, scan: np.ndarray, position: int) -> tuple[Row, str]:
    marked = np.arange(len(scan)) == position
    # Read to the end: only there is it known that the slice has not changed.
    ((_, row, text),) = read_marked_rows(results, piece, scan, marked)
    return row, text


def _each(results: Results, slicing: Slicing, is_left_out: np.ndarray) -> Iterator[_Kept]:
    start = 0
    for piece in slicing.slices:
        scan = read_scan(results, piece)
        clean = np.flatnonzero(scan["reason"] == 0)
        kept = np.flatnonzero(~is_left_out[start : start + len(clean)])
        yield _Kept(piece, scan, clean[kept], start + kept)
        start += len(clean)
