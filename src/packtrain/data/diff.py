"""Decides how two prepared datasets are compared: their documents by content, and their recipes key by key."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pydantic import ValidationError

from packtrain.config.recipe import Recipe
from packtrain.data.format.content import check_what_is_read
from packtrain.data.format.manifest import SPLITS, Manifest
from packtrain.data.format.shards import Dataset, Split
from packtrain.data.inspect import find_sources
from packtrain.storage.atomic import disk_errors
from packtrain.storage.buckets import Buckets

# A document: its content hash, a hash of its ids, its dataset and side, its number there, and how many ids it has.
_ENTRY = np.dtype(
    [("content", "<u8", (2,)), ("ids", "<u8"), ("dataset", "u1"), ("side", "u1"), ("number", "<u8"), ("tokens", "<u8")]
)
_SAMPLES = 5

Entries = np.ndarray


@dataclass
class Found:
    """Documents of one kind: how many, their tokens in A and in B, and a few examples."""

    documents: int = 0
    tokens: tuple[int, int] = (0, 0)
    samples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Difference:
    """What two datasets, A and B, have in common, and what they do not. Content is equal if the normalised text is."""

    same: Found = field(default_factory=Found)
    only_a: Found = field(default_factory=Found)
    only_b: Found = field(default_factory=Found)
    moved: Found = field(default_factory=Found)
    """In both, but on different sides."""
    retokenized: Found = field(default_factory=Found)
    """In both, with different ids; some of them may have moved too."""
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Settings that differ, by dotted key."""
    reasons: list[str] = field(default_factory=list)
    """Which of them explain the differences, in words."""

    @property
    def is_equal(self) -> bool:
        """Whether both have the same documents, with the same ids, on the same sides."""
        return not any(f.documents for f in (self.only_a, self.only_b, self.moved, self.retokenized))


def compare(a: Dataset, b: Dataset) -> Difference:
    """Compare two datasets. Reads all ids of both, and needs about 50 bytes of temporary disk for each document.

    A repeated document counts each time. Raises DiskFullError if the disk has no room.
    """
    result = Difference(settings=compare_settings(a.manifest, b.manifest))
    datasets = (a, b)
    total = sum(dataset.split(name).num_documents for dataset in datasets for name in SPLITS)
    with tempfile.TemporaryDirectory(prefix="packtrain-diff-") as temporary, disk_errors(Path(temporary)):
        with Buckets(Path(temporary) / "buckets", _ENTRY, total) as buckets:
            for number, dataset in enumerate(datasets):
                check_what_is_read(dataset)
                for side, name in enumerate(SPLITS):
                    for entries in _entries(dataset.split(name), number, side):
                        buckets.add(entries["content"][:, 0], entries)
            for bucket in buckets:
                _tally(np.concatenate([np.empty(0, _ENTRY), *bucket]), result, datasets)
    result.reasons = explain(result)
    return result


