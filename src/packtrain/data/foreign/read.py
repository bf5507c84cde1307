"""Decides how files of ids of other programs are opened: their format, their width, and how documents are told apart.

nanoGPT: `data/*/prepare.py`; llm.c: `dev/data/data_common.py`. All integers are little-endian, in every format.
"""

from typing import Literal

import numpy as np

from packtrain.data.foreign.datatrove import Datatrove, read_width
from packtrain.data.foreign.megatron import Megatron
from packtrain.data.foreign.streams import (
    Delimited,
    EotPosition,
    IdStream,
    Member,
    count_ids,
    file_exists,
    no_magic,
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
        width = read_width(url, name)
        if file_exists(url + ".index"):
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
