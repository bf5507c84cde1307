"""One GPU: tokens per second, MFU and peak memory of training steps, after a pass that shows they are right.

    python -m benchmarks.gpu --out gpu-results

Needs no network. Each case has a process of its own, so that one that runs out of memory harms no other. Results are kept
case by case in OUT/gpu.json: the same command goes on where it was stopped. OUT/gpu.md is the table. A case names its
contender, preset, optimizer, compilation and rows; rows double until they no longer fit. `--device cpu` with small presets
shows that the benchmark itself runs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PRESETS = ("llama2-437m", "llama2-437m-h16", "llama2-437m-h8")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
CHECKS = ("gradients", "resume")


class Case(NamedTuple):
    """One series of measurements; `rows` is left out, as it is found."""

    contender: str
    preset: str
    optimizer: str
    compiled: bool

    @property
    def name(self) -> str:
        return f"{self.contender} {self.preset} {self.optimizer} {'compiled' if self.compiled else 'eager'}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run what is missing, write both files, print the table; gives what the JSON file holds."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    machine = _child({"case": "machine"}, options)
    if results.get("machine", {}).get("device", machine["device"]) != machine["device"]:
        raise SystemExit(f"{path} holds the figures of another device; choose another --out")
    results["machine"] = machine

    def keep(key: str, figures: Any) -> None:
        results[key] = figures
        path.write_text(json.dumps(results, indent=2) + "\n")
        (options.out / "gpu.md").write_text(table(results))
        print(f"{key}: {figures}", file=sys.stderr)

    for check in CHECKS:
        if "failed" in results.get(check, {"failed": ""}):
            keep(check, _child({"case": check}, options))
    for case in _cases(options):
        if case.name not in results:
            keep(case.name, _measure(case, options))
    print(table(results))
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS))
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--least-rows", type=int, default=8)
    parser.add_argument("--most-rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after three that warm up")
    parser.add_argument("--case-seconds", type=int, default=400, help="most time for one number of rows")
    return parser


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    """The reference first, then what differs from it in one thing, so that a run cut short has told the most."""
    first, *others = options.presets
    for compiled in (True, False):
        for contender in ("packtrain", "transformers"):
            yield Case(contender, first, "adamw", compiled)
    for preset in others:
        yield Case("packtrain", preset, "adamw", True)
    for optimizer in options.optimizers:
        if optimizer != "adamw":
            yield Case("packtrain", first, optimizer, True)
    for preset in others:
        yield Case("transformers", preset, "adamw", True)


def _measure(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures for each number of rows, the last of which may have failed."""
    figures = []
    rows = options.least_rows
    while rows <= options.most_rows:
        figures.append(_child({"case": "step", **case._asdict(), "rows": rows}, options))
        if "failed" in figures[-1]:
            break
        rows *= 2
    return figures


def _child(task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    task |= {"device": options.device, "seq_len": options.seq_len, "steps": options.steps}
    command = [sys.executable, "-m", "benchmarks.gpu_cases", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.case_seconds, check=False)
    except subprocess.TimeoutExpired:
        return {**_named(task), "failed": f"not done after {options.case_seconds} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {**_named(task), "failed": lines[-1][:300]}
    return _named(task) | json.loads(done.stdout.splitlines()[-1])


def _named(task: dict[str, Any]) -> dict[str, Any]:
    return {"rows": task["rows"]} if "rows" in task else {}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: the machine, the checks, and each case at its best number of rows."""
    machine = results["machine"]
    lines = [
        f"Device: {machine['device']}, {machine['memory_gb']:.0f} GB; torch {machine['torch']}, CUDA {machine['cuda']}. "
        f"Matrix rate measured: {machine['matmul_tflops']:.1f} TFLOP/s ({machine['matmul']})"
        + (f", peak by data sheet {machine['peak_tflops']:.1f}." if machine["peak_tflops"] else "; MFU n/a."),
        "",
    ]
    lines += [f"- {check}: {results[check]}" for check in CHECKS if check in results]
    lines += ["", "| case | best rows | tokens/s | MFU | of the measured rate | peak memory | most rows that fit |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for name, series in results.items():
        if not isinstance(series, list):
            continue
        fitting = [figures for figures in series if "failed" not in figures]
        if not fitting:
            lines.append(f"| {name} | failed: {series[0]['failed']} | | | | | |")
            continue
        best = max(fitting, key=lambda figures: figures["tokens_per_s"])
        mfu = f"{best['mfu']:.1%}" if best["mfu"] is not None else "n/a"
        rate = best["flops"] / machine["matmul_tflops"] / 1e12
        lines.append(
            f"| {name} | {best['rows']} | {best['tokens_per_s']:,.0f} | {mfu} | {rate:.1%} | "
            f"{best['peak_gb']:.2f} GB | {fitting[-1]['rows']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
