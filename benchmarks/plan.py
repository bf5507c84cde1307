"""What `packtrain plan` estimates for runs on this CPU, next to what the runs take: memory, and seconds of a step.

    python -m benchmarks.plan --rounds 2 --json plan.json
    python -m benchmarks.plan --cells 15m --threads 2

Each cell is a short run of a preset on the embedded corpus. In turns, in processes of their own: a probe, as `plan` takes it, then
the run, as `train` makes it, as often as there are rounds. The ratio of rates is taken pair by pair and its median shown: by the
clock, and by processor time, which other work on the machine disturbs less. Memory is the run's own figure (memory_bytes of
metrics.jsonl). Cells of several processes have no probe, which times one.
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
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", default="", metavar="WORD", help="only the cells with this in their name")
    parser.add_argument("--dataset", type=Path, metavar="FOLDER", help="a dataset made with `packtrain prepare stdlib`")
    parser.add_argument("--no-probe", action="store_true", help="memory alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "passive"}
    wanted = [cell for cell in CELLS if options.cells in cell.name]
    print("| run | memory | estimated | off by | rate, off by (processor time) | by the clock |\n|" + " --- |" * 6)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or _prepare(Path(folder) / "stdlib")
        for number, cell in enumerate(wanted):
            rounds = 1 if cell.processes > 1 or options.no_probe else options.rounds
            pairs = [
                _measure(cell, dataset, Path(folder) / f"run-{number}-{turn}", probes=not options.no_probe)
                for turn in range(rounds)
            ]
            rows.append(_summary(cell, pairs))
            _print_row(rows[-1])
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _prepare(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "packtrain", "prepare", "stdlib", "--out", folder], check=True, capture_output=True
    )
    return folder


def _measure(cell: Cell, dataset: Path, run: Path, *, probes: bool) -> dict[str, Any]:
    """One probe and one run of a cell."""
    words = [cell.preset, f"data.dataset={dataset}", "model.vocab_size=4096", *cell.settings]
    probe = _in_child("probe_cell", words) if probes and cell.processes == 1 else None
    done = _in_child("run_cell", [str(run), *words], cell.processes)
    return {"probe": probe, "run": done}


def _in_child(function: str, words: list[str], processes: int = 1) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(f"from benchmarks.plan import {function}\n{function}(*{words!r})\n")
        script.flush()
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), script.name]
        path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
        child = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=path))
    if child.returncode:
        raise SystemExit(child.stderr)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def probe_cell(preset: str, *settings: str) -> None:
    """In a child process: print what a probe measures."""
    from packtrain.config.load import load_run_config
    from packtrain.train.probe import measure

    print(json.dumps(measure(load_run_config(preset, settings).config)))


def run_cell(folder: str, preset: str, *settings: str) -> None:
    """In a child process, or in each of several: train, and print what the steps took and what was planned for memory."""
    import itertools
    import time

    from packtrain.config.load import load_run_config
    from packtrain.plan.after import compare_with_plan
    from packtrain.runs.layout import RunLayout
    from packtrain.runs.metrics import read_metrics
    from packtrain.train.run import train

    marks: list[tuple[float, float, int]] = []

    def on_step(record: dict[str, Any]) -> None:
        if "loss" in record:
            marks.append((time.perf_counter(), time.process_time(), record["tokens"]))

    config = load_run_config(preset, settings).config
    train(config, Path(folder), resume=False, on_step=on_step)
    if int(os.environ.get("RANK", "0")):
        return
    layout = RunLayout(Path(folder))
    manifest = json.loads(layout.manifest.read_text())
    found = compare_with_plan(config, manifest, read_metrics(layout.metrics))
    # The first step allocates. The others are what a long run is made of.
    steps = [
        (after[2] - before[2], after[0] - before[0], after[1] - before[1])
        for before, after in itertools.pairwise(marks)
    ]
    found["median_tokens_per_s"] = statistics.median(tokens / wall for tokens, wall, _ in steps)
    found["median_tokens_per_processor_s"] = statistics.median(tokens / processor for tokens, _, processor in steps)
    print(json.dumps(found))


def _summary(cell: Cell, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    memory = [pair["run"]["memory_bytes"] for pair in pairs]
    row: dict[str, Any] = {
        "name": cell.name,
        "measured_bytes": statistics.median(each["measured"] for each in memory),
        "estimated_bytes": memory[0]["estimated"],
        "rounds": len(pairs),
        "pairs": pairs,
    }
    probed = [pair for pair in pairs if pair["probe"]]
    for clock in ("tokens_per_s", "tokens_per_processor_s"):
        ratios = [pair["probe"][clock] / pair["run"][f"median_{clock}"] for pair in probed]
        row[f"{clock}_ratio"] = statistics.median(ratios) if ratios else None
    return row


def _print_row(row: dict[str, Any]) -> None:
    off = row["estimated_bytes"] / row["measured_bytes"] - 1
    rates = [row["tokens_per_processor_s_ratio"], row["tokens_per_s_ratio"]]
    shown = " | ".join("not probed" if ratio is None else f"{ratio - 1:+.0%}" for ratio in rates)
    print(
        f"| {row['name']} | {row['measured_bytes'] / 1e9:.3f} GB | {row['estimated_bytes'] / 1e9:.3f} GB | {off:+.1%} | "
        f"{shown} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