def compare_settings(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    """Settings in which two datasets differ: keys of the recipe, and other known facts under `manifest.`."""
    trees = [
        _leaves({**_recipe(m), "manifest": m.model_dump(include=set(_MANIFEST)) | {"inputs_hash": m.inputs_hash[:16]}})
        for m in (a, b)
    ]
    keys = dict.fromkeys([*trees[0], *trees[1]])
    return {key: (trees[0].get(key), trees[1].get(key)) for key in keys if trees[0].get(key) != trees[1].get(key)}


def explain(difference: Difference) -> list[str]:
    """Which settings can have caused the differences between the documents, in words."""
    telling = [key for key in difference.settings if key not in _WITHOUT_EFFECT]
    found = []
    for start, what, kinds in _EFFECTS:
        keys = [key for key in telling if key.startswith(start)]
        if keys and any(getattr(difference, kind).documents for kind in kinds):
            shown = ", ".join(keys[:6]) + (f" and {len(keys[6:])} more" if keys[6:] else "")
            found.append(f"{shown}: {what}")
    is_recut = "prepare.slice_documents" in difference.settings
    if "manifest.inputs_hash" in difference.settings and not telling and not is_recut and not difference.is_equal:
        found.append("recipe and tokenizer are the same, so the source files or the version of packtrain differ")
    return found


# Prefixes of settings, what a change does, and the kinds of difference that it causes.
_EFFECTS = (
    (("source.", "manifest.source_revision"), "other documents come in", ("only_a", "only_b")),
    (("clean.",), "documents are cleaned or dropped differently", ("only_a", "only_b", "retokenized")),
    (("dedup.",), "other copies are left out", ("only_a", "only_b")),
    (("split.",), "documents change sides", ("moved",)),
    (("tokenizer.", "manifest.tokenizer."), "the same text gets other ids", ("retokenized",)),
)
_MANIFEST = ("source_revision", "created_by", "dtype", "tokenizer")
# Paths, consequences of other settings, and how the work was divided.
_WITHOUT_EFFECT = (
    *("manifest.inputs_hash", "manifest.created_by", "manifest.dtype"),
    *("source.path", "tokenizer.name", "prepare.slice_documents"),
)


def _recipe(manifest: Manifest) -> dict[str, Any]:
    """A recipe, with defaults for settings that it is too old to have; unchanged if this version cannot read it."""
    try:
        recipe = Recipe.model_validate(manifest.recipe)
    except ValidationError:
        return manifest.recipe
    return recipe.model_dump(mode="json", exclude={"prepare": {"workers", "executor"}})


def _entries(split: Split, dataset: int, side: int) -> Iterator[Entries]:
    """The documents of one side, shard by shard."""
    first = 0
    start = 0
    for number, shard in enumerate(split.shards):
        entries = np.zeros(shard.documents, _ENTRY)
        hashes = split.sources_of_shard(number, ["hash"])["hash"].to_pylist()
        ends = np.array(split.shard_ends(number))
        entries["content"] = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
        entries["dataset"], entries["side"] = dataset, side
        entries["number"] = np.arange(first, first + shard.documents)
        entries["tokens"] = np.diff(ends, prepend=0)
        entries["ids"] = np.fromiter(_id_hashes(split, start, ends), np.uint64, count=shard.documents)
        yield entries
        first, start = first + shard.documents, start + shard.tokens


def _id_hashes(split: Split, start: int, ends: np.ndarray) -> Iterator[int]:
    """A hash of the ids of each document, the same for any width on disk."""
    begin = position = 0
    held = np.empty(0, "<u4")
    for end in ends.tolist():
        if end > position:
            # At least to the end of this document.
            stop = min(max(end, position + (1 << 22)), int(ends[-1]))
            held = np.concatenate(
                [held[begin - (position - len(held)) :], split.read(start + position, start + stop).astype("<u4")]
            )
            position = stop
        offset = position - len(held)
        yield xxhash.xxh3_64_intdigest(held[begin - offset : end - offset].tobytes())
        begin = end


def _tally(entries: Entries, result: Difference, datasets: tuple[Dataset, Dataset]) -> None:
    """Count the documents of one bucket. Equal documents are in the same bucket."""
    left, right = _pairs(entries, by_side=True)
    paired = np.zeros(len(entries), dtype=np.bool_)
    paired[left] = paired[right] = True
    rest = np.flatnonzero(~paired)
    more_left, more_right = _pairs(entries[rest], by_side=False)
    moved_left, moved_right = rest[more_left], rest[more_right]
    paired[moved_left] = paired[moved_right] = True
    alone = entries[~paired]
    _add(result.only_a, datasets, alone[alone["dataset"] == 0], None)
    _add(result.only_b, datasets, None, alone[alone["dataset"] == 1])
    _add(result.moved, datasets, entries[moved_left], entries[moved_right])
    a, b = entries[np.concatenate([left, moved_left])], entries[np.concatenate([right, moved_right])]
    differs = a["ids"] != b["ids"]
    _add(result.retokenized, datasets, a[differs], b[differs])
    stays = entries["ids"][left] == entries["ids"][right]
    _add(result.same, datasets, entries[left[stays]], entries[right[stays]], with_samples=False)


def _pairs(entries: Entries, *, by_side: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions of equal documents of A and B, in pairs; the n-th copy is paired with the n-th."""
    side = entries["side"] if by_side else np.zeros(len(entries), np.uint8)
    content = entries["content"]
    order = np.lexsort((entries["number"], entries["ids"], entries["dataset"], side, content[:, 1], content[:, 0]))
    ordered, its_side = entries[order], side[order]
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = (ordered["content"][1:] != ordered["content"][:-1]).any(axis=1) | (its_side[1:] != its_side[:-1])
    group = np.cumsum(is_new) - 1
    of_b = ordered["dataset"] == 1
    num_a = np.bincount(group[~of_b], minlength=group[-1] + 1 if len(group) else 0)
    num_b = np.bincount(group[of_b], minlength=len(num_a))
    firsts = np.flatnonzero(is_new)
    common = np.minimum(num_a, num_b)
    within = np.arange(common.sum()) - np.repeat(np.cumsum(common) - common, common)
    a = np.repeat(firsts, common) + within
    b = np.repeat(firsts + num_a, common) + within
    return order[a], order[b]


def _add(
    found: Found, datasets: tuple[Dataset, Dataset], a: Entries | None, b: Entries | None, *, with_samples: bool = True
) -> None:
    some = a if a is not None else b
    assert some is not None
    found.documents += len(some)
    sums = [0 if part is None else int(part["tokens"].sum()) for part in (a, b)]
    found.tokens = (found.tokens[0] + sums[0], found.tokens[1] + sums[1])
    for row in range(min(len(some), _SAMPLES - len(found.samples)) if with_samples else 0):
        pair = zip(("a", "b"), datasets, (a, b), strict=True)
        found.samples.append({name: _place(dataset, part[row]) for name, dataset, part in pair if part is not None})


def _place(dataset: Dataset, entry: Any) -> dict[str, Any]:
    name, number = SPLITS[int(entry["side"])], int(entry["number"])
    source = find_sources(dataset.split(name), [number])[number]
    return {"document": f"{name}/{number}", "tokens": int(entry["tokens"]), **source._asdict()}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves
