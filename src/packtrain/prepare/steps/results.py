"""Decides how the results of each step are named: by a hash of all that they depend on.

Work done for one recipe or source therefore serves any other with equal inputs, and nothing else.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from packtrain import __version__
from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import FORMAT_VERSION, canonical_json
from packtrain.prepare.copies.signatures import algorithm_version
from packtrain.prepare.sources.slices import Slice
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

# Of a row: the content hash, a hash of the cleaned text, its UTF-8 bytes, and 0 or 1 + the reason's position in its scan's
# `ScanNotes.reasons`.
SCAN = np.dtype([("content", "<u8", (2,)), ("text", "<u8"), ("utf8_bytes", "<u8"), ("reason", "u1")])


# Of a recipe, what no scan depends on; a key of a recipe that is not named here counts.
_NOT_FOR_SCANS = ("prepare", "tokenizer", "split", "dedup")


_NOT_FOR_SCANS_OF_SOURCE = (
    *("path", "repo", "config", "split", "revision", "function"),
    *("id_column", "max_documents", "max_bad_fraction"),
)


SCANS, TOKENS = f"{WORK_FOLDER}/scan", f"{WORK_FOLDER}/tokens"


@dataclass(frozen=True)
class Results:
    """What every slice's work needs: the recipe, where results are put, and which choice of documents it is for."""

    recipe: Recipe
    store: Store
    choice: str = ""
    tokenizer_hash: str | None = None
    """Of a source of ids, what a scan decodes them with."""

    def scan_key(self, work: Slice) -> str:
        return f"{self._scan_inputs}{work.fingerprint}"

    def scan_name(self, work: Slice) -> str:
        return f"{SCANS}/{_key(self.scan_key(work))}.scan"

    def near_name(self, work: Slice) -> str:
        return f"{SCANS}/{_key((self.scan_key(work), self._near_inputs))}.near"

    def keep_name(self, work: Slice) -> str:
        return f"{WORK_FOLDER}/keep-{self.choice}/{work.name}.keep"

    @property
    def counts_name(self) -> str:
        """The counts of the choice, written when it is complete."""
        return f"{WORK_FOLDER}/keep-{self.choice}/counts.json"

    def tokens_key(self, work: Slice, keep: npt.NDArray[np.bool_], tokenizer_hash: str) -> str:
        """Names the shards and the record of a slice in the folder TOKENS."""
        recipe = self.recipe
        around = (recipe.tokenizer.bos, recipe.tokenizer.eos, recipe.source.id_column)
        inputs = (self.scan_key(work), _keep_hash(keep), recipe.split.model_dump(), tokenizer_hash, around)
        return _key((FORMAT_VERSION, *inputs))

    @cached_property
    def _scan_inputs(self) -> str:
        tree = self.recipe.model_dump(mode="json", exclude=set(_NOT_FOR_SCANS))
        for key in _NOT_FOR_SCANS_OF_SOURCE:
            del tree["source"][key]
        return _key((__version__, SCAN.descr, tree, self.tokenizer_hash))

    @cached_property
    def _near_inputs(self) -> tuple[int, ...] | None:
        dedup = self.recipe.dedup
        if not dedup.near:
            return None
        return (algorithm_version(), dedup.near_words, dedup.near_bands, dedup.near_band_rows)

    def stage_one_names(self, work: Slice) -> tuple[str, ...]:
        """What `scan_slice` writes."""
        names = (self.scan_name(work),)
        return (self.near_name(work), *names) if self.recipe.dedup.near else names


def choice_key(place: Results, slices: Sequence[Slice]) -> str:
    """Names the choice among the documents of these slices."""
    recipe = place.recipe
    scans = [place.stage_one_names(work) for work in slices]
    return _key((scans, recipe.dedup.model_dump(), recipe.split.model_dump(), recipe.source.max_bad_fraction))


def tokenizer_name(tokenizer_hash: str) -> str:
    """The folder of a tokenizer."""
    return f"{WORK_FOLDER}/tokenizer-{tokenizer_hash[:32]}"


def _key(inputs: Any) -> str:
    return hashlib.sha256(canonical_json(inputs)).hexdigest()[:32]


def _packed(keep: npt.NDArray[np.bool_]) -> bytes:
    return len(keep).to_bytes(8, "little") + np.packbits(keep).tobytes()


def _keep_hash(keep: npt.NDArray[np.bool_]) -> str:
    return xxhash.xxh3_128_hexdigest(_packed(keep))
