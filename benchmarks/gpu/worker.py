"""The process of one group of cases: reads a JSON task a line, and answers each with a JSON line of figures."""

import ctypes
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import checks, kernels, steps
from benchmarks.gpu.child import OUT_OF_MEMORY

Figures = dict[str, Any]
Run = Callable[[Figures, torch.device], Figures]
RUNS: dict[str, Run] = {
    "machine": kernels.machine,
    "attention": kernels.attention,
    "rotary": kernels.rotary,
    "loss": kernels.loss,
    "gradients": checks.gradients,
    "documents": checks.documents,
    "checkpoint": checks.checkpoint,
    "resume": checks.resume,
    "step": steps.step,
    "profile": steps.profile,
}
# From linux/prctl.h.
_SET_DEATH_SIGNAL = 1
_log = logging.getLogger("benchmarks.gpu")


def main(device: torch.device) -> None:
    """Answer until the input ends, or until the process that began this one is killed."""
    if sys.platform == "linux":
        # Else it would fill the device while the next run measures.
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    # Compilers and libraries print, too.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    print(json.dumps(describe(device)), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), device)), file=answers, flush=True)


def describe(device: torch.device) -> Figures:
    """What figures depend on and must not change within a file."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return {"failed": "torch sees no CUDA device here; --device cpu shows that the benchmark runs"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}


def answer(task: Figures, device: torch.device) -> Figures:
    """The figures of a task, or {"failed": why}. Afterwards its memory is free for the next task."""
    _free(device)
    try:
        return RUNS[task["case"]](task, device)
    except Exception as error:  # noqa: BLE001
        _log.exception("%s", task)
        failed = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
        if isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error).lower():
            failed = OUT_OF_MEMORY
    finally:
        # The error's frames refer to its tensors until here.
        _free(device)
    return {"failed": failed}


def _free(device: torch.device) -> None:
    # Graphs refer to weights. Compiled kernels stay in the cache.
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    main(torch.device(sys.argv[1]))
