"""Loader: tokens per second of its one thread, time to seek, and time to plan; nothing is compared, so no ratios.

    python -m benchmarks.loader --json loader.json

The dataset is synthetic: ids at random, lengths as of web text (log-normal, median 600 tokens), in shards of 4,096
documents, memory-mapped, and read once beforehand, so that the page cache holds it. Every shape runs in turn, several
times; figures are medians. `wall` is what a consumer that does nothing gets, `thread` what the reading thread could give
to one that never makes it wait: tokens by its processor time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packtrain.data.loader import Loader, LoaderState
from packtrain.data.pack import Packing, Plan, plan

# Rows and tokens a row of a step.
SHAPES = ((64, 1024), (16, 256))
PACKINGS: tuple[Packing, ...] = ("concat", "bestfit")
FAR_ROWS = 10_000_000
PLANNED_DOCUMENTS = 1_000_000


@dataclass(frozen=True)
class Shard:
    tokens: int


class SyntheticStream:
    """A split whose ids lie in one sparse or filled file, mapped as `data.shards.Split` maps its shards."""

    name = "train"
    boundary_id = 2
    dtype = np.dtype("<u2")

    def __init__(self, path: Path, lengths: np.ndarray, *, is_filled: bool, shard_documents: int = 4096) -> None:
        self.document_ends = np.cumsum(lengths)
        self.num_tokens = int(self.document_ends[-1])
        self.manifest_hash = f"synthetic {self.num_tokens}"
        borders = [0, *self.document_ends[shard_documents - 1 : -1 : shard_documents].tolist(), self.num_tokens]
        self.shards = [Shard(stop - start) for start, stop in pairwise(borders)]
        with path.open("wb") as file:
            file.truncate(self.num_tokens * 2)
            if is_filled:
                np.random.default_rng(0).integers(0, 32_000, self.num_tokens, dtype=np.uint16).tofile(file)
        self._ids = np.memmap(path, dtype=self.dtype, mode="r")

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop]


def web_lengths(num_documents: int) -> np.ndarray:
    """Document lengths in tokens, int64[num_documents]: log-normal about 600, none below 20."""
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
            figures = _run(stream, plans[seq_len, packing], rows, steps, mask)
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


def _run(stream: SyntheticStream, layout: Plan, rows: int, steps: int, mask: bool) -> tuple[float, float]:
    tokens = rows * layout.seq_len * steps
    with Loader(stream, layout, rows_per_step=rows, seed=1, document_mask=mask) as loader:
        for _ in range(8):
            next(loader)
        # The consumer's own processor time, a few microseconds a batch, is counted with the thread's.
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            next(loader)
        return tokens / (time.perf_counter() - start), tokens / (time.process_time() - processor)


def seeking(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds from a saved state to the first batch, near the end of a far epoch of FAR_ROWS rows of 1,024 tokens."""
    lengths = web_lengths(FAR_ROWS * 1024 // 1000)
    stream = SyntheticStream(folder / "far.tok", lengths, is_filled=False)
    results = []
    for packing in PACKINGS:
        layout, plan_s = _timed(lambda packing=packing: plan(stream, 1024, packing))
        states = [
            LoaderState(stream.manifest_hash, layout.hash, 1, epoch, layout.num_rows - 1000 * (number + 1))
            for number, epoch in enumerate(range(10**6, 10**6 + rounds))
        ]
        seconds = [_timed(lambda state=state, layout=layout: _first(stream, layout, state))[1] for state in states]
        results.append(
            {
                "packing": packing,
                "rows": layout.num_rows,
                "documents": len(lengths),
                "plan_s": plan_s,
                "seek_s": statistics.median(seconds),
                "seek_worst_s": max(seconds),
                "padded_share": layout.num_padded / (layout.num_rows * 1024),
            }
        )
    return results


def _first(stream: SyntheticStream, layout: Plan, state: LoaderState) -> None:
    with Loader(stream, layout, rows_per_step=64, seed=1, state=state) as loader:
        next(loader)


def planning(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds and padding of best-fit plans over a million documents."""
    stream = SyntheticStream(folder / "plan.tok", web_lengths(PLANNED_DOCUMENTS), is_filled=False)
    results = []
    for seq_len in (256, 1024, 4096, 32_768):
        timed = [_timed(lambda seq_len=seq_len: plan(stream, seq_len, "bestfit")) for _ in range(rounds)]
        layout = timed[0][0]
        results.append(
            {
                "seq_len": seq_len,
                "documents": PLANNED_DOCUMENTS,
                "plan_s": statistics.median(seconds for _, seconds in timed),
                "padded_share": layout.num_padded / (layout.num_rows * seq_len),
                "cut_share": layout.num_cut_documents / PLANNED_DOCUMENTS,
                "cut_share_concat": plan(stream, seq_len, "concat").num_cut_documents / PLANNED_DOCUMENTS,
            }
        )
    return results


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
            "seek": seeking(folder, options.rounds),
            "plan": planning(folder, options.rounds),
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
    for case in report["seek"]:
        print(
            f"seek, {case['packing']}: {1000 * case['seek_s']:.1f} ms to the first batch (worst {1000 * case['seek_worst_s']:.1f}), "
            f"{case['rows']:,} rows; planned in {case['plan_s']:.2f} s, {case['padded_share']:.4%} padded"
        )
    for case in report["plan"]:
        print(
            f"bestfit, T = {case['seq_len']}: {case['plan_s']:.2f} s per million documents, {case['padded_share']:.4%} padded, "
            f"{case['cut_share']:.1%} of documents cut (concat {case['cut_share_concat']:.1%})"
        )


if __name__ == "__main__":
    main()
