"""Decides how the kept documents of a slice become its shards: which library encodes, and what is put around each."""

import array
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from packtrain.config.recipe import ID_KINDS, Recipe
from packtrain.data.format.manifest import SPLITS, ShardInfo, SplitName, id_dtype
from packtrain.data.tokens.fast import DifferentIdsError, FastEncoder
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.keep import Kept, kept_rows, read_keep
from packtrain.prepare.steps.lengths import length_histogram, longer_than
from packtrain.prepare.steps.results import TOKENS, Results
from packtrain.prepare.steps.scan import open_tokenizer
from packtrain.prepare.steps.writer import ShardWriter

_BATCH_BYTES = 1 << 19


def tokenize_slice(place: Results, work: Slice, tokenizer_hash: str, *, attempt: int) -> None:
    """Stage two: write the shards of the rows that `write_keep` named, then the record that they are finished.

    A third attempt, after two workers died, takes half the batches. The files are the same for any batch size.
    """
    store = place.store
    tokenizer = open_tokenizer(store, tokenizer_hash)
    keep = read_keep(place, work)
    name = f"{TOKENS}/{place.tokens_key(work, keep, tokenizer_hash)}"
    make = partial(_write_shards, place, work, keep, name, tokenizer, _BATCH_BYTES >> max(0, attempt - 2))
    backend: dict[str, Any] = {}
    with store.writing():
        try:
            encoder = FastEncoder(tokenizer) if place.recipe.tokenizer.backend == "fast" else None
            closed = make(encoder)
            backend = encoder.counts if encoder is not None else {}
        except DifferentIdsError as error:
            # Nothing of what it gave is kept, not even what agreed.
            closed, backend = make(None), {"differs": str(error)}
        lengths = [pair[1] for pair in closed.values() if pair is not None]
        record = {
            "shards": {name: pair[0].model_dump() for name, pair in closed.items() if pair is not None},
            "lengths": length_histogram(lengths),
            "longer": longer_than(lengths),
            "backend": backend,
        }
        store.write(f"{name}.json", json.dumps(record).encode())


def _write_shards(
    place: Results,
    work: Slice,
    keep: npt.NDArray[np.bool_],
    name: str,
    tokenizer: Tokenizer,
    batch_bytes: int,
    encoder: FastEncoder | None,
) -> dict[SplitName, tuple[ShardInfo, npt.NDArray[np.int64]] | None]:
    """Write the shard of each side; what it holds and its documents' lengths. Raises DifferentIdsError, leaving nothing."""
    writers = [ShardWriter(place.store, f"{name}.{split}", id_dtype(tokenizer.vocab_size)) for split in SPLITS]
    try:
        for batch in _batches(place, work, keep, batch_bytes):
            _tokenize(batch, tokenizer, encoder, place.recipe, writers)
        return {side: writer.close() for side, writer in zip(SPLITS, writers, strict=True)}
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise


def _batches(place: Results, work: Slice, keep: npt.NDArray[np.bool_], batch_bytes: int) -> Iterator[list[Kept]]:
    batch: list[Kept] = []
    size = 0
    for kept in kept_rows(place, work, keep, want_ids=True):
        batch.append(kept)
        size += kept.utf8_bytes
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokenize(
    batch: list[Kept], tokenizer: Tokenizer, encoder: FastEncoder | None, recipe: Recipe, writers: list[ShardWriter]
) -> None:
    before = [tokenizer.bos_id] if recipe.tokenizer.bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if recipe.tokenizer.eos and tokenizer.eos_id is not None else []
    is_given = recipe.source.kind in ID_KINDS
    encoded: Sequence[list[int] | memoryview]
    if is_given:
        before, after = [], []
        encoded = [kept.row.ids.tolist() for kept in batch]
    elif encoder is not None:
        encoded = encoder.encode_batch([kept.text for kept in batch], [kept.content for kept in batch])
    else:
        encoded = tokenizer.encode_batch([kept.text for kept in batch])
    for side, writer in enumerate(writers):
        # Five times as fast as a numpy array made from the lists.
        joined = array.array("I")
        lengths: list[int] = []
        utf8_bytes = 0
        for kept, ids in zip(batch, encoded, strict=True):
            if kept.side != side:
                continue
            start = len(joined)
            joined.fromlist(before)
            if isinstance(ids, list):
                joined.fromlist(ids)
            else:
                joined.frombytes(ids)
            joined.fromlist(after)
            lengths.append(len(joined) - start)
            utf8_bytes += kept.utf8_bytes
            writer.describe(kept.row.file, kept.row.row, kept.row.id, kept.content)
        if not lengths:
            continue
        stream = np.frombuffer(joined, dtype=np.uint32)
        if not is_given and int(_control_table(tokenizer)[stream].sum()) != len(lengths) * (len(before) + len(after)):
            raise TokenizerError(
                f"the tokenizer makes control tokens from plain text (in {batch[0].row.file}, from row {batch[0].row.row}); "
                "a document could forge its own end: name another tokenizer"
            )
        writer.add(stream, lengths, utf8_bytes)


@lru_cache(maxsize=1)
def _control_table(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    table = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    table[list(tokenizer.control_ids)] = True
    return table
