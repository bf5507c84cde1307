"""How long choosing documents over a whole corpus takes, and the peak memory of the process that does it.

    python -m benchmarks.dedup --documents 1e8 --json dedup.json
    python -m benchmarks.dedup --documents 2e7 --near 0.1

Generates scans without any text: random content hashes, some of which repeat earlier ones. With --near, it generates signatures in the
same way (336 bytes of disk per document). Then `choose` runs on them in a separate process, as `prepare` runs it once all slices
are scanned.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from packtrain.config.recipe import Recipe
from packtrain.prepare.sources.slices import Part, Slice, Slicing
from packtrain.prepare.steps.choose import choose
from packtrain.prepare.steps.results import SCAN, Results
from packtrain.prepare.steps.scan import REASONS, ScanNotes
from packtrain.storage.store import LocalStore

SLICE_DOCUMENTS = 65_536
DOCUMENT_BYTES = 4_700
BANDS, BAND_ROWS = 14, 8


def corpus(documents: int, file: Path) -> Slicing:
    """Slices of a jsonl source of which only one slice exists; its rows serve as samples of all others."""
    slices = tuple(
        Slice(number, (Part(file.name, str(file), start, min(SLICE_DOCUMENTS, documents - start), 0, ""),))
        for number, start in enumerate(range(0, documents, SLICE_DOCUMENTS))
    )
    return Slicing(slices, None)


def write_scans(results: Results, slicing: Slicing, copies: float, near: float) -> None:
    """Write what the workers would have written; some of the documents repeat earlier ones."""
    draw = np.random.default_rng(0)
    notes = json.dumps(ScanNotes(list(REASONS), {})._asdict()).encode() + b"\n"
    for piece in slicing.slices:
        start = piece.parts[0].first_row
        number = _repeating(start, piece.rows, copies, draw)
        scan = np.zeros(piece.rows, dtype=SCAN)
        scan["content"] = np.stack([_mixed(number), _mixed(number + np.uint64(1 << 40))], axis=1)
        scan["utf8_bytes"] = DOCUMENT_BYTES
        if results.recipe.dedup.near:
            number = _repeating(start, piece.rows, near, draw)
            words = [_mixed(number + np.uint64(i << 41)) for i in range(1, BANDS + BANDS * BAND_ROWS // 4 + 1)]
            near_hashes = np.stack(words[:BANDS]).tobytes() + np.stack(words[BANDS:], axis=1).tobytes()
            results.store.write(results.near_name(piece), near_hashes)
        results.store.write(results.scan_name(piece), notes + scan.tobytes())


def _source(results: Results) -> Path:
    return results.store.file("source.jsonl")


def _repeating(start: int, count: int, share: float, draw: np.random.Generator) -> np.ndarray:
    """Numbers from `start` up, some of them replaced by earlier ones."""
    number = np.arange(start, start + count, dtype=np.uint64)
    repeats = draw.random(count) < share
    number[repeats] = (draw.random(int(repeats.sum())) * number[repeats]).astype(np.uint64)
    return number


def _mixed(value: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that looks random: the finaliser of splitmix64."""
    value = (value + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def measure(results: Results, documents: int, answer: Connection) -> None:
    """Run `choose`; send its seconds, its process's memory before and at the peak, and what it found."""
    slicing = corpus(documents, _source(results))
    before = _peak_bytes()
    start = time.perf_counter()
    selection = choose(results, slicing)
    answer.send(
        {
            "seconds": time.perf_counter() - start,
            "start_bytes": before,
            "peak_bytes": _peak_bytes(),
            "copies": dict(selection.copies.documents),
        }
    )


def _peak_bytes() -> int:
    """Peak resident memory of this process; getrusage would count that of the process that started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def run(documents: int, copies: float, near: float) -> dict[str, Any]:
    """Figures for one corpus."""
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as temporary:
        dedup = {"near": near > 0} | ({"near_bands": BANDS, "near_band_rows": BAND_ROWS} if near else {})
        recipe = Recipe.model_validate(
            {"source": {"kind": "jsonl", "path": "-"}, "tokenizer": {"vocab_size": 300}, "dedup": dedup}
        )
        results = Results(recipe, LocalStore(Path(temporary)))
        slicing = corpus(documents, _source(results))
        _source(results).write_text('{"text": "nothing"}\n' * SLICE_DOCUMENTS)
        write_scans(results, slicing, copies, near)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(results, documents, theirs))
        process.start()
        theirs.close()
        figures: dict[str, Any] = {"documents": documents, **ours.recv()}
        process.join()
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=float, nargs="+", default=[2e7, 1e8])
    parser.add_argument("--copies", type=float, default=0.3, help="share of documents that repeat another")
    parser.add_argument(
        "--near", type=float, default=0.0, help="share of documents that nearly repeat another; 0: do not look for them"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for documents in options.documents:
        figures = run(int(documents), options.copies, options.near)
        results.append(figures)
        print(
            f"{figures['documents']:>12,} documents  {figures['seconds']:7.1f} s  peak {figures['peak_bytes'] / 1e6:,.0f} MB "
            f"({figures['start_bytes'] / 1e6:,.0f} MB before)  {figures['copies']}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
