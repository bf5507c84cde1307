"""litdata's `optimize` into chunks for its TokensLoader, one document at a time, as in its documentation on pretraining."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from benchmarks.preparers.litdata_tuned import outcome, write

__all__ = ["outcome", "prepare"]


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> None:
    """Write chunks of ids, one document after the other."""
    write(text, partial(_encode, str(tokenizer / "tokenizer.json")), workers, out)


def _encode(tokenizer: str, path: str) -> Iterator[torch.Tensor]:
    opened = Tokenizer.from_file(tokenizer)
    opened.encode_special_tokens = True
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
        for document in batch["text"].to_pylist():
            yield torch.tensor(opened.encode(document).ids, dtype=torch.int32)
