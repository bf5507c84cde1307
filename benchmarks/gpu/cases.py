"""Decides what is measured, in which order, and how long each case is expected to take before any was measured."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from packtrain.config.load import load_run_config
from packtrain.config.run import RunConfig
from packtrain.plan.parameters import flops_per_token

Figures = dict[str, Any]
WIDTHS = (32, 64, 128)
# A process that imports torch and finds its device.
START_S = 12.0
# Compiling a step, once for all blocks and once for the loss; an eager step compiles nothing.
_COMPILE_S, _EAGER_S = 25.0, 5.0
# The share of the device's matrix rate that steps are expected to reach.
_SHARE = {"packtrain": 0.35, "transformers": 0.25}
_EAGER_SHARE = 0.5
# Two warm steps of two micro-batches each.
_WARM_MICRO_BATCHES = 4
_ASSUMED_TFLOPS = {"cuda": 300.0, "cpu": 0.1}


class Case(NamedTuple):
    """One case of a group, whose cases share a process; `task` is what that process is told."""

    name: str
    group: str
    task: Figures
    estimate_s: float = 0.0
    """0: computed from the device's rate."""
    needs_fp8: bool = False
    halves: bool = False
    """Whether it is tried with half the rows if memory runs out."""

    @property
    def kind(self) -> str:
        """Cases whose estimates are wrong by the same factor, more or less."""
        return str(self.task["case"])


def read_preset(name: str, settings: Sequence[str] = ()) -> RunConfig:
    """A preset with its own vocabulary; one that takes its dataset's gets one of Llama 2's size."""
    config = load_run_config(name, settings).config
    if config.model.vocab_size is None:
        config = load_run_config(name, [*settings, f"model.vocab_size={config.model.vocab_rows}"]).config
    return config


def list_cases(options: argparse.Namespace, precision: str) -> list[Case]:
    """All cases, the most useful first. `precision` is that of training on the device."""
    first, *others = options.presets
    step = _Maker(options, precision)
    shapes = {"preset": first, "rows": options.rows, "kernel_rows": min(8, options.rows)}
    shapes["compiled"] = options.device != "cpu"
    adamw = {"preset": first, "rows": options.rows, "optimizer": "adamw", "precision": precision, "compiled": True}
    cases = [Case("machine", "kernels", {"case": "machine", **shapes}, 15)]
    for width in WIDTHS:
        cases.append(Case(f"attention, width {width}", "kernels", {"case": "attention", "width": width, **shapes}, 10))
    cases += [Case(name, "kernels", {"case": name, **shapes}, 12) for name in ("rotary", "loss")]
    cases += [Case(name, "kernels", {"case": name}, 40) for name in ("gradients", "documents")]
    reference = step(first, compiled=True)
    cases += [reference, Case(f"profile of {reference.name}", first, {"case": "profile", **adamw}, 30)]
    cases += [step(preset) for preset in others[:1]]
    cases.append(step(first, "transformers"))
    cases += [step(first, optimizer=name) for name in options.optimizers if name != "adamw"]
    cases += [step(preset, precision="fp8") for preset in options.presets[:2]]
    twice = step(first)
    cases.append(
        twice._replace(name=f"{twice.name}, twice the rows", halves=False, task=twice.task | {"rows": 2 * options.rows})
    )
    cases += [
        Case("checkpoint", first, {"case": "checkpoint", **adamw, "folder": str(options.out.resolve())}, 60),
        Case("resume", "kernels", {"case": "resume"}, 150),
    ]
    cases += [step(preset) for preset in others[1:]]
    cases += [step(first, contender, compiled=False) for contender in ("packtrain", "transformers")]
    cases += [step(preset, "transformers") for preset in others]
    return list({case.name: case for case in cases}.values())


class _Maker:
    """Makes the cases of steps."""

    def __init__(self, options: argparse.Namespace, precision: str) -> None:
        self._options, self._precision = options, precision

    def __call__(
        self,
        preset: str,
        contender: str = "packtrain",
        optimizer: str = "adamw",
        precision: str | None = None,
        *,
        compiled: bool | None = None,
    ) -> Case:
        if compiled is None:
            # Compiling for a CPU takes most of the time of a run that only shows that it runs.
            compiled = self._options.device != "cpu"
        words = (contender, preset, optimizer, precision or self._precision, "compiled" if compiled else "eager")
        task = {
            "case": "step",
            "contender": contender,
            "preset": preset,
            "optimizer": optimizer,
            "precision": precision or self._precision,
            "compiled": compiled,
            "rows": self._options.rows,
            "steps": self._options.steps,
            "step_tokens": self._options.step_tokens,
        }
        return Case(" ".join(words), preset, task, needs_fp8=precision == "fp8", halves=True)


def estimate_s(case: Case, device: str, matmul_tflops: float | None) -> float:
    """Seconds of a case, without its process's start, on a device of that matrix rate (None: not measured)."""
    if case.estimate_s:
        return case.estimate_s
    task = case.task
    config = read_preset(task["preset"])
    micro_batch = task["rows"] * config.data.seq_len
    step = max(micro_batch, task["step_tokens"] or config.train.global_batch_tokens)
    tokens = task["steps"] * step + min(_WARM_MICRO_BATCHES * micro_batch, 2 * step)
    share = _SHARE[task["contender"]] * (1 if task["compiled"] else _EAGER_SHARE)
    rate = (matmul_tflops or _ASSUMED_TFLOPS["cpu" if device == "cpu" else "cuda"]) * 1e12 * share
    flops = tokens * flops_per_token(config.model, config.data.seq_len)
    return (_COMPILE_S if task["compiled"] else _EAGER_S) + flops / rate
