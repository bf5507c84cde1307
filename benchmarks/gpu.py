"""Tokens per second, MFU and peak memory of training steps on one GPU, after checks that the steps are right.

    python -m benchmarks.gpu --out gpu-results

Needs no network. Each measurement runs in its own process, so that one that runs out of memory does not harm the others. Its result is
added to OUT/gpu.json at once: after a kill, the same command continues with what is missing, and measures again what you
remove from the file. OUT/gpu.md shows the results as a table. A step is a training step: forward and backward of every
micro-batch of the preset's global batch, clipping and update. The rows of a micro-batch double until they no longer fit.
`--device cpu --presets demo` shows that it runs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from packtrain.storage.atomic import write_atomically

PRESETS = ("llama2-437m", "llama2-437m-h16", "llama2-437m-h8")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
CHECKS = ("gradients", "resume")
OUT_OF_MEMORY = "out of memory"

Figures = dict[str, Any]


class Case(NamedTuple):
    """One series of measurements. It does not name the rows of a micro-batch, which are searched for."""

    contender: str
    preset: str
    optimizer: str
    precision: str
    compiled: bool

    @property
    def name(self) -> str:
        words = (self.contender, self.preset, self.optimizer, self.precision, "compiled" if self.compiled else "eager")
        return " ".join(words)


def main(arguments: list[str] | None = None) -> Figures:
    """Run what is missing, write both files, print the table, and return the content of the JSON file.

    Ends with exit code 1 if a check failed: the figures are then those of a step that is wrong.
    """
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu.json"
    results: Figures = json.loads(path.read_text()) if path.is_file() else {"checks": {}, "cases": {}}
    machine = _child({"case": "machine"}, options)
    if "failed" in machine:
        raise SystemExit(machine["failed"])
    for what in ("device", "torch"):
        if results.get("machine", machine)[what] != machine[what]:
            raise SystemExit(
                f"{path} holds figures of another {what} ({results['machine'][what]}); choose another --out"
            )
    results["machine"] = machine

    def keep() -> None:
        write_atomically(path, (json.dumps(results, indent=2) + "\n").encode())
        write_atomically(options.out / "gpu.md", table(results).encode())

    for check in CHECKS:
        if "failed" in results["checks"].get(check, {"failed": ""}):
            results["checks"][check] = _child({"case": check}, options)
            keep()
    cases = list(_cases(options, machine))
    for case in cases:
        series = results["cases"].setdefault(case.name, [])
        _measure(case, series, _first_rows(results["cases"], cases[0].name, options), options, keep)
    print(table(results))
    if any("failed" in found for found in results["checks"].values()):
        raise SystemExit(1)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    parser.add_argument(
        "--step-tokens", type=int, help="tokens per step; default: the preset's train.global_batch_tokens"
    )
    parser.add_argument("--least-rows", type=int, default=8, help="rows of the first case's first micro-batch")
    parser.add_argument("--most-rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after two that compile and warm up")
    parser.add_argument("--case-seconds", type=int, default=400, help="time limit of one measurement")
    return parser


def _cases(options: argparse.Namespace, machine: Figures) -> Iterator[Case]:
    """The reference first, then cases that differ from it in one thing, so that an interrupted run has the most useful results."""
    first, *others = options.presets
    precision = machine["precision"]
    for compiled in (True, False):
        for contender in ("packtrain", "transformers"):
            yield Case(contender, first, "adamw", precision, compiled)
    if machine["without_fp8"] is None:
        yield Case("packtrain", first, "adamw", "fp8", True)
    for preset in others:
        yield Case("packtrain", preset, "adamw", precision, True)
    for optimizer in options.optimizers:
        if optimizer != "adamw":
            yield Case("packtrain", first, optimizer, precision, True)
    for preset in others:
        yield Case("transformers", preset, "adamw", precision, True)


def _first_rows(cases: dict[str, list[Figures]], reference: str, options: argparse.Namespace) -> int:
    """The rows that a case starts with: the reference's best, which is probably near its own."""
    fitting = [figures for figures in cases[reference] if "failed" not in figures]
    return max(fitting, key=lambda figures: figures["tokens_per_s"])["rows"] if fitting else options.least_rows


