"""Decides how files of ids of other programs are opened: their format, their width, and how documents are told apart.

nanoGPT: `data/*/prepare.py`; llm.c: `dev/data/data_common.py`; datatrove: `pipeline/tokens/tokenizer.py`.
All integers are little-endian, in every format.
"""

from typing import Literal

import numpy as np

from packtrain.data.foreign.megatron import Megatron
from packtrain.data.foreign.streams import (
    READ_IDS,
    Delimited,
    EotPosition,
    IdStream,
    Indexed,
    Member,
    count_ids,
    is_file,
    no_magic,
    read_array,
    read_bytes,
    size_of,
)
from packtrain.errors import SourceError

TokenFormat = Literal["nanogpt", "llmc", "megatron", "datatrove"]

LLMC_HEADER_BYTES = 1024
LLMC_HEADERS = {"u2": (20240520, 1), "u4": (20240801, 7)}
"""By width of an id, the magic number and version at the beginning of an llm.c file; the number of ids follows."""


def open_ids(kind: TokenFormat, url: str, name: str, eot: int | None, position: EotPosition) -> IdStream:
    """Open a stream of one format. If several files make up the stream, `url` has one on each line.

    Raises SourceError for a file that is cut short, has another format, or has an index that does not fit it.
    """
    if kind == "megatron":
        return Megatron(url, name)
    if kind == "datatrove":
        width = _read_width(url, name)
        if is_file(url + ".index"):
            return Datatrove(url, name, width)
        if width is None:
            raise SourceError(
                f"{name} has neither {name}.index nor {name}.metadata beside it, which say how wide its ids are; put one there"
            )
        return Delimited(name, [Member(url, 0, count_ids(url, name, 0, width))], f"<u{width}", eot, position)
    if kind == "nanogpt":
        magics = {magic for magic, _ in LLMC_HEADERS.values()}
        if size_of(url) >= 4 and int.from_bytes(read_bytes(url, 0, 4), "little") in magics:
            raise SourceError(f"{name} begins with the header of an llm.c file, not with ids; write --format llmc")
        return Delimited(name, [Member(url, 0, count_ids(url, name, 0, 2))], "<u2", eot, position)
    urls = url.split("\n")
    opened = [_open_llmc(u, name if len(urls) == 1 else u.rpartition("/")[2]) for u in urls]
    if len({dtype for _, dtype in opened}) > 1:
        raise SourceError(
            f"{name}: its files have ids of different widths, so they belong to different datasets; name one with a pattern"
        )
    return Delimited(name, [member for member, _ in opened], f"<{opened[0][1]}", eot, position)


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


def _open_llmc(url: str, name: str) -> tuple[Member, str]:
    header = np.frombuffer(read_bytes(url, 0, LLMC_HEADER_BYTES).ljust(12, b"\0")[:12], "<i4")
    dtype = next((d for d, known in LLMC_HEADERS.items() if known == (int(header[0]), int(header[1]))), None)
    if dtype is None:
        known = " or ".join(f"{magic} version {version}" for magic, version in LLMC_HEADERS.values())
        raise SourceError(no_magic(name, "an llm.c data file", known))
    tokens = count_ids(url, name, LLMC_HEADER_BYTES, np.dtype(dtype).itemsize)
    if tokens != int(header[2]):
        raise SourceError(
            f"{name} has {tokens} ids, but its header says {int(header[2])}; it is cut short or was joined with another file"
        )
    return Member(url, LLMC_HEADER_BYTES, tokens), dtype


def _read_width(url: str, name: str) -> int | None:
    """Bytes of an id, from the first line of the .metadata file, which is TOKENIZER|BYTES; None without such a file."""
    if not is_file(url + ".metadata"):
        return None
    first = read_bytes(url + ".metadata", 0, 4096).decode("utf-8", "replace").partition("\n")[0]
    width = first.rpartition("|")[2]
    if width not in ("2", "4"):
        raise SourceError(
            f"the first line of {name}.metadata does not say whether ids have 2 or 4 bytes (TOKENIZER|2); fix or remove the file"
        )
    return int(width)
