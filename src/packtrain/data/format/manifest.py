"""Decides what the manifest of a prepared dataset contains, and how it is read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from packtrain.config.base import Section
from packtrain.errors import DatasetError
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import copy_command

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
PLANS_FOLDER = "plans"

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
# The files of a shard.
SUFFIXES = ("tok", "idx.npy", "src.parquet")

Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class FileInfo(Section):
    """A file of a shard: its size in bytes, and its xxh3-128 in hexadecimal."""

    size: Count
    hash: str


class ShardInfo(Section):
    """A shard: the documents of one slice that are on one side of the split, in source order."""

    name: str
    """Number of the slice, five digits."""
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


class Manifest(Section):
    """Everything that is known about a dataset. It is written last, so a folder without one is not a dataset."""

    format_version: int
    created_by: str
    recipe: dict[str, Any]
    recipe_hash: str
    inputs_hash: str
    """Hash of the recipe, the content of the source and the tokenizer: equal inputs give equal shards."""
    source_revision: str | None
    tokenizer: TokenizerInfo
    dtype: Literal["u2", "u4"]
    splits: dict[str, tuple[ShardInfo, ...]]
    length_histogram: dict[str, int]
    """Documents by length in tokens. A key is the least length in its bin, which extends to twice that."""
    ledger: dict[str, Any]
    checksum: str | None = None
    """SHA-256, hexadecimal, of everything else; None until it is written."""

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, of what a training run depends on: shards, tokenizer and dtype, but not the source's path."""
        fields = {"format_version", "inputs_hash", "tokenizer", "dtype", "splits"}
        return hashlib.sha256(canonical_json(self.model_dump(include=fields))).hexdigest()

    @property
    def is_as_written(self) -> bool:
        """Whether it is unchanged since `to_bytes` wrote it."""
        return self.checksum == _hash_tree(self.model_dump(exclude={"checksum"}))

    def to_bytes(self) -> bytes:
        tree = self.model_dump(exclude={"checksum"})
        return (json.dumps({**tree, "checksum": _hash_tree(tree)}, indent=1, ensure_ascii=False) + "\n").encode()


def _hash_tree(tree: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(tree)).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder. Raises DatasetError if there is none, or if this version cannot read it."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
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
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """Parse a manifest file; `path` names it in errors. Raises DatasetError if this version cannot read it."""
    try:
        tree = json.loads(data)
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if version != FORMAT_VERSION:
            raise DatasetError(f"{path} has format version {version}; this packtrain reads version {FORMAT_VERSION}")
        return Manifest.model_validate(tree)
    except (ValueError, ValidationError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({str(error).splitlines()[0]}); prepare the dataset again") from None


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
