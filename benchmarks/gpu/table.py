"""Decides how the figures look as Markdown: the machine, kernels, checks, steps, and the costliest kernels."""

from collections.abc import Iterator
from typing import Any

Figures = dict[str, Any]
_HEADS = (
    "case",
    "rows a micro-batch",
    "tokens/s",
    "MFU",
    "of the measured rate",
    "peak memory",
    "computed",
    "rows tried",
)
_CHECKS = ("gradients", "documents", "checkpoint", "resume")


def table(content: Figures) -> str:
    """The content of gpu.json as Markdown. What is missing is left out."""
    device, cases = content["device"], content["cases"]
    machine = cases.get("machine", [{}])[-1]
    lines = [f"Device: {device['device']}; torch {device['torch']}, CUDA {device['cuda']}.", ""]
    lines += _machine(machine)
    last = {name: tries[-1] for name, tries in cases.items() if tries}
    lines += [f"- {name}: {_verdict(last[name])}; {_in_words(last[name])}" for name in _CHECKS if name in last]
    lines += [""]
    for name, found in last.items():
        if name.startswith("attention") or name in ("rotary", "loss"):
            lines.append(f"- {name}: {found.get('failed') or _in_words(found)}")
    steps = {name: tries for name, tries in cases.items() if name.startswith(("packtrain", "transformers"))}
    if steps:
        lines += ["", f"| {' | '.join(_HEADS)} |", "| --- " * len(_HEADS) + "|"]
        lines += [_line(name, tries, machine.get("matmul_tflops")) for name, tries in steps.items()]
    for name, found in last.items():
        if name.startswith("profile"):
            lines += ["", *_profile(name, found)]
    if left_out := content.get("left out"):
        lines += ["", "Left out:", ""]
        lines += [f"- {each['case']}: {each['why']}" for each in left_out]
    return "\n".join(lines) + "\n"


def _machine(machine: Figures) -> Iterator[str]:
    if "failed" in machine:
        yield from (f"Its rates are not known: {machine['failed']}.", "")
    if "matmul_tflops" not in machine:
        return
    peak = f"peak by data sheet {machine['peak_tflops']:.1f}" if machine["peak_tflops"] else "peak not known: MFU n/a"
    fp8 = f"No fp8: {machine['without_fp8']}." if machine["without_fp8"] else "An fp8 step is held against these, too."
    yield (
        f"{machine['memory_gb']:.0f} GB. Matrix rate measured: {machine['matmul_tflops']:.3g} TFLOP/s ({machine['matmul']}), "
        f"{peak}. {fp8}"
    )
    yield from ("", f"- versions: {_in_words(machine['versions'])}", f"- priority: {_in_words(machine['priority'])}")
    yield f"- products, TFLOP/s: {_in_words(machine['products_tflops'])}"


def _verdict(found: Figures) -> str:
    return f"**FAILED**: {found['failed']}" if "failed" in found else "right"


def _in_words(found: Figures) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
        if key not in ("failed", "seconds", "kind", "estimate", "rows")
    )


def _line(name: str, tries: list[Figures], matmul_tflops: float | None) -> str:
    tried = ", ".join(
        str(figures["rows"]) + (f": {_cell(figures['failed'])}" if "failed" in figures else "") for figures in tries
    )
    fitting = [figures for figures in tries if "failed" not in figures]
    if not fitting:
        return f"| {name} | none | | | | | | {tried} |"
    best = max(fitting, key=lambda figures: figures["tokens_per_s"])
    cells = [
        name,
        f"{best['rows']}, {best['micro_batches']} a step",
        f"{best['tokens_per_s']:,.0f}",
        "n/a" if best["mfu"] is None else f"{best['mfu']:.1%}",
        "" if matmul_tflops is None else f"{best['flops'] / matmul_tflops / 1e12:.1%}",
        f"{best['peak_gb']:.2f} GB",
        "" if best["computed_gb"] is None else f"{best['computed_gb']:.2f} GB",
        tried,
    ]
    return f"| {' | '.join(cells)} |"


def _profile(name: str, found: Figures) -> Iterator[str]:
    if "failed" in found:
        yield f"{name}: {found['failed']}"
        return
    yield (
        f"{name}: one micro-batch takes {found['step_ms']:.1f} ms without the profiler, its {found['launches']} kernels "
        f"{found['kernels_ms']:.1f} ms with it; the costliest:"
    )
    yield from ("", "| kernel | ms | share | launches |", "| --- | --- | --- | --- |")
    for kernel in found["costliest"]:
        share = kernel["ms"] / found["kernels_ms"]
        yield f"| {_cell(kernel['kernel'][:120])} | {kernel['ms']:.3f} | {share:.1%} | {kernel['launches']} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
