"""Decides how the shards of a prepared dataset are checked, opened and read."""

import resource
import stat
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packtrain.data.format.manifest import (
    PLANS_FOLDER,
    SPLITS,
    SUFFIXES,
    TOKENIZER_FOLDER,
    Manifest,
    ShardInfo,
    SplitName,
    boundary_id,
    read_manifest,
)
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import DatasetChangedError, DatasetError
from packtrain.storage.mapped import check_length
from packtrain.storage.regular import explain, find_irregular

_VERIFY = "run `packtrain verify` on the dataset"
_FILE = pa.dictionary(pa.int32(), pa.string())
SOURCE_SCHEMA = pa.schema([("file", _FILE), ("row", pa.int64()), ("id", pa.string()), ("hash", pa.binary(16))])


class DocumentSource(NamedTuple):
    """Where a document came from. `row` counts from 0 in its file."""

    file: str
    row: int
    id: str | None
    hash: str


class Split:
    """One side of a dataset as a single stream of ids, document after document."""

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
        self._maps: dict[int, np.ndarray] = {}
        self._with_checked_ends: set[int] = set()
        self.before_reading: Callable[[ShardInfo, str], None] = lambda _shard, _suffix: None
        """Called with a shard and the ending of its file before that file is read. `content.check_what_is_read` sets it."""

    @property
    def document_ends(self) -> np.ndarray:
        """Position in the stream just after each document, int64[num_documents]. Reads all of them, each time.

        `rows.index.DocumentIndex` reads parts of them.
        """
        parts = [self.shard_ends(index) + start for index, start in enumerate(self._starts[:-1])]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def shard_ends(self, shard: int) -> np.ndarray:
        """Position in the shard just after each of its documents, int64[documents]; a view of the mapped file.

        Raises DatasetError if they do not rise to the number of its tokens.
        """
        path = self.folder / f"{self.shards[shard].name}.idx.npy"
        self.before_reading(self.shards[shard], "idx.npy")
        try:
            ends = np.asarray(np.load(path, mmap_mode="r")).view(np.int64)
            check_length(ends)
        except (ValueError, OSError) as error:
            raise DatasetChangedError(f"{path} was changed while it was in use ({error}); {_VERIFY}") from None
        if shard not in self._with_checked_ends:
            if _do_not_rise(ends, self.shards[shard].tokens):
                raise DatasetError(f"{path} is damaged (its ends of documents do not rise to the end); {_VERIFY}")
            self._with_checked_ends.add(shard)
        return ends

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids at stream positions start to stop, across shards; a view of the mapped file if one shard has them all.

        Raises DatasetChangedError if a file is shorter now than when the dataset was opened.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"positions {start} to {stop} are outside the {self.num_tokens} tokens of {self.name}")
        pieces = []
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            offset = int(self._starts[index])
            end = min(stop, int(self._starts[index + 1]))
            if end > start:
                ids = self._map(index)
                check_length(ids)
                pieces.append(ids[start - offset : end - offset])
            start, index = end, index + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=self.dtype)

    def sources_of_shard(self, shard: int, columns: Sequence[str] = SOURCE_SCHEMA.names) -> pa.Table:
        """Some or all of file, row, id and hash of each document of a shard. Raises DatasetError if the file is damaged."""
        path = self.folder / f"{self.shards[shard].name}.src.parquet"
        self.before_reading(self.shards[shard], "src.parquet")
        try:
            table = pq.read_table(path, columns=list(columns))
            table.validate(full=True)
            if table.schema.names != list(columns) or table.num_rows != self.shards[shard].documents:
                raise pa.ArrowInvalid("it does not have one source for each document")
            table = table.cast(pa.schema([SOURCE_SCHEMA.field(column) for column in columns]))
            if any(table[column].null_count for column in columns if column != "id"):
                raise pa.ArrowInvalid("a document has no file, row or hash")
            return table
        except PermissionError as error:
            raise DatasetError(f"{path} cannot be read ({explain(error)})") from None
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise DatasetError(f"{path} is damaged ({reason}); {_VERIFY}") from None

    def _map(self, index: int) -> np.ndarray:
        if index not in self._maps:
            self.before_reading(self.shards[index], "tok")
            path, tokens = self.folder / f"{self.shards[index].name}.tok", self.shards[index].tokens
            try:
                self._maps[index] = np.memmap(path, dtype=self.dtype, mode="r", shape=(tokens,))
            except (ValueError, OSError) as error:
                raise DatasetChangedError(f"{path} was changed while it was in use ({error}); {_VERIFY}") from None
        return self._maps[index]


