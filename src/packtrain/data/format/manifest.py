"""Decides what the manifest of a prepared dataset contains, and how it is read."""

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from packtrain.config.base import Section
from packtrain.data.format.account import Count, find_fault
from packtrain.errors import DatasetError
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.regular import explain, read_regular
from packtrain.storage.store import copy_command

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
PLANS_FOLDER = "plans"

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
# The files of a shard.
SUFFIXES = ("tok", "idx.npy", "src.parquet")
# A recipe is two or three levels deep. What reads it calls itself for each level.
_MAX_DEPTH = 32
_SHARD_NAME = re.compile(r"[0-9]{5,18}")


class FileInfo(Section):
    """A file of a shard: its size in bytes, and its xxh3-128 in hexadecimal."""

    size: Count
    hash: str


class ShardInfo(Section):
    """A shard: the documents of one slice that are on one side of the split, in source order."""

    name: str
    """Number of the slice, in five digits or more."""
    documents: Count
    tokens: Count
    """Ids in the .tok file, with BOS and EOS."""
    utf8_bytes: Count
    """Of the cleaned text."""
    max_id: Count
    files: dict[str, FileInfo]
    """By suffix: tok, idx.npy, src.parquet."""

    @model_validator(mode="after")
    def _has_each_file(self) -> Self:
        if set(self.files) != set(SUFFIXES):
            raise ValueError(f"the files of a shard are {', '.join(SUFFIXES)}, not {', '.join(self.files) or 'none'}")
        return self


class TokenizerInfo(Section):
    """The tokenizer that made the ids, and the control tokens put around each document."""

    hash: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    adds_eos: bool
    kind: Literal["byte-level", "sentencepiece", "other"]

    @model_validator(mode="after")
    def _has_its_tokens(self) -> Self:
        for name, token, is_added in (("BOS", self.bos_id, self.adds_bos), ("EOS", self.eos_id, self.adds_eos)):
            if is_added and token is None:
                raise ValueError(f"documents have a {name} that the tokenizer lacks")
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} {token} is outside the vocabulary of {self.vocab_size}")
        return self


class Manifest(Section):
    """Everything that is known about a dataset. It is written last, so a folder without one is not a dataset."""

    format_version: int
    created_by: str
    recipe: dict[str, dict[str, Any]]
    recipe_hash: str
    inputs_hash: str
    """Hash of the recipe, the content of the source and the tokenizer: equal inputs give equal shards."""
    source_revision: str | None
    tokenizer: TokenizerInfo
    dtype: Literal["u2", "u4"]
    splits: dict[SplitName, tuple[ShardInfo, ...]]
    length_histogram: dict[Annotated[str, Field(pattern=r"^[0-9]{1,18}$")], Count]
    """Documents by length in tokens. A key is the least length in its bin, which extends to twice that."""
    ledger: dict[str, Any]
    checksum: str | None = None
    """SHA-256, hexadecimal, of everything else; None until it is written."""

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, of what a training run depends on: shards, tokenizer and dtype, but not the source's path."""
        fields = {"format_version", "inputs_hash", "tokenizer", "dtype", "splits"}
        return hashlib.sha256(canonical_json(self.model_dump(include=fields))).hexdigest()

    @model_validator(mode="after")
    def _names_its_shards(self) -> Self:
        for split, shards in self.splits.items():
            for shard in shards:
                # It becomes a part of paths.
                if not _SHARD_NAME.fullmatch(shard.name):
                    raise ValueError(
                        f"a shard of {split} is called {shard.name!r}, and not by a number of five digits or more"
                    )
                if not shard.documents:
                    raise ValueError(f"shard {split}/{shard.name} has no documents")
            numbers = [int(shard.name) for shard in shards]
            if any(number >= after for number, after in itertools.pairwise(numbers)):
                raise ValueError(f"the shards of {split} are not in the order of their numbers")
        return self

    def to_bytes(self) -> bytes:
        tree = self.model_dump(exclude={"checksum"})
        return (json.dumps({**tree, "checksum": _hash_tree(tree)}, indent=1, ensure_ascii=False) + "\n").encode()


def _hash_tree(tree: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(tree)).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder. Raises DatasetError as `parse_manifest` does, and if there is none."""
    path = folder / MANIFEST
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        # Path turns the double slash of a URL into one.
        if match := re.match(r"([a-z][a-z0-9+]*):/+(.*)", str(folder)):
            url = f"{match[1]}://{match[2]}"
            raise DatasetError(
                f"{url} is on an object store, but datasets are read from memory-mapped files; copy it to a disk with "
                f"{copy_command(url)} and write that folder"
            ) from None
        hint = (
            "its preparation was not finished: run the same `packtrain prepare` again"
            if (folder / WORK_FOLDER).is_dir()
            else "write the folder that `packtrain prepare RECIPE --out FOLDER` made"
        )
        raise DatasetError(f"{folder} is not a prepared dataset, because it has no {MANIFEST}; {hint}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({explain(error)})") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Parse a manifest file; `path` names it in errors.

    Raises DatasetError if this version cannot read it, or if it is not what was written, by its checksum.
    """
    try:
        tree = json.loads(data)
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if version != FORMAT_VERSION:
            raise DatasetError(f"{path} has format version {version}; this packtrain reads version {FORMAT_VERSION}")
        checksum = tree.pop("checksum", None)
        if checksum != _hash_tree(tree):
            raise DatasetError(
                f"{path} was changed since it was written, as its checksum does not match; put the original back, or "
                "prepare the dataset again"
            )
        manifest = Manifest.model_validate({**tree, "checksum": checksum})
        fault = find_fault(manifest.ledger) or _find_depth_problem(manifest.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        fault = str(error).partition("\n")[0]
    if fault is not None:
        raise DatasetError(f"{path} is damaged ({fault}); prepare the dataset again")
    return manifest


def _find_depth_problem(recipe: dict[str, Any]) -> str | None:
    level: list[Any] = [recipe]
    for _ in range(_MAX_DEPTH):
        level = [inner for value in level if isinstance(value, dict | list) for inner in _values(value)]
        if not level:
            return None
    return f"its recipe has more than {_MAX_DEPTH} levels"


def _values(container: dict[str, Any] | list[Any]) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else container


def boundary_id(tokenizer: TokenizerInfo) -> int:
    """The input of a document's first target, if no real token comes before it: EOS if documents end in it, else BOS, else 0."""
    if tokenizer.adds_eos and tokenizer.eos_id is not None:
        return tokenizer.eos_id
    return tokenizer.bos_id if tokenizer.bos_id is not None else 0


def id_dtype(vocab_size: int) -> Literal["u2", "u4"]:
    """Type of an id on disk: two bytes if every id fits, else four."""
    return "u2" if vocab_size <= 65_536 else "u4"


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling for equal values, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
