"""Decides the device of a run and what `auto` means on it: precision and compilation."""

import ctypes
import importlib.util
import logging
import os
import platform
import shutil

import torch

from packtrain.config.run import RunConfig
from packtrain.config.train import TrainConfig
from packtrain.errors import ConfigError, DeviceError
from packtrain.model.fp8 import what_is_missing
from packtrain.parallel.ranks import launched_by_torchrun
from packtrain.plan.devices import peak_flops
from packtrain.plan.memory import PrecisionName
from packtrain.train.step import Precision

_log = logging.getLogger("packtrain")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
# Of autocast. With fp8 the layers that take it round for themselves.
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}


def resolve_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device of this process. Raises DeviceError for one that is not here."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise DeviceError(f"train.device={wanted} is no device; write auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(
            f"train.device={wanted} is a kind of device that packtrain does not train on; write auto, cpu or cuda"
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"train.device={wanted}, but torch sees no CUDA device here; write train.device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"train.device={wanted}, but torch sees no Apple GPU here; write train.device=cpu")
    if device.type == "cuda" and (launched_by_torchrun() or device.index is None):
        device = torch.device("cuda", local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(
            f"there is no {device}: this machine has {count} CUDA devices; start no more processes than that"
        )
    return device


def check_precision(config: TrainConfig, device: torch.device) -> None:
    """Raises DeviceError where `device` cannot do the precision that `config` asks for."""
    if config.precision == "bf16" and device.type == "cuda" and not _cuda_computes_bf16():
        raise DeviceError(f"{torch.cuda.get_device_name(device)} does not compute bf16; write train.precision=fp16")
    if config.precision == "fp8" and (missing := what_is_missing(device)):
        raise DeviceError(f"train.precision=fp8 cannot be done on {device}: {missing}; write train.precision=auto")


def resolve_precision(config: TrainConfig, device: torch.device) -> tuple[PrecisionName, Precision]:
    """Name and means of the precision that `config` asks for on `device`, where `check_precision` allows it.

    Warns where it will be slow.
    """
    name = _best_precision(device) if config.precision == "auto" else config.precision
    if device.type == "cpu" and name in ("bf16", "fp16") and not _cpu_computes(name):
        _log.warning(
            "train.precision=%s on a CPU without units for it is up to a hundred times slower; write train.precision=fp32",
            name,
        )
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    return name, Precision(device.type, _DTYPES[name], scaler)


def evaluation_precision(config: TrainConfig, device: torch.device) -> Precision:
    """Means of the precision in which a run's weights are evaluated: the run's own, but for fp8, which is for its steps."""
    if config.precision == "fp8":
        config = config.model_copy(update={"precision": "auto"})
    check_precision(config, device)
    return resolve_precision(config, device)[1]


def resolve_compile(config: TrainConfig, device: torch.device) -> bool:
    """Whether the model is compiled. Raises DeviceError where it is to be and this machine lacks what that takes."""
    if config.compile is False or (config.compile == "auto" and device.type != "cuda"):
        return False
    if missing := _missing_for_compilation(device):
        if config.compile == "auto":
            _log.warning("the model is not compiled, which is slower: that takes %s, and none is found here", missing)
            return False
        raise DeviceError(
            f"train.compile=true takes {missing}, and none is found here; install it, or write train.compile=false"
        )
    return True


def resolve_lanes(config: RunConfig, rows: int, device: torch.device, *, is_alone: bool, is_compiled: bool) -> int:
    """Lanes in which this process takes micro-batches of `rows`. Raises ConfigError for a number given that cannot be."""
    count = config.num_lanes(rows)
    can_share = device.type == "cpu" and is_alone and not is_compiled
    if config.parallel.lanes == "auto":
        return count if can_share and torch.get_num_threads() >= count else 1
    if count > 1 and not can_share:
        raise ConfigError(
            f"parallel.lanes={count} is for one process on a CPU that does not compile; leave parallel.lanes out"
        )
    if rows % count:
        raise ConfigError(
            f"the {rows} rows of a micro-batch do not divide by parallel.lanes={count}; write a divisor, or leave it out"
        )
    return count


def keep_freed_memory(device: torch.device, *, is_tight: bool = False) -> None:
    """Leaves memory that a step frees with the process, for the next step to use. Does nothing but on the CPU with glibc.

    By default every tensor above 32 MB is mapped and unmapped by itself, and the system clears all of its pages at each
    step anew. Where memory is tight (`is_tight`) the opposite: every tensor above a megabyte is, so that none of them leaves
    a gap between others when it goes. That takes time and keeps the process at what its tensors take.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    if is_tight:
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
        return
    # One arena for the threads of all lanes: what one has freed is the other's, and the others' end at 64 MB.
    libc.mallopt(_M_ARENA_MAX, 1)
    # mallopt(3): none by mmap, and the top of the heap is not given back below 2 GiB.
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_rate(device: torch.device, precision: Precision, world_size: int) -> float | None:
    """What all devices of a run could compute, in FLOP/s, if the table of devices knows it; it holds 16-bit rates only.

    Of an fp8 run it is the bf16 rate too: attention, output and loss stay in bf16, so that no single rate would be its
    peak, and against the same one its MFU stands to a bf16 run's as their tokens per second do. It may be above 1.
    """
    if device.type != "cuda" or precision.dtype is None:
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    return None if peak is None else peak * world_size


def _missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile calls and this machine does not have."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    # Triton builds its launchers in C, the CPU's kernels are C++.
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
    # oneDNN says yes to bf16 wherever there is AVX-512, and without the units goes by way of float32, at half of its rate.
    if name == "bf16" and platform.machine() in ("x86_64", "AMD64") and not torch.cpu._is_avx512_bf16_supported():
        return False
    return bool(getattr(torch.ops.mkldnn, supported)())
