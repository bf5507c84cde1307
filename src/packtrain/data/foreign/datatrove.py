"""Decides how datatrove's .ds files are read, with their .ds.index and .ds.metadata (`pipeline/tokens/tokenizer.py`)."""

import numpy as np

from packtrain.data.foreign.streams import READ_IDS, Indexed, Member, file_exists, read_array, read_bytes, size_of
from packtrain.errors import SourceError


class Datatrove(Indexed):
    """A .ds beside its .ds.index of document ends."""

    def __init__(self, url: str, name: str, width: int | None) -> None:
        self._url = url
        index_bytes, size = size_of(url + ".index"), size_of(url)
        if index_bytes % 8:
            raise SourceError(
                f"{name}.index has {index_bytes} bytes, which is not a whole number of document ends of 8 bytes; it is cut short"
            )
        super().__init__(name, [], "<u2", index_bytes // 8)
        last = int(self.ends(self.num_documents - 1, self.num_documents)[0]) if self.num_documents else 0
        widths = [w for w in (2, 4) if w == (width or w) and last * w == size]
        if not widths or (width is None and not last):
            raise SourceError(
                f"{name} has {size} bytes, but its index ends at {last} ids of {width or '2 or 4'} bytes each; they do not belong "
                "together, or one is cut short"
            )
        super().__init__(name, [Member(url, 0, last)], f"<u{widths[0]}", self.num_documents)
        self._check(name)

    def ends(self, first: int, stop: int) -> np.ndarray:
        return read_array(self._url + ".index", 0, "<i8", first, stop)

    def _check(self, name: str) -> None:
        before = 0
        for first in range(0, self.num_documents, READ_IDS):
            ends = self.ends(first, min(first + READ_IDS, self.num_documents))
            if (np.diff(ends, prepend=before) < 0).any():
                raise SourceError(f"{name}.index has a document that ends before the one before it; it is damaged")
            before = int(ends[-1])


def read_width(url: str, name: str) -> int | None:
    """Bytes of an id, from the first line of the .metadata file, which is TOKENIZER|BYTES; None without such a file."""
    if not file_exists(url + ".metadata"):
        return None
    first = read_bytes(url + ".metadata", 0, 4096).decode("utf-8", "replace").partition("\n")[0]
    width = first.rpartition("|")[2]
    if width not in ("2", "4"):
        raise SourceError(
            f"the first line of {name}.metadata does not say whether ids have 2 or 4 bytes (TOKENIZER|2); fix or remove the file"
        )
    return int(width)
