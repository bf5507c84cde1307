"""Decides how a prepared dataset is read in Python: a sequence of documents, and of the rows that training makes of them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, SupportsIndex, overload

from packtrain.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from packtrain.data.format.manifest import Manifest, SplitName
    from packtrain.data.format.shards import Dataset, DocumentSource
    from packtrain.data.rows.index import DocumentIndex
    from packtrain.data.rows.plan import RowPlan
    from packtrain.data.tokens.tokenizer import Tokenizer


def open_dataset(folder: str | Path, split: SplitName = "train") -> Documents:
    """Opens one side of what `prepare` wrote: a sequence of documents. `dataset[i]` is document i, `dataset.rows(...)` the rows.

    Checks the manifest, sizes and tokenizer now, and each file against its hash before its first use. Raises DatasetError
    if the folder is not a dataset or a file is missing, cut short or changed; ConfigError for an unknown split.
    """
    from packtrain.data.format.content import check_what_is_read
    from packtrain.data.format.manifest import SPLITS
    from packtrain.data.format.shards import open_dataset as open_prepared

    if split not in SPLITS:
        raise ConfigError(f"a dataset has no split '{split}'; write {' or '.join(map(repr, SPLITS))}")
    dataset = open_prepared(Path(folder))
    check_what_is_read(dataset)
    return Documents(dataset, split)


@dataclass(frozen=True, eq=False)
class PreparedDocument:
    """A document of a dataset. `text` and `source` are read when they are first asked for."""

    number: int
    """Counted from 0 in its split."""
    ids: np.ndarray
    """Token ids, uint16[tokens] or uint32[tokens], with BOS and EOS if the recipe adds them; a view of the mapped file."""
    _documents: Documents

    @functools.cached_property
    def text(self) -> str:
        """The ids decoded, without control tokens."""
        return self._documents.tokenizer.decode(self.ids.tolist())

    @functools.cached_property
    def source(self) -> DocumentSource:
        """Where it came from: file, row of the file (from 0), id if the source has one, and hash of its content."""
        from packtrain.data.inspect import find_sources

        return find_sources(self._documents.dataset.split(self._documents.name), [self.number])[self.number]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    def __repr__(self) -> str:
        start = self._documents.tokenizer.decode(self.ids[:24].tolist())
        return f"PreparedDocument({self._documents.name}/{self.number}, {len(self):,} tokens, {start!r:.60})"


class Documents(Sequence[PreparedDocument]):
    """One side of a prepared dataset, opened by `open_dataset`."""

    def __init__(self, dataset: Dataset, name: SplitName) -> None:
        self.dataset = dataset
        self.name: SplitName = name
        self._split = dataset.split(name)

    @property
    def folder(self) -> Path:
        return self.dataset.folder

    @property
    def manifest(self) -> Manifest:
        """Recipe, tokenizer, shards, and the ledger of every document, byte and token."""
        return self.dataset.manifest

    @property
    def num_tokens(self) -> int:
        return self._split.num_tokens

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids: `encode` gives a list of ids, `decode` a text."""
        from packtrain.data.format.shards import open_tokenizer

        return open_tokenizer(self.folder)

    def rows(
        self, seq_len: int = 1024, packing: Literal["concat", "bestfit"] = "concat", *, document_mask: bool = False
    ) -> TrainingRows:
        """The rows of `seq_len` targets that documents are packed into, as data.packing and data.document_mask say.

        Row i is that of the plan; a run sees the rows in an order of its own, which `inspect(RUN, step=1)` shows. Raises
        DatasetError if there are no tokens, ConfigError if a value does not fit.
        """
        from packtrain.data.rows.pack import PACKINGS, plan

        if not isinstance(seq_len, int) or seq_len < 1:
            raise ConfigError(f"seq_len={seq_len} does not fit; write a whole number of at least 1")
        if packing not in PACKINGS:
            raise ConfigError(f"packing={packing!r} does not fit; write {' or '.join(map(repr, PACKINGS))}")
        return TrainingRows(plan(self._split, seq_len, packing), document_mask)

    @functools.cached_property
    def _index(self) -> DocumentIndex:
        from packtrain.data.rows.index import DocumentIndex

        return DocumentIndex(self._split)

    def __len__(self) -> int:
        """Number of documents."""
        return self._split.num_documents

    @overload
    def __getitem__(self, index: SupportsIndex) -> PreparedDocument: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreparedDocument]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> PreparedDocument | list[PreparedDocument]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = _checked(index, len(self), f"{self.name} documents of {self.folder}")
        start, end = self._index.span(number)
        return PreparedDocument(number, self._split.read(start, end), self)

    def __iter__(self) -> Iterator[PreparedDocument]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        return f"Documents({str(self.folder)!r}, {self.name}: {len(self):,} documents, {self.num_tokens:,} tokens)"


class TrainingRows(Sequence["dict[str, np.ndarray]"]):
    """The rows of a packing plan, as a step sees them; torch's DataLoader takes it as a dataset. Made by `Documents.rows`.

    Each row is a dict: `inputs` int64[seq_len], and `targets` int64[seq_len] with -100 where there is none (padding, at the
    end). With document_mask also `segments` int32[seq_len], the document of each position, counted from 0 in the row, and
    `positions` int64[seq_len], counted from 0 in the document.
    """

    def __init__(self, plan: RowPlan, document_mask: bool) -> None:
        self.plan = plan
        self._document_mask = document_mask

    def __len__(self) -> int:
        return self.plan.num_rows

    @overload
    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, np.ndarray]]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        import numpy as np

        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = np.array([_checked(index, len(self), "rows")], dtype=np.int64)
        types: dict[str, type[np.generic]] = {"inputs": np.int64, "targets": np.int64}
        if self._document_mask:
            types |= {"segments": np.int32, "positions": np.int64}
        out = {name: np.zeros((1, self.plan.seq_len), dtype=dtype) for name, dtype in types.items()}
        self.plan.fill(row, *out.values())
        return {name: array[0] for name, array in out.items()}


def _checked(index: SupportsIndex, count: int, what: str) -> int:
    """An index from 0; a negative one counts from the end. Raises IndexError outside the sequence."""
    number = operator.index(index)
    if not -count <= number < count:
        raise IndexError(f"there is no {number} among the {count} {what}")
    return number % count
