"""Decides whether the disk has room for what is still to be written, and stops in time if it does not."""

from collections.abc import Iterable, Mapping
from typing import Any

from packtrain.config.recipe import Recipe
from packtrain.errors import DiskFullError
from packtrain.prepare.copies.clusters import LINK
from packtrain.prepare.copies.equal import ENTRY
from packtrain.prepare.copies.signatures import document_bytes
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.results import SCAN, Results
from packtrain.prepare.steps.sampling import source_bytes
from packtrain.prepare.steps.scan import read_keep, read_scan
from packtrain.storage.store import Store

# How many measured bytes a guess weighs as much as.
_GUESS_WEIGHT = 1 << 20


class DiskBudget:
    """An estimate of what is still to be written. Raises DiskFullError as soon as that is more than the store has free.

    Text per byte of source, and bytes written per byte of text, are measured on the slices finished so far. Before the first,
    the source is taken to be all text, with four bytes to a token of `id_bytes`; `id_bytes` is None if nothing is to be
    tokenized. Every method but `measured` checks the disk.
    """

    def __init__(self, store: Store, recipe: Recipe, id_bytes: int | None) -> None:
        self._recipe = recipe
        self._store = store
        self._is_checked = recipe.prepare.disk_check and store.free_bytes() is not None
        self._text = _Ratio(1.0)
        self._written = _Ratio((id_bytes or 0) / 4)
        # A document's entry in the index, and its compressed entry among the sources.
        self._each = 8 + 24 if id_bytes else 0
        self._rows = self._source = self._sorted = self._text_left = self._documents_left = 0

    def to_scan(self, missing: Iterable[Slice], rows: int) -> None:
        """Begin: `missing` are the slices not yet scanned of a source that has `rows` rows in all."""
        slices = list(missing)
        self._rows, self._source = sum(piece.rows for piece in slices), source_bytes(slices)
        # If nothing is left to scan, the copies are most likely found too.
        self._sorted = rows * sort_bytes(self._recipe) if slices else 0
        self._check(self._to_scan())

    def scanned(self, piece: Slice, clean_bytes: int) -> None:
        """A slice was scanned, and gave `clean_bytes` of text."""
        self._rows -= piece.rows
        self._text.add(clean_bytes, source_bytes([piece]))
        self._check(self._to_scan())

    def measured(self, record: Mapping[str, Any]) -> None:
        """Learn from the record of a tokenized slice."""
        for shard in record["shards"].values():
            self._written.add(shard["files"]["tok"]["size"], shard["utf8_bytes"])

    def to_tokenize(self, results: Results, missing: Iterable[Slice]) -> None:
        """Begin: `missing` are the slices not yet tokenized."""
        for piece in missing if self._is_checked else ():
            sizes = read_scan(results, piece)["utf8_bytes"][read_keep(results, piece)]
            self._text_left += int(sizes.sum())
            self._documents_left += len(sizes)
        self._check(self._to_tokenize(self._text_left, self._documents_left))

    def tokenized(self, record: Mapping[str, Any]) -> None:
        """A slice was tokenized."""
        self.measured(record)
        for shard in record["shards"].values():
            self._text_left -= shard["utf8_bytes"]
            self._documents_left -= shard["documents"]
        self._check(self._to_tokenize(self._text_left, self._documents_left))

    def _to_scan(self) -> float:
        # The space for sorting is free again before tokens are written.
        return self._rows * scan_bytes(self._recipe) + max(
            self._sorted, self._to_tokenize(self._source * self._text.value, self._rows)
        )

    def _to_tokenize(self, utf8_bytes: float, documents: int) -> float:
        return utf8_bytes * self._written.value + documents * self._each

    def _check(self, needed: float) -> None:
        if not self._is_checked or needed <= 0:
            return
        needed += needed * 0.05 + (1 << 20)
        free = self._store.free_bytes()
        if free is not None and needed > free:
            raise DiskFullError(
                f"the disk of {self._store.where} has {readable(free)} free, and about {readable(needed)} are still to be "
                "written; finished work is kept: free some space and run the same command again, or write "
                "prepare.disk_check=false to continue until the disk is full"
            )


def scan_bytes(recipe: Recipe) -> int:
    """Bytes that the scan writes for each row."""
    return SCAN.itemsize + (document_bytes(recipe.dedup) if recipe.dedup.near else 0)


def sort_bytes(recipe: Recipe) -> int:
    """Bytes that finding copies writes for each row, and frees again."""
    return max(ENTRY.itemsize, LINK.itemsize if recipe.dedup.near else 0)


class _Ratio:
    """The quotient of two sums, which start with a guess."""

    def __init__(self, guess: float) -> None:
        self._above, self._below = guess * _GUESS_WEIGHT, float(_GUESS_WEIGHT)

    def add(self, above: float, below: float) -> None:
        self._above += above
        self._below += below

    @property
    def value(self) -> float:
        return self._above / self._below


def readable(size: float) -> str:
    """A number of bytes for people, in powers of a thousand."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
