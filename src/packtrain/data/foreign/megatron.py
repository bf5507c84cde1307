"""Decides how Megatron-LM's .bin and .idx files are read (`megatron/core/datasets/indexed_dataset.py`)."""

import numpy as np

from packtrain.data.foreign.streams import (
    READ_IDS,
    Indexed,
    Member,
    count_ids,
    no_magic,
    read_array,
    read_bytes,
    size_of,
)
from packtrain.errors import SourceError

MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_HEADER = np.dtype([("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("documents", "<u8")])
MEGATRON_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""The integer types of an .idx file, by code; 6 and 7 are floats."""


class Megatron(Indexed):
    """A .bin beside its .idx. A document is one or more sequences."""

    def __init__(self, idx_url: str, name: str) -> None:
        self._url, self.name = idx_url, name
        size = size_of(idx_url)
        head = len(MEGATRON_MAGIC) + MEGATRON_HEADER.itemsize
        begins = read_bytes(idx_url, 0, head)
        if not begins.startswith(MEGATRON_MAGIC):
            raise SourceError(no_magic(name, "a Megatron index", "MMIDIDX"))
        if len(begins) < head:
            raise SourceError(
                f"{name} is cut short: it has {size} bytes, and a Megatron index has {head} before its first entry"
            )
        header = np.frombuffer(begins, MEGATRON_HEADER, offset=len(MEGATRON_MAGIC))[0]
        self._sequences, documents = int(header["sequences"]), int(header["documents"])
        dtype = MEGATRON_DTYPES.get(int(header["code"]))
        if int(header["version"]) != 1 or dtype is None:
            raise SourceError(
                f"{name} has version {header['version']} and id type {header['code']}; only version 1 with integer ids can be "
                f"read (types {', '.join(map(str, MEGATRON_DTYPES))})"
            )
        self._lengths_at = head
        self._pointers_at = head + 4 * self._sequences
        self._documents_at = self._pointers_at + 8 * self._sequences
        wanted = self._documents_at + 8 * documents
        if size != wanted:
            raise SourceError(
                f"{name} has {size} bytes, but {self._sequences} sequences and {documents} document borders take {wanted}; it is "
                "cut short, or an index of images and text, which cannot be imported"
            )
        self._width = np.dtype(dtype).itemsize
        bin_url = idx_url.removesuffix(".idx") + ".bin"
        tokens = count_ids(bin_url, name.removesuffix(".idx") + ".bin", 0, self._width)
        super().__init__(name, [Member(bin_url, 0, tokens)], dtype, max(0, documents - 1))
        self._check_sequences()
        self._check_documents()

    def ends(self, first: int, stop: int) -> np.ndarray:
        sequences = read_array(self._url, self._documents_at, "<i8", first + 1, stop + 1)
        if not len(sequences):
            return sequences
        low, high = int(sequences[0]), min(int(sequences[-1]) + 1, self._sequences)
        starts = read_array(self._url, self._pointers_at, "<i8", low, high) // self._width
        # A document ends where the next sequence starts; the last one at the end of the stream.
        return np.append(starts, self.tokens)[np.minimum(sequences - low, len(starts))]

    def _check_sequences(self) -> None:
        """Sequences must follow one another to the end of the .bin."""
        position = 0
        for first in range(0, self._sequences, READ_IDS):
            stop = min(first + READ_IDS, self._sequences)
            lengths = read_array(self._url, self._lengths_at, "<i4", first, stop).astype(np.int64)
            pointers = read_array(self._url, self._pointers_at, "<i8", first, stop)
            starts = position + np.concatenate([[0], np.cumsum(lengths)])
            wrong = np.flatnonzero((pointers != starts[:-1] * self._width) | (lengths < 0))
            if len(wrong):
                raise SourceError(
                    f"{self.name}: sequence {first + int(wrong[0])} does not begin where the one before it ends; such an index "
                    "cannot be imported: write it again with Megatron's tools"
                )
            position = int(starts[-1])
        if position != self.tokens:
            raise SourceError(
                f"{self.name} accounts for {position} ids, but its .bin has {self.tokens}; they do not belong together, or one is "
                "cut short"
            )

    def _check_documents(self) -> None:
        """Documents must be made of all sequences, in order."""
        before = 0
        for first in range(0, self.num_documents + 1, READ_IDS):
            stop = min(first + READ_IDS, self.num_documents + 1)
            borders = read_array(self._url, self._documents_at, "<i8", first, stop)
            steps = np.diff(borders, prepend=before)
            if (steps < 0).any() or (first == 0 and borders[0] != 0) or int(borders[-1]) > self._sequences:
                raise SourceError(
                    f"{self.name}: a border of documents is before the one before it, or beyond the {self._sequences} sequences; "
                    "the index is damaged"
                )
            before = int(borders[-1])
        if before != self._sequences:
            raise SourceError(
                f"{self.name} has {self._sequences} sequences, but its documents end at number {before}; the index is damaged"
            )
