"""Preparation end to end, against the tokenizer alone and against other tools; or its peak memory.

    python -m benchmarks.prepare --megabytes 40 --against datasets litdata datatrove packtrain_fast --json prepare.json
    python -m benchmarks.prepare --source corpus.jsonl --tokenizer FOLDER --workers 2
    python -m benchmarks.prepare --memory --megabytes 2000

The text (Python's standard library, or the documents of a jsonl file) is cut into documents of about 4,700 characters, the length of
web pages. It is repeated with a number before each document, so that none is a copy, and written to parquet files. All tools get the
same text, tokenizer and number of workers, with one thread each. They take turns, each in its own process and environment, which is
made on first use. The clock starts when a tool's libraries are imported and stops when its files are written, so it includes the
start of the workers and excludes the imports; `process_seconds` includes both. The tokenizer alone has its texts in memory and
its workers running, and only the encoding calls are timed. Each result must have every document, and all the same number of
tokens. Processor seconds add up all processes: on a machine with other work, they say more than wall-clock seconds.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing

from benchmarks.corpus import FILES, cut, recombined, write
from benchmarks.environments import REQUIREMENTS, default_folder, python_of
from benchmarks.peak_memory import peaks
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.prepare.steps.train_tokenizer import train_tokenizer

OURS, YARDSTICK = "packtrain", "tokenizer_alone"
PEERS = ("datasets", "datasets_tuned", "litdata", "litdata_tuned", "datatrove", "datatrove_tuned", "packtrain_fast")
ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return what `--json` writes."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="packtrain-bench-", dir=options.folder) as temporary:
        report = (_memory if options.memory else _race)(options, Path(temporary))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def _race(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    texts = cut(options.source, options.characters, options.megabytes * 1_000_000, root)
    write(texts, root / "text", -(-len(texts) // FILES))
    tokenizer = _tokenizer(options, root, texts)
    report: dict[str, Any] = _setting(options) | {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
    }
    del texts
    names = (YARDSTICK, *options.against, OURS)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(options.rounds):
        # In turns, so that no tool always runs right after the same other one.
        for name in names if number % 2 == 0 else names[::-1]:
            figures = _run(name, root, tokenizer, options)
            results[name].append(figures)
            print(f"round {number + 1} {name}: {figures}", file=sys.stderr)
    tokens = {name: figures[0]["tokens"] for name, figures in results.items()}
    counted = {name: figures[0]["documents"] for name, figures in results.items()}
    assert set(counted.values()) == {report["documents"]}, f"documents in the outcomes: {counted}"
    assert len(set(tokens.values())) == 1, f"tokens in the outcomes: {tokens}"
    report["tokens"] = tokens[OURS]
    keys = ("seconds", "processor_seconds", "process_seconds")
    report["medians"] = {
        name: {key: _median(f[key] for f in figures) for key in keys} for name, figures in results.items()
    }
    report["rounds"] = results
    _print(report)
    return report


def _run(name: str, root: Path, tokenizer: Path, options: argparse.Namespace) -> dict[str, Any]:
    tool = name.removesuffix("_tuned")
    python = python_of(tool, options.environments) if tool in REQUIREMENTS else sys.executable
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    job = {"text": str(root / "text"), "tokenizer": str(tokenizer), "workers": options.workers, "out": str(out)}
    # Fresh caches: a tool would otherwise reuse what it wrote in the round before.
    home = {"HF_HOME": str(root / "home"), "DATA_OPTIMIZER_CACHE_FOLDER": str(root / "home" / "litdata")}
    environment = {**os.environ, **ONE_THREAD, **OFFLINE, **home}
    start = time.perf_counter()
    command = [python, "-m", "benchmarks.preparers", name, json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(root / "home", ignore_errors=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"process_seconds": seconds}


def _tokenizer(options: argparse.Namespace, root: Path, texts: Sequence[str]) -> Path:
    """A folder with the given or trained tokenizer, set to add BOS and EOS to each text, because not every tool has an option for it."""
    if options.tokenizer is None:
        opened = train_tokenizer(texts[:: max(1, len(texts) // 2000)], options.vocab_size)
    else:
        opened = load_tokenizer(options.tokenizer)
    folder = root / "tokenizer"
    opened.save(folder)
    raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
    around = [(opened.bos_token, opened.bos_id), (opened.eos_token, opened.eos_id)]
    raw.post_processor = TemplateProcessing(single=f"{opened.bos_token} $A {opened.eos_token}", special_tokens=around)
    raw.save(str(folder / "tokenizer.json"))
    return folder


def _memory(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    size = options.megabytes * 1_000_000
    write(recombined(options.source, size, root), root / "text", 50_000)
    sample = [text for text, _ in zip(recombined(options.source, size, root), range(2000), strict=False)]
    tokenizer = _tokenizer(options, root, sample)
    settings = ["source.kind=parquet", f"source.path={root / 'text'}", f"tokenizer.name={tokenizer}"]
    settings += ["tokenizer.vocab_size=", f"prepare.workers={options.workers}", *options.set]
    command = [sys.executable, "-m", "packtrain", "prepare", "jsonl", *settings, "--out", str(root / "out"), "--json"]
    report = _setting(options) | {"bytes": size, "settings": options.set} | peaks(command)
    for key in ("worker", "parent", "together"):
        print(f"{key:10} {report[f'{key}_bytes'] / 1e6:8.0f} MB at its peak")
    print(
        f"{report['processes']} processes beside the first, {report['seconds']:.0f} s for {size / 1e6:.0f} MB of text"
    )
    return report


def _setting(options: argparse.Namespace) -> dict[str, Any]:
    named = str(options.tokenizer or f"byte-level BPE, {options.vocab_size}")
    return {"source": options.source, "tokenizer": named, "workers": options.workers, "characters": options.characters}


def _print(report: dict[str, Any]) -> None:
    medians, documents = report["medians"], report["documents"]
    ours = medians[OURS]
    print(f"{documents} documents, {report['bytes'] / 1e6:.1f} MB, {report['tokens']} tokens in each outcome")
    print(f"{'':16} {'seconds':>8} {'processor':>10} {'process':>8} {'docs/s':>8} {'MB/s':>6}  its time over ours")
    for name, figures in medians.items():
        seconds, processor = figures["seconds"], figures["processor_seconds"]
        by_processor = f"{processor / ours['processor_seconds']:.3f}" if processor else "n/a"
        print(
            f"{name:16} {seconds:8.2f} {processor or math.nan:10.2f} {figures['process_seconds']:8.2f} "
            f"{documents / seconds:8.0f} {report['bytes'] / 1e6 / seconds:6.2f}  {seconds / ours['seconds']:.3f} by the clock, "
            f"{by_processor} by processor seconds"
        )


def _median(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return statistics.median(known) if known else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="stdlib", help="stdlib, or a jsonl file with the key text")
    parser.add_argument("--tokenizer", type=Path, help="folder; default: a byte-level BPE trained on the text")
    parser.add_argument("--vocab-size", type=int, default=4096, help="vocabulary of the tokenizer to train")
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--characters", type=int, default=4700, help="length of a document")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", nargs="*", choices=PEERS, default=(), metavar="TOOL", help=", ".join(PEERS))
    parser.add_argument(
        "--environments", type=Path, default=default_folder(), help="where tools' environments are kept"
    )
    parser.add_argument("--memory", action="store_true", help="measure the peak memory of `packtrain prepare` instead")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="with --memory: settings to add")
    parser.add_argument("--folder", type=Path, help="folder for temporary text and datasets; default: the system's")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
