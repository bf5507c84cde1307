"""Decides how the results of each step are named: by a hash of everything that they depend on.

So the work done for one recipe or source serves any other with equal inputs, and no other.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from packtrain import __version__
from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import FORMAT_VERSION, canonical_json
from packtrain.prepare.copies.signatures import algorithm_version
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.text.clean import CLEANING
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

SCANS, TOKENS = f"{WORK_FOLDER}/scan", f"{WORK_FOLDER}/tokens"

# What a scan says of a row: its content hash, a hash of the cleaned text, its UTF-8 bytes, and 0 if it is clean, otherwise
# 1 + the position of the reason in `ScanNotes.reasons`.
SCAN = np.dtype([("content", "<u8", (2,)), ("text", "<u8"), ("utf8_bytes", "<u8"), ("reason", "u1")])

# Raised when the notes of a scan change, so that a scan is never read by another version of packtrain.
SCAN_FORMAT = 2

# The settings that no scan depends on. A new setting that is not listed here counts.
_NOT_FOR_SCANS = ("prepare", "tokenizer", "split", "dedup")
_NOT_FOR_SCANS_OF_SOURCE = (
    *("path", "repo", "config", "split", "revision", "function"),
    *("id_column", "max_documents", "max_bad_fraction"),
)


@dataclass(frozen=True)
class Results:
    """Where the results of a recipe's steps are, slice by slice."""

    recipe: Recipe
    store: Store
    choice: str = ""
    """The choice of documents that later results belong to, as `name_choice` names it."""
    tokenizer_hash: str | None = None
    """The tokenizer that decodes a source of ids."""

    def scan_key(self, piece: Slice) -> str:
        return f"{self._scan_inputs}{piece.fingerprint}"

    def scan_name(self, piece: Slice) -> str:
        return f"{SCANS}/{_hash_inputs(self.scan_key(piece))}.scan"

    def near_name(self, piece: Slice) -> str:
        return f"{SCANS}/{_hash_inputs((self.scan_key(piece), self._near_inputs))}.near"

    def scan_names(self, piece: Slice) -> tuple[str, ...]:
        """The files that `scan_slice` writes."""
        names: tuple[str, ...] = (self.scan_name(piece),)
        if self.recipe.split.by == "column":
            names = (self.sides_name(piece), *names)
        return (self.near_name(piece), *names) if self.recipe.dedup.near else names

    def sides_name(self, piece: Slice) -> str:
        """The sides that split.column puts the rows on."""
        split = self.recipe.split
        return f"{SCANS}/{_hash_inputs((self.scan_key(piece), split.column, split.validation_values))}.sides"

    def keep_name(self, piece: Slice) -> str:
        return f"{WORK_FOLDER}/keep-{self.choice}/{piece.name}.keep"

    @property
    def counts_name(self) -> str:
        """The counts of the choice, written when it is complete."""
        return f"{WORK_FOLDER}/keep-{self.choice}/counts.json"

    @property
    def cut_name(self) -> str:
        """Where split.by=tail cuts the text."""
        return f"{WORK_FOLDER}/keep-{self.choice}/cut.json"

    def tokens_key(self, piece: Slice, keep: np.ndarray, tokenizer_hash: str) -> str:
        """The name of a slice's shards and record in the folder TOKENS."""
        recipe = self.recipe
        keep_hash = xxhash.xxh3_128_hexdigest(pack_keep(keep))
        around = (recipe.tokenizer.bos, recipe.tokenizer.eos, recipe.source.id_column)
        inputs = (self.scan_key(piece), keep_hash, recipe.split.model_dump(), tokenizer_hash, around)
        return _hash_inputs((FORMAT_VERSION, *inputs, *self._cut_inputs(piece)))

    def _cut_inputs(self, piece: Slice) -> tuple[Any, ...]:
        """What split.by=tail makes of a slice: the place of the cut if it is in it, else on which side of the cut it is."""
        if self.recipe.split.by != "tail":
            return ()
        cut = json.loads(self.store.read(self.cut_name))
        return (cut if cut["piece"] == piece.number else cut["piece"] < piece.number,)

    @cached_property
    def _scan_inputs(self) -> str:
        tree = self.recipe.model_dump(mode="json", exclude=set(_NOT_FOR_SCANS))
        for key in _NOT_FOR_SCANS_OF_SOURCE:
            del tree["source"][key]
        return _hash_inputs((__version__, CLEANING, SCAN_FORMAT, SCAN.descr, tree, self.tokenizer_hash))

    @cached_property
    def _near_inputs(self) -> tuple[int, ...] | None:
        dedup = self.recipe.dedup
        if not dedup.near:
            return None
        return (algorithm_version(), dedup.near_words, dedup.near_bands, dedup.near_band_rows)


def name_choice(results: Results, slices: Sequence[Slice]) -> str:
    """The name of the choice among the documents of these slices."""
    recipe = results.recipe
    scans = [results.scan_names(piece) for piece in slices]
    return _hash_inputs((scans, recipe.dedup.model_dump(), recipe.split.model_dump(), recipe.source.max_bad_fraction))


def tokenizer_path(tokenizer_hash: str) -> str:
    """The folder of a tokenizer in the store."""
    return f"{WORK_FOLDER}/tokenizer-{tokenizer_hash[:32]}"


def pack_keep(keep: np.ndarray) -> bytes:
    """Which rows are kept, as bytes: their number, then one bit for each."""
    return len(keep).to_bytes(8, "little") + np.packbits(keep).tobytes()


def _hash_inputs(inputs: Any) -> str:
    return hashlib.sha256(canonical_json(inputs)).hexdigest()[:32]
