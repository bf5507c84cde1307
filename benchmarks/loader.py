"""The loader's tokens per second, its time to seek, plan and start, and its memory; nothing to compare with, so no ratios.

    python -m benchmarks.loader --json loader.json

The dataset is synthetic: random ids, lengths as of web text (log-normal, median 600 tokens), in memory-mapped shards of 4,096
documents, read once beforehand so that it is in the page cache. The shapes run in turn, several times; figures are
medians. `wall` is what a consumer that does nothing gets. `thread` is what the one reading thread could deliver: tokens by its
processor time.

Memory is measured in a separate process, on a dataset of `--memory-rows` rows in shards as `packtrain prepare` writes them, with
sparse files for the ids. It is the anonymous memory (Linux, /proc/self/smaps_rollup) beyond what there was before the dataset was
opened, and so without the page cache, which processes share.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packtrain.data.feed.loader import Loader, read_rows
from packtrain.data.feed.mixture import Mixture, Share
from packtrain.data.feed.position import LoaderState
from packtrain.data.format.manifest import SUFFIXES, FileInfo, Manifest, ShardInfo, TokenizerInfo
from packtrain.data.format.shards import Split
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.rows.plan import Layout, RowPlan

# Rows per step, and tokens per row.
SHAPES = ((64, 1024), (16, 256))
PACKINGS: tuple[Packing, ...] = ("concat", "bestfit")
FAR_ROWS = 10_000_000
PLANNED_DOCUMENTS = 1_000_000


@dataclass(frozen=True)
class Shard:
    documents: int
    tokens: int


class SyntheticStream:
    """A split whose ids are in one file, sparse or filled, mapped as `data.shards.Split` maps its shards."""

    name = "train"
    boundary_id = 2
    dtype = np.dtype("<u2")

    def __init__(self, path: Path, lengths: np.ndarray, *, is_filled: bool, shard_documents: int = 4096) -> None:
        firsts = range(0, len(lengths), shard_documents)
        self._ends = [np.cumsum(lengths[first : first + shard_documents]) for first in firsts]
        self.shards = [Shard(len(ends), int(ends[-1])) for ends in self._ends]
        self.num_tokens = sum(shard.tokens for shard in self.shards)
        self.manifest_hash = f"synthetic {self.num_tokens}"
        self.plan_folder = path.parent / "plans"
        with path.open("wb") as file:
            file.truncate(self.num_tokens * 2)
            if is_filled:
                np.random.default_rng(0).integers(0, 32_000, self.num_tokens, dtype=np.uint16).tofile(file)
        self._ids = np.memmap(path, dtype=self.dtype, mode="r")

    def shard_ends(self, shard: int) -> np.ndarray:
        return self._ends[shard]

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop]


def web_lengths(num_documents: int) -> np.ndarray:
    """Document lengths in tokens, int64[num_documents]: log-normal around 600, at least 20."""
    drawn = np.random.default_rng(1).lognormal(np.log(600), 1.0, num_documents)
    return np.maximum(drawn.astype(np.int64), 20)


def throughput(stream: SyntheticStream, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second of every shape, packing and mask."""
    cases = [
        (rows, seq_len, packing, mask) for rows, seq_len in SHAPES for packing in PACKINGS for mask in (False, True)
    ]
    plans = {(seq_len, packing): plan(stream, seq_len, packing) for _, seq_len in SHAPES for packing in PACKINGS}
    wall: dict[tuple[Any, ...], list[float]] = {case: [] for case in cases}
    thread: dict[tuple[Any, ...], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            rows, seq_len, packing, mask = case
            steps = max(16, int(options.tokens) // (rows * seq_len))
            figures = _run(plans[seq_len, packing], rows, steps, mask)
            wall[case].append(figures[0])
            thread[case].append(figures[1])
    return [
        {
            "rows": rows,
            "seq_len": seq_len,
            "packing": packing,
            "document_mask": mask,
            "wall_tokens_per_s": statistics.median(wall[rows, seq_len, packing, mask]),
            "thread_tokens_per_s": statistics.median(thread[rows, seq_len, packing, mask]),
        }
        for rows, seq_len, packing, mask in cases
    ]


def mixing(stream: SyntheticStream, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second of a mixture of three datasets, 7 to 2 to 1, with masks."""
    rows, seq_len = SHAPES[0]
    results = []
    for packing in PACKINGS:
        one = plan(stream, seq_len, packing)
        mixture = Mixture([Share(one, weight) for weight in (7, 2, 1)])
        steps = max(16, int(options.tokens) // (rows * seq_len))
        wall, thread = zip(*(_run(mixture, rows, steps, True) for _ in range(options.rounds)), strict=True)
        results.append(
            {
                "packing": packing,
                "wall_tokens_per_s": statistics.median(wall),
                "thread_tokens_per_s": statistics.median(thread),
            }
        )
    return results


def _run(layout: Layout, rows: int, steps: int, mask: bool) -> tuple[float, float]:
    tokens = rows * layout.seq_len * steps
    with Loader(layout, rows_per_step=rows, seed=1, document_mask=mask) as loader:
        for _ in range(8):
            next(loader)
        # This includes the consumer's own processor time, a few microseconds per batch.
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(loader)
        return tokens / (time.perf_counter() - start), tokens / (time.process_time() - processor)


def seeking(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds from a saved state to the first batch, near the end of a late epoch of FAR_ROWS rows of 1,024 tokens."""
    lengths = web_lengths(FAR_ROWS * 1024 // 1000)
    stream = SyntheticStream(folder / "far.tok", lengths, is_filled=False)
    results = []
    for packing in PACKINGS:
        layout, plan_s = _timed(lambda packing=packing: plan(stream, 1024, packing))
        layout, start_s = _timed(lambda packing=packing: plan(stream, 1024, packing))
        states = [
            LoaderState(stream.manifest_hash, layout.hash, 1, epoch, layout.num_rows - 1000 * (number + 1))
            for number, epoch in enumerate(range(10**6, 10**6 + rounds))
        ]
        seconds = [_timed(lambda state=state, layout=layout: _first(layout, state))[1] for state in states]
        results.append(
            {
                "packing": packing,
                "rows": layout.num_rows,
                "documents": len(lengths),
                "plan_s": plan_s,
                "start_s": start_s,
                "seek_s": statistics.median(seconds),
                "seek_worst_s": max(seconds),
                "padded_share": 1 - layout.num_targets / (layout.num_rows * 1024),
            }
        )
    return results


def _first(layout: RowPlan, state: LoaderState) -> None:
    with Loader(layout, rows_per_step=64, seed=1, state=state) as loader:
        next(loader)


def planning(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds and padding of best-fit plans over a million documents."""
    stream = SyntheticStream(folder / "plan.tok", web_lengths(PLANNED_DOCUMENTS), is_filled=False)
    stream.plan_folder = None
    results = []
    for seq_len in (256, 1024, 4096, 32_768):
        timed = [_timed(lambda seq_len=seq_len: plan(stream, seq_len, "bestfit")) for _ in range(rounds)]
        layout = timed[0][0]
        results.append(
            {
                "seq_len": seq_len,
                "documents": PLANNED_DOCUMENTS,
                "plan_s": statistics.median(seconds for _, seconds in timed),
                "padded_share": 1 - layout.num_targets / (layout.num_rows * seq_len),
                "cut_share": layout.num_cut_documents / PLANNED_DOCUMENTS,
                "cut_share_concat": plan(stream, seq_len, "concat").num_cut_documents / PLANNED_DOCUMENTS,
            }
        )
    return results


def memory(folder: Path, num_rows: int) -> list[dict[str, Any]]:
    """Anonymous bytes and seconds of planning rows, and of reading them in another process, with masks."""
    manifest = _write_sparse_dataset(folder / "sparse", num_rows * 1024)
    results = []
    for packing in PACKINGS:
        for task in ("lay out", "read"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                results.append(pool.submit(_measure_memory, folder / "sparse", manifest, packing, task).result())
    return results


def _measure_memory(folder: Path, manifest: Manifest, packing: Packing, task: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    np.cumsum(np.ones(1000))
    before = _anonymous_bytes()
    peaks, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peaks.append(_anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    split = Split(folder, manifest, "train")
    layout, start_s = _timed(lambda: plan(split, 1024, packing))
    if task == "read":
        with Loader(layout, rows_per_step=64, seed=1, document_mask=True) as loader:
            for _ in range(500):
                next(loader)
            peaks.append(_anonymous_bytes())
    else:
        # The first batch with masks needs this beyond the plan.
        read_rows(layout, np.arange(1), document_mask=True)
    done.set()
    watcher.join()
    return {
        "packing": packing,
        "task": task,
        "rows": layout.num_rows,
        "documents": split.num_documents,
        "start_s": start_s,
        "peak_bytes": max(peaks) - before,
    }


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def _write_sparse_dataset(folder: Path, num_tokens: int, shard_documents: int = 65_536) -> Manifest:
    """A training split of at least this many tokens, in the format of a prepared dataset; every id is 0."""
    (folder / "train").mkdir(parents=True)
    shards: list[ShardInfo] = []
    draw = np.random.default_rng(2)
    written = 0
    while written < num_tokens:
        ends = np.cumsum(np.maximum(draw.lognormal(np.log(600), 1.0, shard_documents).astype(np.uint64), 20))
        name, tokens = f"{len(shards):05d}", int(ends[-1])
        np.save(folder / "train" / f"{name}.idx.npy", ends)
        with (folder / "train" / f"{name}.tok").open("wb") as file:
            file.truncate(tokens * 2)
        files = {suffix: FileInfo(size=0, hash="0") for suffix in SUFFIXES}
        shards.append(
            ShardInfo(name=name, documents=len(ends), tokens=tokens, utf8_bytes=4 * tokens, max_id=0, files=files)
        )
        written += tokens
    tokenizer = TokenizerInfo(
        hash="0", vocab_size=32_000, bos_id=1, eos_id=2, adds_bos=True, adds_eos=True, kind="sentencepiece"
    )
    return Manifest(
        format_version=1,
        created_by="benchmarks.loader",
        recipe={},
        recipe_hash="0",
        inputs_hash=str(num_tokens),
        source_revision=None,
        tokenizer=tokenizer,
        dtype="u2",
        splits={"train": tuple(shards)},
        length_histogram={},
        ledger={},
    )


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print tables, and return what `--json` writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=float, default=3e7, help="tokens read for one figure")
    parser.add_argument("--documents", type=int, default=60_000, help="documents of the dataset that is read")
    parser.add_argument("--memory-rows", type=float, default=1e6, help="rows of the dataset that memory is measured on")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stream = SyntheticStream(folder / "read.tok", web_lengths(options.documents), is_filled=True)
        stream.read(0, stream.num_tokens).max()
        report = {
            "tokens_in_dataset": stream.num_tokens,
            "throughput": throughput(stream, options),
            "mixture": mixing(stream, options),
            "seek": seeking(folder, options.rounds),
            "plan": planning(folder, options.rounds),
            "memory": memory(folder, int(options.memory_rows)),
        }
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _print(report: dict[str, Any]) -> None:
    print("rows x tokens  packing  mask   wall, M tokens/s  thread, M tokens/s")
    for case in report["throughput"]:
        print(
            f"{case['rows']:>4} x {case['seq_len']:<6} {case['packing']:<8} {'on' if case['document_mask'] else 'off':<6}"
            f"{case['wall_tokens_per_s'] / 1e6:>15.1f}{case['thread_tokens_per_s'] / 1e6:>20.1f}"
        )
    for case in report["mixture"]:
        print(
            f"mixture of three, {case['packing']}, masks on: {case['wall_tokens_per_s'] / 1e6:.1f} M tokens/s on the clock, "
            f"{case['thread_tokens_per_s'] / 1e6:.1f} by the thread"
        )
    for case in report["seek"]:
        print(
            f"seek, {case['packing']}: {1000 * case['seek_s']:.1f} ms to the first batch (worst {1000 * case['seek_worst_s']:.1f}), "
            f"{case['rows']:,} rows; planned in {case['plan_s']:.2f} s, started again in {1000 * case['start_s']:.1f} ms, "
            f"{case['padded_share']:.4%} padded"
        )
    for case in report["plan"]:
        print(
            f"bestfit, T = {case['seq_len']}: {case['plan_s']:.2f} s per million documents, {case['padded_share']:.4%} padded, "
            f"{case['cut_share']:.1%} of documents cut (concat {case['cut_share_concat']:.1%})"
        )
    for case in report["memory"]:
        print(
            f"memory, {case['packing']}, {case['task']}: {case['peak_bytes'] / 1e6:.1f} MB anonymous at {case['rows']:,} rows and "
            f"{case['documents']:,} documents, plan in {case['start_s']:.3f} s"
        )


if __name__ == "__main__":
    main()
