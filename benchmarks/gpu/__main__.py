"""What one GPU does: kernels' rates, checks, tokens per second, MFU and peak memory of training steps, within a deadline.

    python -m benchmarks.gpu --out gpu-results --deadline 540

Needs no network. Each figure is added to OUT/gpu.json at once, and OUT/gpu.md shows them as tables. A case that cannot end
before the deadline is not begun, and one that runs over is ended; the files say which. The same command continues with what
is missing, and measures again what you remove from the file. The cases of a preset share a process and all share
OUT/compiled, where compiled kernels are kept; OUT/gpu.log has the rest of what they print.
A step is a training step: forward and backward of every micro-batch of the preset's global batch, clipping and update. Its
rows are halved until they fit. `--device cpu --presets demo` shows that it runs.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import START_S, Case, estimate_s, list_cases
from benchmarks.gpu.child import OUT_OF_MEMORY, Child
from benchmarks.gpu.results import Results
from benchmarks.gpu.schedule import Schedule

Figures = dict[str, Any]
PRESETS = ("llama2-437m", "llama2-437m-h8", "llama2-437m-h16")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
_START = "start"


def main(
    arguments: list[str] | None = None,
    now: Callable[[], float] = time.monotonic,
    start: Callable[[str, Path, Path], Any] = Child,
) -> Results:
    """Run what is missing and fits before the deadline, print the tables, and return the figures.

    Ends with exit code 1 if a check failed: the figures are then those of a step that is wrong.
    """
    options = _parser().parse_args(arguments)
    schedule = Schedule(options.deadline, now)
    options.out.mkdir(parents=True, exist_ok=True)
    children = _Children(options, schedule, start)
    # Else the children, which are no part of this process's group, would outlive it.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        results = Results(options.out, children.begin("kernels"))
        _run_all(options, schedule, children, results)
    finally:
        children.end()
        signal.signal(signal.SIGTERM, before)
    print(results.table())
    checks = [
        results.cases[name][-1] for name in ("gradients", "documents", "checkpoint", "resume") if name in results.cases
    ]
    if any(found.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY for found in checks):
        raise SystemExit(1)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the figures")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="end by then; default: when all is done")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--optimizers", nargs="*", default=list(OPTIMIZERS))
    parser.add_argument(
        "--step-tokens", type=int, help="tokens per step; default: the preset's train.global_batch_tokens"
    )
    parser.add_argument("--rows", type=int, help="rows of a micro-batch; default: 32, and 2 on a CPU")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after two short ones that compile")
    return parser


class _Children:
    """The processes of the groups, begun when they are first needed."""

    def __init__(
        self, options: argparse.Namespace, schedule: Schedule, start: Callable[[str, Path, Path], Any]
    ) -> None:
        self._options, self._schedule, self._start = options, schedule, start
        self._running: dict[str, Any] = {}

    def missing_s(self, group: str) -> float:
        """Seconds that the group's process is expected to need until it can take a task."""
        child = self._running.get(group)
        return 0.0 if child is not None and not child.has_ended else self._schedule.expect_s(_START, START_S)

    def begin(self, group: str) -> Figures:
        """Begins the group's process if it does not run; returns what it says of the device, empty if it ran before."""
        child = self._running.get(group)
        if child is not None and not child.has_ended:
            return {}
        out, before = self._options.out, self._schedule.now()
        child = self._running[group] = self._start(self._options.device, out / "gpu.log", out / "compiled")
        limit_s = self._schedule.limit_s(self._schedule.expect_s(_START, START_S))
        device: Figures = child.read(limit_s)
        if "failed" in device:
            raise SystemExit(device["failed"])
        self._schedule.learn(_START, START_S, self._schedule.now() - before)
        return device

    def run(self, group: str, task: Figures, limit_s: float) -> Figures:
        """The figures of a task."""
        figures: Figures = self._running[group].run(task, limit_s)
        return figures

    def end(self) -> None:
        """Ends all processes."""
        for child in self._running.values():
            child.end()


def _run_all(options: argparse.Namespace, schedule: Schedule, children: _Children, results: Results) -> None:
    options.rows = options.rows or (2 if options.device == "cpu" else 32)
    machine, *others = list_cases(options, "fp32")
    for tries in results.cases.values():
        if "failed" not in tries[-1]:
            schedule.learn(tries[-1]["kind"], tries[-1]["estimate"], tries[-1]["seconds"])
    _run_case(machine, options, schedule, children, results)
    precision = results.machine.get("precision")
    if precision is None:
        why = "the case machine did not succeed: the precision of training is not known"
        for case in others:
            results.leave_out(case.name, why)
        return
    for case in list_cases(options, precision)[1:]:
        if case.needs_fp8 and results.machine["without_fp8"]:
            results.leave_out(case.name, f"no fp8: {results.machine['without_fp8']}")
            continue
        _run_case(case, options, schedule, children, results)


def _run_case(
    case: Case, options: argparse.Namespace, schedule: Schedule, children: _Children, results: Results
) -> None:
    """Runs a case that is missing, with fewer rows each time its memory runs out, as long as that fits."""
    while (rows := _next_rows(case, results)) is not None:
        case = case._replace(task=case.task | {"rows": rows})
        estimate = estimate_s(case, options.device, results.machine.get("matmul_tflops"))
        expected_s = schedule.expect_s(case.kind, estimate)
        whole_s = expected_s + children.missing_s(case.group)
        if not schedule.fits(whole_s):
            left_s = max(0.0, schedule.left_s())
            results.leave_out(case.name, f"would take {whole_s:.0f} s, and {left_s:.0f} s are left before the deadline")
            return
        children.begin(case.group)
        before = schedule.now()
        figures = children.run(case.group, case.task, schedule.limit_s(expected_s))
        taken = schedule.now() - before
        if "failed" not in figures:
            schedule.learn(case.kind, estimate, taken)
        results.add(case.name, {"rows": rows, **figures, "seconds": taken, "kind": case.kind, "estimate": estimate})
        print(f"{taken:.0f} s, {case.name}: {figures.get('failed', 'done')}", file=sys.stderr)
        if figures.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY:
            return


def _next_rows(case: Case, results: Results) -> int | None:
    """Rows to try; None if the case is done. What fitted the first of the steps is what the others begin with."""
    tries = results.cases.get(case.name, [])
    most = int(case.task.get("rows", 0))
    if case.kind in ("step", "profile", "checkpoint"):
        fitted = [
            tried["rows"]
            for found in results.cases.values()
            for tried in found[-1:]
            if tried["kind"] == "step" and "failed" not in tried
        ]
        most = min(most, fitted[0]) if fitted and not case.name.endswith("twice the rows") else most
    if not tries or tries[-1].get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY:
        return most
    if "failed" not in tries[-1]:
        return None
    return (tries[-1]["rows"] // 2 or None) if case.halves else None


if __name__ == "__main__":
    main()
