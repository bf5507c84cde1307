"""Preparation end to end against the tokenizer alone: the same text, the same number of workers, interleaved, medians.

    python -m benchmarks.prepare --json prepare.json
    python -m benchmarks.prepare --source corpus.jsonl --tokenizer FOLDER --workers 2 --megabytes 100

The text (Python's standard library, or the documents of a jsonl file) is cut into documents of some 4 KB, as web pages
are long, and repeated with a number before each, so that none is a copy. It is written as parquet. `prepare` is timed from
reading it to the manifest, start of the workers included; the tokenizer has its texts in memory, its workers are running,
and only the calls that give ids are timed. Processor seconds are those of all processes together; on a machine with other
work they say more than seconds on the clock.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from packtrain.config.recipe import Recipe
from packtrain.data import documents
from packtrain.data.clean import cleaner
from packtrain.data.prepare import prepare
from packtrain.data.tokenizer import load_tokenizer
from packtrain.data.tokenizer_training import train_tokenizer

DOCUMENT_CHARS = 4096
BATCH_DOCUMENTS = 128
FILES = 4


def corpus(source: str, size: int, workspace: Path) -> list[str]:
    """Documents of `size` UTF-8 bytes in all, already clean, no two of them equal."""
    kind = {"kind": "stdlib"} if source == "stdlib" else {"kind": "jsonl", "path": source}
    recipe = Recipe.model_validate({"source": kind, "tokenizer": {"vocab_size": 300}})
    plan = documents.plan(recipe, workspace)
    clean = cleaner(recipe.clean)
    pieces = [
        row.text[start : start + DOCUMENT_CHARS]
        for work in plan.slices
        for row in documents.read(work, recipe.source)
        if row.text
        for start in range(0, len(row.text), DOCUMENT_CHARS)
    ]
    made: list[str] = []
    total = 0
    while total < size:
        text, reason = clean(f"{len(made)} {pieces[len(made) % len(pieces)]}")
        assert reason is None
        made.append(text)
        total += len(text.encode())
    return made


def write(texts: list[str], folder: Path) -> None:
    """The documents in order, as parquet files with row groups of a thousand, as the hub's are."""
    share = -(-len(texts) // FILES)
    for number in range(FILES):
        part = texts[number * share : (number + 1) * share]
        table = pa.table({"text": part, "id": [f"{number}-{i}" for i in range(len(part))]})
        pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=1000, compression="zstd")


def tokenizer_alone(tokenizer: Path, folder: Path, workers: int) -> dict[str, float]:
    """Seconds for the tokenizer to give the ids of every text, over equal shares in as many processes."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(workers + 1), context.Barrier(workers + 1)
    processor = context.Array("d", workers)
    processes = [
        context.Process(target=_encode_share, args=(tokenizer, folder, rank, workers, ready, done, processor))
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
    return {"seconds": seconds, "processor_seconds": sum(processor)}


def _encode_share(
    tokenizer: Path, folder: Path, rank: int, workers: int, ready: Barrier, done: Barrier, processor: Any
) -> None:
    os.environ.update({"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    opened = load_tokenizer(tokenizer)
    texts = [t for path in sorted(folder.glob("*.parquet")) for t in pq.read_table(path)["text"].to_pylist()]
    share = texts[rank::workers]
    del texts
    ready.wait()
    start = time.process_time()
    for first in range(0, len(share), BATCH_DOCUMENTS):
        opened.encode_batch(share[first : first + BATCH_DOCUMENTS])
    processor[rank] = time.process_time() - start
    done.wait()


def end_to_end(tokenizer: Path, folder: Path, workers: int, out: Path) -> dict[str, float]:
    """Seconds for `prepare`, from the source to the manifest."""
    recipe = Recipe.model_validate(
        {
            "source": {"kind": "parquet", "path": str(folder), "id_column": "id"},
            "tokenizer": {"name": str(tokenizer)},
            "prepare": {"workers": workers},
        }
    )
    shutil.rmtree(out, ignore_errors=True)
    start, before = time.perf_counter(), _processor_seconds()
    prepare(recipe, out)
    return {"seconds": time.perf_counter() - start, "processor_seconds": _processor_seconds() - before}


def _processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def interleave(
    rounds: int, contenders: dict[str, Callable[[], dict[str, float]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Median of each contender's figures, every one run in turn."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            figures[name].append(contender())
    for name, measured in figures.items():
        yield name, {key: statistics.median(m[key] for m in measured) for key in measured[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="stdlib", help="stdlib, or a jsonl file with the key text")
    parser.add_argument("--tokenizer", type=Path, help="folder; default: a byte-level BPE of 4,096 trained on the text")
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as temporary:
        root = Path(temporary)
        texts = corpus(options.source, options.megabytes * 1_000_000, root)
        folder = root / "text"
        folder.mkdir()
        write(texts, folder)
        tokenizer = options.tokenizer or root / "tokenizer"
        if options.tokenizer is None:
            train_tokenizer(texts[:: max(1, len(texts) // 2000)], 4096).save(tokenizer)
        result: dict[str, Any] = {
            "source": options.source,
            "tokenizer": str(options.tokenizer or "byte-level BPE, 4096"),
            "documents": len(texts),
            "bytes": sum(len(t.encode()) for t in texts),
            "workers": options.workers,
            "rounds": options.rounds,
        }
        del texts
        contenders = {
            "tokenizer": lambda: tokenizer_alone(tokenizer, folder, options.workers),
            "prepare": lambda: end_to_end(tokenizer, folder, options.workers, root / "out"),
        }
        result.update(interleave(options.rounds, contenders))
    for key in ("seconds", "processor_seconds"):
        result[f"ratio_{key}"] = result["prepare"][key] / result["tokenizer"][key]
    for name in ("tokenizer", "prepare"):
        megabytes = result["bytes"] / 1e6 / result[name]["seconds"]
        print(
            f"{name:10} {result[name]['seconds']:7.2f} s  {result[name]['processor_seconds']:7.2f} s of processor  {megabytes:.2f} MB/s"
        )
    print(
        f"prepare / tokenizer: {result['ratio_seconds']:.3f} by the clock, {result['ratio_processor_seconds']:.3f} by processor time"
    )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
