"""Decides what the manifest of a prepared dataset holds, and how it is read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from packtrain.config.base import Section
from packtrain.errors import DatasetError
from packtrain.storage.store import copy_command

FORMAT_VERSION = 1


MANIFEST = "manifest.json"


TOKENIZER_FOLDER = "tokenizer"


PLANS_FOLDER = "plans"


SplitName = Literal["train", "validation"]


SPLITS: tuple[SplitName, ...] = ("train", "validation")


SUFFIXES = ("tok", "idx.npy", "src.parquet")


Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class FileInfo(Section):
    """A file of a shard: bytes, and its xxh3-128 in hexadecimal."""

    size: Count
    hash: str


class ShardInfo(Section):
    """A shard: the documents of one slice that fell to one split, in source order."""

    name: str
    """Number of the slice, five digits."""
    documents: Count
    tokens: Count
    """Ids in the .tok file, BOS and EOS among them."""
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
    """The tokenizer that made the ids, and what was put around each document."""

    hash: str
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    adds_eos: bool
    kind: Literal["byte-level", "sentencepiece", "other"]


class Manifest(Section):
    """Everything that is known of a dataset; written last, so a folder without one is not a dataset."""

    format_version: int
    created_by: str
    recipe: dict[str, Any]
    recipe_hash: str
    inputs_hash: str
    """Of the recipe, the content of the source and the tokenizer: equal inputs give equal shards."""
    source_revision: str | None
    tokenizer: TokenizerInfo
    dtype: Literal["u2", "u4"]
    splits: dict[str, tuple[ShardInfo, ...]]
    length_histogram: dict[str, int]
    """Documents by length in tokens; a key is the least length of its bin, which reaches to twice that."""
    ledger: dict[str, Any]
    checksum: str | None = None
    """SHA-256, hexadecimal, of all the rest, written with it; None before it is written."""

    @property
    def hash(self) -> str:
        """SHA-256, hexadecimal, of what a training run depends on: shards, tokenizer, dtype; not where the source lies."""
        fields = {"format_version", "inputs_hash", "tokenizer", "dtype", "splits"}
        return hashlib.sha256(canonical_json(self.model_dump(include=fields))).hexdigest()

    @property
    def is_as_written(self) -> bool:
        """Whether it is what `to_bytes` gave, and no hand changed a figure since."""
        return self.checksum == _checksum(self.model_dump(exclude={"checksum"}))

    def to_bytes(self) -> bytes:
        tree = self.model_dump(exclude={"checksum"})
        return (json.dumps({**tree, "checksum": _checksum(tree)}, indent=1, ensure_ascii=False) + "\n").encode()


def _checksum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(tree)).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder. Raises DatasetError if there is none, or it is not one that this version reads."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        # A path has no double slash.
        if match := re.match(r"([a-z][a-z0-9+]*):/+(.*)", str(folder)):
            url = f"{match[1]}://{match[2]}"
            raise DatasetError(
                f"{url} lies on a store, and a dataset is read from memory-mapped files; copy it to a disk with "
                f"{copy_command(url)} and write that folder"
            ) from None
        unfinished = (folder / ".work").is_dir()
        hint = (
            "its preparation was not finished: run the same `packtrain prepare` again"
            if unfinished
            else ("write the folder that `packtrain prepare RECIPE --out FOLDER` made")
        )
        raise DatasetError(f"{folder} is not a prepared dataset, as it has no {MANIFEST}; {hint}") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """A manifest file's content; `path` names it in errors. Raises DatasetError if this version does not read it."""
    try:
        tree = json.loads(data)
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if version != FORMAT_VERSION:
            raise DatasetError(f"{path} has format version {version}; this packtrain reads version {FORMAT_VERSION}")
        return Manifest.model_validate(tree)
    except (ValueError, ValidationError, RecursionError) as error:
        raise DatasetError(f"{path} is damaged ({str(error).splitlines()[0]}); prepare the dataset again") from None


def boundary_id(tokenizer: TokenizerInfo) -> int:
    """The input before a document's first token, where there is no real token before it: EOS if documents end in it, else BOS, else 0."""
    if tokenizer.adds_eos and tokenizer.eos_id is not None:
        return tokenizer.eos_id
    return tokenizer.bos_id if tokenizer.bos_id is not None else 0


def id_dtype(vocab_size: int) -> Literal["u2", "u4"]:
    """Width of an id on disk: two bytes where every id fits."""
    return "u2" if vocab_size <= 65_536 else "u4"


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
