"""The baseline: `encode_batch_fast` on texts in memory, in workers that are already running; nothing is written."""

import json
import multiprocessing
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer

BATCH_DOCUMENTS = 128


def prepare(text: Path, tokenizer: Path, workers: int, out: Path) -> dict[str, float]:
    """Encode an equal share in each process; returns the seconds of the encoding calls alone."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(workers + 1), context.Barrier(workers + 1)
    processor, counts = context.Array("d", workers), context.Array("q", 2 * workers)
    processes = [
        context.Process(target=_encode_share, args=(tokenizer, text, rank, workers, ready, done, processor, counts))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    out.mkdir()
    (out / "counts.json").write_text(json.dumps([sum(counts[::2]), sum(counts[1::2])]))
    return {"seconds": seconds, "processor_seconds": sum(processor)}


def outcome(out: Path) -> tuple[int, int]:
    """Count the documents and tokens encoded."""
    documents, tokens = json.loads((out / "counts.json").read_text())
    return documents, tokens


def _encode_share(
    tokenizer: Path, text: Path, rank: int, workers: int, ready: Barrier, done: Barrier, processor: Any, counts: Any
) -> None:
    opened = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    opened.encode_special_tokens = True
    texts = [t for path in sorted(text.glob("*.parquet")) for t in pq.read_table(path)["text"].to_pylist()]
    share = texts[rank::workers]
    del texts
    tokens = 0
    ready.wait()
    start = time.process_time()
    for first in range(0, len(share), BATCH_DOCUMENTS):
        tokens += sum(len(e.ids) for e in opened.encode_batch_fast(share[first : first + BATCH_DOCUMENTS]))
    processor[rank] = time.process_time() - start
    counts[2 * rank], counts[2 * rank + 1] = len(share), tokens
    done.wait()
