"""Decides the device of a run and what `auto` means on it: precision, compilation and lanes."""

import ctypes
import importlib.util
import logging
import os
import platform
import shutil

import torch

from packtrain.config.optim import OptimConfig
from packtrain.config.run import RunConfig
from packtrain.config.train import TrainConfig
from packtrain.errors import ConfigError, DeviceError
from packtrain.model.fp8 import what_is_missing
from packtrain.parallel.ranks import launched_by_torchrun
from packtrain.plan.activations import PrecisionName
from packtrain.plan.devices import peak_flops
from packtrain.train.gpu import check_count, explain_absence, has_gpu, is_too_old_to_compile, use_gpu
from packtrain.train.step import Precision

_log = logging.getLogger("packtrain")
# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8


def resolve_device(wanted: str, local_rank: int = 0, local_world_size: int = 1) -> torch.device:
    """The device of this process, one of `local_world_size` on this machine. Raises DeviceError if it does not have it.

    With `auto`, warns if the CPU is used although the machine seems to have a GPU.
    """
    if wanted == "auto":
        wanted = "cuda" if has_gpu() else "cpu"
        if wanted == "cpu" and (reason := explain_absence()):
            _log.warning("using the CPU, because %s", reason)
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise DeviceError(
            f"train.device={wanted} does not name a device; write auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(
            f"train.device={wanted} is not supported: packtrain trains on CPUs, CUDA GPUs and Apple GPUs; write auto, cpu, cuda or mps"
        )
    if device.type == "cuda" and not has_gpu():
        reason = explain_absence()
        raise DeviceError(
            f"train.device={wanted}, but {reason}, or write train.device=cpu"
            if reason
            else f"train.device={wanted}, but torch finds no CUDA device on this machine; write train.device=cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            f"train.device={wanted}, but torch finds no Apple GPU on this machine; write train.device=cpu"
        )
    if device.type == "mps" and launched_by_torchrun() and os.environ.get("WORLD_SIZE", "1") != "1":
        raise DeviceError(
            "train.device=mps is one GPU, which several processes cannot share; start one process, or write train.device=cpu"
        )
    if device.type == "cuda" and launched_by_torchrun():
        check_count(local_rank, local_world_size)
        return torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        last = "write train.device=cuda:0" if count == 1 else f"write a number from 0 to {count - 1}"
        raise DeviceError(
            f"train.device={wanted} does not exist: this machine has {count} CUDA device{'s' * (count != 1)}; {last}"
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def open_device(wanted: str) -> torch.device:
    """The device of a command that is a process alone, made its own. Raises DeviceError if it cannot be used."""
    device = resolve_device(wanted)
    use_gpu(device)
    return device


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raises DeviceError if `device` cannot compute in train.precision."""
    if config.precision == "bf16" and device.type == "cuda" and not _cuda_computes_bf16():
        raise DeviceError(f"{torch.cuda.get_device_name(device)} does not compute bf16; write train.precision=fp16")
    if device.type == "mps" and config.precision == "fp16":
        raise DeviceError(
            "train.precision=fp16 needs loss scaling, which is not tested on Apple's GPUs; write train.precision=fp32, or bf16"
        )
    if device.type == "mps" and config.precision == "bf16" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise DeviceError("train.precision=bf16 on Apple's GPUs needs macOS 14 or newer; write train.precision=fp32")
    if config.precision == "fp8" and (missing := what_is_missing(device)):
        raise DeviceError(f"train.precision=fp8 does not work on {device}: {missing}; write train.precision=auto")


def resolve_precision(config: TrainConfig, device: torch.device) -> Precision:
    """What train.precision means on `device`; `check_precision` says whether it works there. Warns if it will be slow."""
    name = _best_precision(device) if config.precision == "auto" else config.precision
    if device.type == "cpu" and name in ("bf16", "fp16") and not _cpu_computes(name):
        _log.warning(
            "train.precision=%s is up to a hundred times slower on a CPU without units for it; write train.precision=fp32",
            name,
        )
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    return Precision(name, device.type, scaler)


def resolve_evaluation_precision(config: TrainConfig, device: torch.device) -> Precision:
    """The precision in which a run's weights are evaluated: the run's own, except for fp8, which only steps use."""
    if config.precision == "fp8":
        config = config.model_copy(update={"precision": "auto"})
    check_precision(config, device)
    return resolve_precision(config, device)


def resolve_compile(config: TrainConfig, device: torch.device) -> bool:
    """Whether to compile the model. Raises DeviceError if train.compile=true and this machine lacks what that needs."""
    if config.compile is False or (config.compile == "auto" and device.type != "cuda"):
        return False
    if device.type == "mps":
        raise DeviceError(
            "train.compile=true is not supported on Apple's GPUs; leave it out, or write train.compile=false"
        )
    if missing := _missing_for_compilation(device):
        if config.compile == "auto":
            _log.warning(
                "the model is not compiled, so training is slower: compilation needs %s, which is not installed",
                missing,
            )
            return False
        raise DeviceError(
            f"train.compile=true needs {missing}, which is not installed; install it, or write train.compile=false"
        )
    if old := is_too_old_to_compile(device):
        if config.compile == "auto":
            _log.warning("the model is not compiled, so training is slower: %s, and compilation needs 7.0", old)
            return False
        raise DeviceError(f"train.compile=true needs a GPU of compute capability 7.0, and {old}; leave it out")
    return True


def check_optimizer(config: OptimConfig, device: torch.device) -> None:
    """Raises DeviceError if the optimizer cannot step on `device`. A missing library is refused when it is imported."""
    advice = "write optim.name=adamw"
    if config.kind.is_low_bit and device.type not in ("cpu", "cuda"):
        raise DeviceError(
            f"optim.name={config.name} works on CPUs and CUDA GPUs, and train.device is {device.type}; {advice}"
        )
    if not config.kind.needs_compiler or device.type != "cuda":
        return
    if missing := _missing_for_compilation(device):
        raise DeviceError(
            f"optim.name={config.name} compiles its update on a GPU, which needs {missing}, and that is not installed; install "
            f"it, or {advice}"
        )
    if old := is_too_old_to_compile(device):
        raise DeviceError(
            f"optim.name={config.name} compiles its update on a GPU of compute capability 7.0 or more, and {old}; {advice}"
        )


def resolve_lanes(config: RunConfig, rows: int, device: torch.device, *, is_alone: bool, is_compiled: bool) -> int:
    """Lanes that share a micro-batch of `rows` in this process. Raises ConfigError if parallel.lanes does not work here."""
    count = config.num_lanes(rows)
    can_share = device.type == "cpu" and is_alone and not is_compiled
    if config.parallel.lanes == "auto":
        return count if can_share and torch.get_num_threads() >= count else 1
    if count > 1 and not can_share:
        raise ConfigError(
            f"parallel.lanes={count} needs a single process on a CPU, without compilation; leave parallel.lanes out"
        )
    if rows % count:
        raise ConfigError(
            f"a micro-batch of {rows} rows is not a multiple of parallel.lanes={count}; write a divisor of {rows}, or leave it out"
        )
    return count


def keep_freed_memory(device: torch.device, *, is_tight: bool = False) -> None:
    """Makes the process keep the memory that a step frees, for the next step. Does nothing except on a CPU with glibc.

    By default glibc maps and unmaps each tensor above 32 MB separately, and the system clears its pages again at every
    step. If memory is tight (`is_tight`), every tensor above 1 MB is mapped separately instead, so that a freed one leaves
    no gap in the heap. That is slower, and the process then takes no more memory than its tensors.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if is_tight:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
        return
    # One arena for all threads: what one lane frees, another can use, and further arenas would end at 64 MB.
    libc.mallopt(_M_ARENA_MAX, 1)
    # mallopt(3): no tensor is mapped separately, and up to 2 GiB of free heap stay with the process.
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_rate(device: torch.device, precision: Precision, world_size: int) -> float | None:
    """Peak FLOP/s of all devices of a run, if the table of devices has it. The table holds 16-bit rates only.

    An fp8 run is measured against the bf16 rate too: attention, output and loss stay in bf16, so no single rate is its
    peak, and with this one MFU compares fp8 and bf16 runs as tokens per second do. It can exceed 1.
    """
    if device.type != "cuda" or precision.dtype is None:
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    return None if peak is None else peak * world_size


def _missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile needs and this machine lacks."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    # Triton compiles its launchers as C; kernels for the CPU are C++.
    variable, names, language = (
        ("CC", ("gcc", "clang", "cc"), "C") if device.type == "cuda" else ("CXX", ("g++", "clang++"), "C++")
    )
    given = os.environ.get(variable)
    if any(shutil.which(name) for name in ([given] if given else names)):
        return None
    return f"a {language} compiler ({' or '.join(names[:2])})"


def _best_precision(device: torch.device) -> PrecisionName:
    if device.type == "cuda":
        return "bf16" if _cuda_computes_bf16() else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_computes("bf16") else "fp32"


def _cuda_computes_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_computes(name: str) -> bool:
    supported = {"bf16": "_is_mkldnn_bf16_supported", "fp16": "_is_mkldnn_fp16_supported"}[name]
    # oneDNN claims bf16 on every CPU with AVX-512; without units for bf16 it converts to float32, at half the speed.
    if name == "bf16" and platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported():
        return False
    return bool(getattr(torch.ops.mkldnn, supported)())