class Dataset:
    """A prepared dataset, opened by `open_dataset`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer_folder = folder / TOKENIZER_FOLDER
        self._splits = {name: Split(folder, manifest, name) for name in SPLITS}

    def split(self, name: SplitName) -> Split:
        """The documents of one side. The validation side is empty if the recipe held none out."""
        return self._splits[name]


def open_dataset(folder: Path) -> Dataset:
    """Open what `packtrain prepare` wrote, after checking the manifest's checksum, sizes, headers, largest ids and the tokenizer.

    Raises DatasetError with the shard and the reason if anything is missing, cut short or does not fit. `check_content` and
    `packtrain verify` check the content of the files.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name in SPLITS:
        for shard in manifest.splits.get(name, ()):
            try:
                problem = find_shard_problem(folder / name, shard, manifest)
            except PermissionError as error:
                raise DatasetError(f"{error.filename or folder / name} cannot be read ({explain(error)})") from None
            except OSError as error:
                problem = f"{error.filename} cannot be read ({explain(error)})"
            if problem is not None:
                raise refuse_shard(folder, name, shard, problem)
    if open_tokenizer(folder).hash != manifest.tokenizer.hash:
        raise DatasetError(
            f"{folder}: the tokenizer in it is not the one that made its ids (hash {manifest.tokenizer.hash[:12]}); put the "
            "original files back, or prepare the dataset again"
        )
    _allow_open_files(sum(len(shards) for shards in manifest.splits.values()))
    return Dataset(folder, manifest)


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of the dataset in `folder`. Raises DatasetError for a link or a special file among its files.

    A dataset may come from elsewhere, and a link in it may lead to any file of this machine.
    """
    tokenizer = folder / TOKENIZER_FOLDER
    try:
        problem = f"{TOKENIZER_FOLDER} is a link" if tokenizer.is_symlink() else find_irregular(tokenizer)
        if problem is not None:
            raise DatasetError(
                f"{folder}: the tokenizer is refused, because {problem}; put the original file there, or prepare the dataset "
                "again"
            )
        return load_tokenizer(tokenizer)
    except FileNotFoundError:
        raise DatasetError(f"{folder} has no {TOKENIZER_FOLDER} folder; prepare the dataset again") from None
    except OSError as error:
        raise DatasetError(f"{error.filename or tokenizer} cannot be read ({explain(error)})") from None


def refuse_shard(folder: Path, split: str, shard: ShardInfo, problem: str) -> DatasetError:
    """The error for a shard that is not what the manifest says."""
    return DatasetError(f"{folder}: shard {split}/{shard.name} is refused: {problem}; prepare the dataset again")


def find_shard_problem(folder: Path, shard: ShardInfo, manifest: Manifest) -> str | None:
    """Why the sizes and headers of a shard do not fit the manifest, in words; None if they do.

    Raises OSError if a file cannot be read.
    """
    for suffix in SUFFIXES:
        path = folder / f"{shard.name}.{suffix}"
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{path.name} is missing"
        if not stat.S_ISREG(found.st_mode):
            return f"{path.name} is not a regular file"
        if found.st_size != shard.files[suffix].size:
            return f"{path.name} has {found.st_size} bytes, but the manifest says {shard.files[suffix].size}"
    if shard.files["tok"].size != shard.tokens * np.dtype(manifest.dtype).itemsize:
        return f"{shard.name}.tok has {shard.files['tok'].size} bytes, not {shard.tokens} ids of {manifest.dtype}"
    if shard.max_id >= manifest.tokenizer.vocab_size:
        return f"its largest id {shard.max_id} is outside the vocabulary of {manifest.tokenizer.vocab_size}"
    try:
        ends = np.load(folder / f"{shard.name}.idx.npy", mmap_mode="r")
    # Errors of numpy and of the parser of its header.
    except (ValueError, EOFError, SyntaxError, TypeError, ArithmeticError, tokenize.TokenError) as error:
        return f"{shard.name}.idx.npy is not a readable index ({error})"
    if ends.dtype != np.dtype("<u8") or ends.shape != (shard.documents,):
        return f"{shard.name}.idx.npy contains {ends.dtype}{list(ends.shape)}, not uint64[{shard.documents}]"
    if int(ends[-1] if shard.documents else 0) != shard.tokens:
        return f"{shard.name}.idx.npy ends at {int(ends[-1])}, not at the {shard.tokens} tokens of the shard"
    return None


def _do_not_rise(ends: np.ndarray, tokens: int) -> bool:
    """Whether ends of documents, int64[documents], are out of order or do not end at the last token."""
    return len(ends) > 0 and bool(ends[0] < 0 or ends[-1] != tokens or (ends[1:] < ends[:-1]).any())


def _allow_open_files(shards: int) -> None:
    """Raise the limit on open files: each mapped shard needs one, and the usual 1,024 are too few for a large corpus."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = shards + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
