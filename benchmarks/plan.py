"""What `packtrain plan` estimates for runs on this CPU, next to what the runs take: memory, and seconds of a step.

    python -m benchmarks.plan --rounds 3 --json plan.json
    python -m benchmarks.plan --cells 15m --only memory

Each cell is a short run of a preset on the embedded corpus. For memory, each run has a process of its own, and the figure is the
run's (memory_bytes of metrics.jsonl). For rates, one process probes, as `plan` does, then runs, as `train` does, cell by cell, as
often as there are rounds. The ratio is taken pair by pair and its median shown: by processor time, which other work on the
machine disturbs less, and by the clock. Cells of several processes have no probe, which times one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A run to plan and to make."""

    name: str
    preset: str
    settings: tuple[str, ...]
    processes: int = 1


_SMALL = ("train.precision=fp32", "evaluate.every=0", "log.every=1")
_MIDDLE = (*_SMALL, "train.tokens=", "train.steps=8", "train.global_batch_tokens=2048", "schedule.warmup_steps=2")
_LARGE = (*_MIDDLE, "data.seq_len=256")


def _demo(name: str, *settings: str) -> Cell:
    return Cell(f"demo, {name}", "demo", (*_SMALL, "train.steps=14", *settings))


def _middle(name: str, *settings: str, processes: int = 1) -> Cell:
    return Cell(f"15m, {name}", "llama2-15m", (*_MIDDLE, *settings), processes)


def _large(name: str, *settings: str) -> Cell:
    return Cell(f"42m, {name}", "llama2-42m", (*_LARGE, *settings))


