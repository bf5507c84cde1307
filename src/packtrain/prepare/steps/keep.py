"""Decides how the choice of documents is written, and reads the chosen documents again."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain.errors import SourceError
from packtrain.prepare.sources.row import Row
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.results import Results, _packed
from packtrain.prepare.steps.scan import read_scan, sides, source_rows
from packtrain.prepare.text.clean import Cleaner


def write_keep(place: Results, work: Slice, keep: npt.NDArray[np.bool_]) -> None:
    """Put down which rows of a slice are to be tokenized, bool[rows]."""
    place.store.write(place.keep_name(work), _packed(keep))


def read_keep(place: Results, work: Slice) -> npt.NDArray[np.bool_]:
    """What `write_keep` put down."""
    data = place.store.read(place.keep_name(work))
    rows = int.from_bytes(data[:8], "little")
    return np.unpackbits(np.frombuffer(data, np.uint8, offset=8), count=rows).astype(np.bool_)


class Kept(NamedTuple):
    """A row to keep, with its text after cleaning and what its scan says of it."""

    row: Row
    text: str
    utf8_bytes: int
    content: bytes
    side: int


def kept_rows(place: Results, work: Slice, keep: npt.NDArray[np.bool_], want_ids: bool = False) -> Iterator[Kept]:
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


def _changed(place: Results, work: Slice, what: str) -> SourceError:
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
