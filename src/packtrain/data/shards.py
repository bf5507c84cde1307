"""Decides the format of a prepared dataset on disk: what a shard and the manifest hold, and how they are opened."""

import hashlib
import json
import re
import resource
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator

from packtrain.config.base import Section
from packtrain.data.store import copy_command
from packtrain.data.tokenizer import load_tokenizer
from packtrain.errors import DatasetError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
PLANS_FOLDER = "plans"
SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = ("train", "validation")
SUFFIXES = ("tok", "idx.npy", "src.parquet")
SOURCE_SCHEMA = pa.schema(
    [
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("hash", pa.binary(16)),
    ]
)
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


class DocumentSource(NamedTuple):
    """Where a document came from; `row` counts from 0 in its file."""

    file: str
    row: int
    id: str | None
    hash: str


class Split:
    """One side of a dataset as a single stream of ids, its documents one after the other."""

    def __init__(self, folder: Path, manifest: Manifest, name: SplitName) -> None:
        self.name = name
        self.folder = folder / name
        self.plan_folder = folder / PLANS_FOLDER
        self.shards = manifest.splits.get(name, ())
        self.dtype: np.dtype[Any] = np.dtype("<" + manifest.dtype)
        self.manifest_hash = manifest.hash
        self.num_tokens = sum(s.tokens for s in self.shards)
        self.num_documents = sum(s.documents for s in self.shards)
        self.utf8_bytes = sum(s.utf8_bytes for s in self.shards)
        self.boundary_id = boundary_id(manifest.tokenizer)
        self._starts = np.cumsum([0, *(s.tokens for s in self.shards)], dtype=np.int64)
        self._document_starts = np.cumsum([0, *(s.documents for s in self.shards)], dtype=np.int64)
        self._maps: dict[int, npt.NDArray[Any]] = {}

    @property
    def document_ends(self) -> npt.NDArray[np.int64]:
        """Position in the stream just behind each document, int64[num_documents]: read anew each time, and all of it.

        `data.index` gives parts of it.
        """
        parts = [self.shard_ends(index) + start for index, start in enumerate(self._starts[:-1])]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def shard_ends(self, shard: int) -> npt.NDArray[np.int64]:
        """Position in the shard just behind each of its documents, int64[documents]; a view of the mapped file."""
        ends = np.load(self.folder / f"{self.shards[shard].name}.idx.npy", mmap_mode="r")
        return np.asarray(ends).view(np.int64)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Ids at stream positions start to stop, over shard borders; a view of the mapped file where one shard has them all."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"positions {start} to {stop} are outside of the {self.num_tokens} tokens of {self.name}")
        pieces = []
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            offset = int(self._starts[index])
            end = min(stop, int(self._starts[index + 1]))
            if end > start:
                pieces.append(self._map(index)[start - offset : end - offset])
            start, index = end, index + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=self.dtype)

    def source_of(self, document: int) -> DocumentSource:
        """File, row, id and content hash of a document, by its number in this split."""
        index = int(np.searchsorted(self._document_starts, document, side="right")) - 1
        row = self.sources_of_shard(index).slice(document - int(self._document_starts[index]), 1).to_pylist()[0]
        return DocumentSource(row["file"], row["row"], row["id"], row["hash"].hex())

    def sources_of_shard(self, shard: int, columns: Sequence[str] = SOURCE_SCHEMA.names) -> pa.Table:
        """Columns file, row, id and hash of each document of a shard, or some. Raises DatasetError if the file is damaged."""
        path = self.folder / f"{self.shards[shard].name}.src.parquet"
        try:
            table = pq.read_table(path, columns=list(columns))
            table.validate(full=True)
            if table.schema.names != list(columns) or table.num_rows != self.shards[shard].documents:
                raise pa.ArrowInvalid("it does not name a source for each document")
            return table.cast(pa.schema([SOURCE_SCHEMA.field(column) for column in columns]))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise DatasetError(f"{path} is damaged ({reason}); run `packtrain verify` on the dataset") from None

    def _map(self, index: int) -> npt.NDArray[Any]:
        if index not in self._maps:
            self._maps[index] = np.memmap(self.folder / f"{self.shards[index].name}.tok", dtype=self.dtype, mode="r")
        return self._maps[index]


class Dataset:
    """A prepared dataset, opened by `open_dataset`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer_folder = folder / TOKENIZER_FOLDER
        self._splits = {name: Split(folder, manifest, name) for name in SPLITS}

    def split(self, name: SplitName) -> Split:
        """The documents of one side; empty where the recipe held none out."""
        return self._splits[name]


def open_dataset(folder: Path) -> Dataset:
    """Open what `packtrain prepare` wrote, after checking sizes, headers, largest ids and the tokenizer.

    Raises DatasetError naming the shard and why, if anything is missing, cut short or does not fit. The content of every
    file is checked by `packtrain verify`, which reads all of it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name in SPLITS:
        for shard in manifest.splits.get(name, ()):
            problem = shard_problem(folder / name, shard, manifest)
            if problem is not None:
                raise DatasetError(
                    f"{folder}: shard {name}/{shard.name} is refused: {problem}; prepare the dataset again"
                )
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    if tokenizer.hash != manifest.tokenizer.hash:
        raise DatasetError(
            f"{folder}: the tokenizer in it (hash {tokenizer.hash[:12]}) is not the one that made its ids "
            f"({manifest.tokenizer.hash[:12]}); put the original files back, or prepare the dataset again"
        )
    _allow_open_files(sum(len(shards) for shards in manifest.splits.values()))
    return Dataset(folder, manifest)


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


def shard_problem(folder: Path, shard: ShardInfo, manifest: Manifest) -> str | None:
    """Why a shard does not fit its manifest by its sizes and headers, in words; None if it does."""
    for suffix in SUFFIXES:
        path = folder / f"{shard.name}.{suffix}"
        if not path.is_file():
            return f"{path.name} is missing"
        size = path.stat().st_size
        if size != shard.files[suffix].size:
            return f"{path.name} has {size} bytes, the manifest says {shard.files[suffix].size}"
    if shard.files["tok"].size != shard.tokens * np.dtype(manifest.dtype).itemsize:
        return (
            f"{shard.name}.tok has {shard.files['tok'].size} bytes, which is not {shard.tokens} ids of {manifest.dtype}"
        )
    if shard.max_id >= manifest.tokenizer.vocab_size:
        return f"its largest id {shard.max_id} is outside of the vocabulary of {manifest.tokenizer.vocab_size}"
    try:
        ends = np.load(folder / f"{shard.name}.idx.npy", mmap_mode="r")
    # What numpy and the parser of its header raise.
    except (ValueError, OSError, SyntaxError, TypeError, ArithmeticError, tokenize.TokenError) as error:
        return f"{shard.name}.idx.npy is not a readable index ({error})"
    if ends.dtype != np.dtype("<u8") or ends.shape != (shard.documents,):
        return f"{shard.name}.idx.npy holds {ends.dtype}{list(ends.shape)}, not uint64[{shard.documents}]"
    if shard.documents and int(ends[-1]) != shard.tokens:
        return f"{shard.name}.idx.npy ends at {int(ends[-1])}, not at the {shard.tokens} tokens of the shard"
    return None


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


def _allow_open_files(shards: int) -> None:
    """Every mapped shard keeps a file descriptor; the usual limit of 1024 is too low for a large corpus."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
