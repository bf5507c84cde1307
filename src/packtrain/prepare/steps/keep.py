"""Decides how the choice of documents is stored, and reads the chosen documents from the source again."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain.errors import SourceError
from packtrain.prepare.sources.row import Row
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.results import Results, pack_keep
from packtrain.prepare.steps.scan import assign_sides, read_scan, read_source_rows
from packtrain.prepare.text.clean import Cleaner


class KeptDocument(NamedTuple):
    """A row to keep, with its text after cleaning and what its scan says of it."""

    row: Row
    text: str
    utf8_bytes: int
    content: bytes
    side: int


def write_keep(results: Results, piece: Slice, keep: npt.NDArray[np.bool_]) -> None:
    """Store which rows of a slice are kept, bool[rows]."""
    results.store.write(results.keep_name(piece), pack_keep(keep))


def read_keep(results: Results, piece: Slice) -> npt.NDArray[np.bool_]:
    """Which rows of a slice are kept, bool[rows], as `write_keep` stored it."""
    data = results.store.read(results.keep_name(piece))
    rows = int.from_bytes(data[:8], "little")
    return np.unpackbits(np.frombuffer(data, np.uint8, offset=8), count=rows).astype(np.bool_)


def read_kept_documents(
    results: Results, piece: Slice, keep: npt.NDArray[np.bool_], want_ids: bool = False
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