def _measure(
    case: Case, series: list[Figures], first_rows: int, options: argparse.Namespace, keep: Callable[[], None]
) -> None:
    """Add the missing figures to `series`, doubling the rows until they fail, or halving them until they fit if the first fails."""
    while (rows := _next_rows(series, first_rows, options.most_rows)) is not None:
        figures = _child({"case": "step", **case._asdict(), "rows": rows}, options)
        series.append({"rows": rows} | figures)
        print(f"{case.name}: {series[-1]}", file=sys.stderr)
        keep()


def _next_rows(series: list[Figures], first_rows: int, most_rows: int) -> int | None:
    """Rows to measure next; None if the series is complete: some rows fit, and twice as many do not or exceed `most_rows`."""
    if not series:
        return first_rows
    failed = [figures["rows"] for figures in series if "failed" in figures]
    fitting = [figures["rows"] for figures in series if "failed" not in figures]
    if not fitting:
        # Fewer rows help only if memory ran out.
        return min(failed) // 2 or None if series[-1]["failed"] == OUT_OF_MEMORY else None
    is_whole = any(figures["micro_batches"] == 1 for figures in series if "failed" not in figures)
    twice = 2 * max(fitting)
    return None if failed or is_whole or twice > most_rows else twice


def _child(task: Figures, options: argparse.Namespace) -> Figures:
    task |= {"device": options.device, "step_tokens": options.step_tokens, "steps": options.steps}
    command = [sys.executable, "-m", "benchmarks.gpu_cases", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.case_seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {options.case_seconds} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "OutOfMemoryError" in done.stderr:
        return {"failed": OUT_OF_MEMORY}
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return {"failed": lines[-1][:300]}


def table(results: Figures) -> str:
    """The results as Markdown: the machine, the checks, and each case at its best number of rows."""
    machine = results["machine"]
    peak = f"peak by data sheet {machine['peak_tflops']:.1f}" if machine["peak_tflops"] else "peak not known: MFU n/a"
    fp8 = f"No fp8: {machine['without_fp8']}." if machine["without_fp8"] else "An fp8 step is held against these, too."
    lines = [
        f"Device: {machine['device']}, {machine['memory_gb']:.0f} GB; torch {machine['torch']}, CUDA {machine['cuda']}. "
        f"Matrix rate measured: {machine['matmul_tflops']:.3g} TFLOP/s ({machine['matmul']}), {peak}. {fp8}",
        "",
    ]
    for check, found in results["checks"].items():
        verdict = f"**FAILED**: {found['failed']}" if "failed" in found else "right"
        lines.append(f"- {check}: {verdict}; {_in_words(found)}")
    heads = (
        "case",
        "rows a micro-batch",
        "tokens/s",
        "MFU",
        "of the measured rate",
        "peak memory",
        "computed",
        "rows tried",
    )
    lines += ["", f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    lines += [_line(name, series, machine) for name, series in results["cases"].items() if series]
    return "\n".join(lines) + "\n"


def _in_words(found: Figures) -> str:
    return ", ".join(
        f"{key} {value:.2g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
        if key != "failed"
    )


def _line(name: str, series: list[Figures], machine: Figures) -> str:
    tried = ", ".join(
        str(figures["rows"]) + (f": {_cell(figures['failed'])}" if "failed" in figures else "") for figures in series
    )
    fitting = [figures for figures in series if "failed" not in figures]
    if not fitting:
        return f"| {name} | none | | | | | | {tried} |"
    best = max(fitting, key=lambda figures: figures["tokens_per_s"])
    cells = [
        name,
        f"{best['rows']}, {best['micro_batches']} a step",
        f"{best['tokens_per_s']:,.0f}",
        "n/a" if best["mfu"] is None else f"{best['mfu']:.1%}",
        f"{best['flops'] / machine['matmul_tflops'] / 1e12:.1%}",
        f"{best['peak_gb']:.2f} GB",
        "" if best["computed_gb"] is None else f"{best['computed_gb']:.2f} GB",
        tried,
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
