"""litdata's `optimize` into chunks for its TokensLoader, with the fastest call of `tokenizers`."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from litdata import TokensLoader, optimize
from tokenizers import Tokenizer

BLOCK = 1025


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> None:
    """Write chunks of ids, one document after the other."""
    write(text, partial(_encode, str(tokenizer / "tokenizer.json")), workers, out)


def write(text: Path, encode: Callable[[str], Iterator[torch.Tensor]], workers: int, out: Path) -> None:
    """The part that does not depend on how the tokenizer is called."""
    optimize(
        fn=encode,
        inputs=[str(path) for path in sorted(text.glob("*.parquet"))],
        output_dir=str(out),
        num_workers=workers,
        chunk_size=BLOCK * 8192,
        item_loader=TokensLoader(block_size=BLOCK),
    )


def outcome(out: Path) -> tuple[int, int]:
    """Count the documents and tokens written."""
    chunks = json.loads((out / "index.json").read_text())["chunks"]
    return sum(chunk["chunk_size"] for chunk in chunks), sum(chunk["dim"] for chunk in chunks)


def _encode(tokenizer: str, path: str) -> Iterator[torch.Tensor]:
    opened = Tokenizer.from_file(tokenizer)
    opened.encode_special_tokens = True
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
        for encoding in opened.encode_batch_fast(batch["text"].to_pylist()):
            yield torch.tensor(encoding.ids, dtype=torch.int32)