_ONE, _TWO = "parallel.lanes=1", "parallel.lanes=2"
CELLS = (
    _demo("8 rows", "train.micro_batch_size=8", _ONE),
    _demo("2 of 8 rows", "train.micro_batch_size=2", _ONE),
    _demo("8 rows, 2 lanes", "train.micro_batch_size=8", _TWO),
    _demo("8 rows, muon", "train.micro_batch_size=8", "optim.name=muon", _ONE),
    _demo(
        "8 rows, document masks", "train.micro_batch_size=8", "data.document_mask=true", "data.packing=bestfit", _ONE
    ),
    _middle("8 rows", "train.micro_batch_size=8", _ONE),
    _middle("2 of 8 rows", "train.micro_batch_size=2", _ONE),
    _middle("8 rows, 2 lanes", "train.micro_batch_size=8", _TWO),
    _middle("8 rows, adamw8bit", "train.micro_batch_size=8", "optim.name=adamw8bit", _ONE),
    _middle("8 rows, muon", "train.micro_batch_size=8", "optim.name=muon", _ONE),
    _middle("8 rows, recomputed", "train.micro_batch_size=8", "train.activation_gb=0.04", _ONE),
    _middle("32 rows", "train.micro_batch_size=32", "train.global_batch_tokens=8192", "train.steps=4", _ONE),
    _large("4 of 8 rows", "train.micro_batch_size=4", "train.steps=5", _ONE),
    _large("8 rows, 2 lanes", "train.micro_batch_size=8", "train.steps=5", _TWO),
    _middle("4 of 8 rows, 2 processes, ddp", "train.micro_batch_size=4", "parallel.mode=ddp", processes=2),
    _middle("4 of 8 rows, 2 processes, fsdp", "train.micro_batch_size=4", "parallel.mode=fsdp", processes=2),
)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table in Markdown, and return its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", default="", metavar="WORD", help="only the cells with this in their name")
    parser.add_argument("--dataset", type=Path, metavar="FOLDER", help="a dataset made with `packtrain prepare stdlib`")
    parser.add_argument("--only", choices=("memory", "rates"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive"}
    wanted = [cell for cell in CELLS if options.cells in cell.name]
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or _prepare(Path(folder) / "stdlib")
        rates = {} if options.only == "memory" else _measure_rates(wanted, dataset, Path(folder), options.rounds)
        print("| run | memory | estimated | off by | rate, off by (processor time) | by the clock |\n|" + " --- |" * 6)
        rows = []
        for number, cell in enumerate(wanted):
            row: dict[str, Any] = {"name": cell.name, **rates.get(cell.name, {})}
            if options.only != "rates":
                words = [str(Path(folder) / f"run-{number}"), *_words(cell, dataset)]
                row |= _in_child("run_cell", words, cell.processes)["memory_bytes"]
            rows.append(row)
            _print_row(row)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _prepare(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "packtrain", "prepare", "stdlib", "--out", folder], check=True, capture_output=True
    )
    return folder


def _words(cell: Cell, dataset: Path) -> list[str]:
    return [cell.preset, f"data.dataset={dataset}", "model.vocab_size=4096", *cell.settings]


def _measure_rates(cells: list[Cell], dataset: Path, folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The ratio of the probe's rate to the run's for each cell of one process, by both clocks."""
    alone = [cell for cell in cells if cell.processes == 1]
    found = _in_child("time_cells", [str(folder), str(rounds), *(json.dumps(_words(cell, dataset)) for cell in alone)])
    return {cell.name: ratios for cell, ratios in zip(alone, found["cells"], strict=True)}


def _in_child(function: str, words: list[str], processes: int = 1) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(f"from benchmarks.plan import {function}\n{function}(*{words!r})\n")
        script.flush()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), script.name]
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=path))
    if child.returncode:
        raise SystemExit(child.returncode)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def time_cells(folder: str, rounds: str, *cells: str) -> None:
    """In a child process: probe and run each cell in turns, and print the median of the ratios of each."""
    from packtrain.config.load import load_run_config
    from packtrain.train.probe import take_steps

    found = []
    for number, words in enumerate(cells):
        preset, *settings = json.loads(words)
        pairs = []
        for turn in range(int(rounds)):
            # A probe on each side of the run, so that a drift of the machine's speed cancels.
            before = take_steps(load_run_config(preset, settings).config)
            run = _run(Path(folder) / f"rates-{number}-{turn}", preset, settings)
            after = take_steps(load_run_config(preset, settings).config)
            pairs.append({clock: (before[clock] + after[clock]) / 2 / run[clock] for clock in _CLOCKS})
            print(f"{number + 1} of {len(cells)}, {pairs[-1]}", file=sys.stderr, flush=True)
        found.append({f"{clock}_ratio": statistics.median(pair[clock] for pair in pairs) for clock in _CLOCKS})
    print(json.dumps({"cells": found}))


def run_cell(folder: str, preset: str, *settings: str) -> None:
    """In a child process, or in each of several: train, and print what was planned for the run and what it took."""
    from packtrain.config.load import load_run_config
    from packtrain.plan.after import compare_with_plan, measure_metrics
    from packtrain.runs.layout import RunLayout
    from packtrain.runs.metrics import read_metrics

    _run(Path(folder), preset, list(settings))
    if int(os.environ.get("RANK", "0")):
        return
    layout = RunLayout(Path(folder))
    manifest = json.loads(layout.manifest.read_text())
    config = load_run_config(preset, settings).config
    print(json.dumps(compare_with_plan(config, manifest, measure_metrics(read_metrics(layout.metrics)))))


_CLOCKS = ("tokens_per_s", "tokens_per_processor_s")


def _run(folder: Path, preset: str, settings: list[str]) -> dict[str, float]:
    """Trains; gives the median rates of the steps after the first, which allocates."""
    import itertools
    import time

    from packtrain.config.load import load_run_config
    from packtrain.train.run import train

    marks: list[tuple[float, float, int]] = []

    def on_step(record: dict[str, Any]) -> None:
        if "loss" in record:
            marks.append((time.perf_counter(), time.process_time(), record["tokens"]))

    train(load_run_config(preset, settings).config, folder, resume=False, on_step=on_step)
    steps = [(now[2] - last[2], now[0] - last[0], now[1] - last[1]) for last, now in itertools.pairwise(marks)]
    return {
        "tokens_per_s": statistics.median(tokens / wall for tokens, wall, _ in steps) if steps else 0.0,
        "tokens_per_processor_s": statistics.median(tokens / spent for tokens, _, spent in steps) if steps else 0.0,
    }


def _print_row(row: dict[str, Any]) -> None:
    memory = "not measured | | "
    if "measured" in row:
        off = row["estimated"] / row["measured"] - 1
        memory = f"{row['measured'] / 1e9:.3f} GB | {row['estimated'] / 1e9:.3f} GB | {off:+.1%}"
    ratios = [row.get(f"{clock}_ratio") for clock in reversed(_CLOCKS)]
    shown = " | ".join("not probed" if ratio is None else f"{ratio - 1:+.0%}" for ratio in ratios)
    print(f"| {row['name']} | {memory} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
