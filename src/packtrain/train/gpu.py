"""Decides whether this process can use a CUDA GPU, makes it the process's own, and says in one sentence why if it cannot."""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from packtrain.errors import DeviceError

_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALL = "install a CUDA build of torch (https://pytorch.org/get-started/locally)"
# The oldest that Triton, and with it torch.compile, generates code for.
_OLDEST_COMPILED = (7, 0)


def has_gpu() -> bool:
    """Whether torch finds a CUDA device. torch's own warning, of several lines, is left to `explain_absence`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA initialization")
        return torch.cuda.is_available()


def explain_absence() -> str | None:
    """Why torch finds no CUDA device, with the way out; None if there is no sign of one in this machine."""
    if torch.version.cuda is None:
        is_there = torch.version.hip is None and _DRIVER.exists()
        return f"torch {torch.__version__} is a build without CUDA; {_INSTALL}" if is_there else None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _explain_start(str(error))
    return None


def _explain_start(message: str) -> str | None:
    """The sentence for an error of CUDA's start."""
    if found := re.search(r"driver on your system is too old \(found version (\d+)\)", message):
        version = int(found[1])
        return (
            f"the NVIDIA driver is too old: it supports CUDA {version // 1000}.{version % 1000 // 10}, and this build of torch "
            f"needs {torch.version.cuda}; update the driver, or install a build of torch for an older CUDA"
        )
    if "no NVIDIA driver" in message and not _DRIVER.exists():
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "No CUDA GPUs are available" in message:
        return (
            None
            if visible is None
            else f"CUDA_VISIBLE_DEVICES={visible or '(empty)'} hides every GPU; unset or correct it"
        )
    if "Error 803" in message:
        return "the NVIDIA driver's library and its kernel module have different versions; restart the machine"
    if "Error 802" in message:
        return "the GPUs are not initialised: the service nvidia-fabricmanager is not running; start it"
    return f"CUDA does not start ({message.splitlines()[0][:200]}); try `nvidia-smi`, and update the driver"


def use_gpu(device: torch.device) -> None:
    """Makes `device` the one that this process's kernels, streams and collectives use. Does nothing for other kinds of device.

    Raises DeviceError if this build of torch has no code for it, or if other processes leave no room on it.
    """
    if device.type != "cuda":
        return
    check_architecture(device)
    try:
        torch.cuda.set_device(device)
        # The first call that needs memory on it.
        torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise DeviceError(
                f"{device} has no memory left for this process, because others fill it; end them (`nvidia-smi` lists them), or "
                "write train.device=cuda:N for another GPU"
            ) from error
        if "busy or unavailable" in str(error):
            raise DeviceError(
                f"{device} is used by another process alone (compute mode Exclusive_Process); end that process, or write "
                "train.device=cuda:N for another GPU"
            ) from error
        raise


def check_architecture(device: torch.device) -> None:
    """Raises DeviceError if this build of torch has no kernels for `device`."""
    built, capability = torch.cuda.get_arch_list(), torch.cuda.get_device_capability(device)
    if not built or any(_runs(name, capability) for name in built):
        return
    oldest = min(_capability(name) for name in built)
    what = (
        f"{torch.cuda.get_device_name(device)} has compute capability {_words(capability)}, and torch {torch.__version__} "
        f"has kernels for {_words(oldest)} and newer"
    )
    if capability < oldest:
        raise DeviceError(
            f"{what}; install an older CUDA build of torch that still has them "
            "(https://pytorch.org/get-started/previous-versions), or write train.device=cpu"
        )
    newest = _words(max(_capability(name) for name in built))
    raise DeviceError(
        f"{what}, up to {newest}; install a build of torch for a newer CUDA (https://pytorch.org/get-started/locally)"
    )


@contextlib.contextmanager
def explain_kernels() -> Iterator[None]:
    """Turns an error of kernels that the driver cannot load inside the block into a DeviceError with the way out."""
    try:
        yield
    except RuntimeError as error:
        if "unsupported toolchain" in str(error):
            raise DeviceError(
                "the NVIDIA driver is older than the CUDA that torch compiles for: it cannot load a compiled kernel; update the "
                "driver, or write train.compile=false"
            ) from error
        if "no kernel image is available" in str(error):
            raise DeviceError(
                "a library has no kernels for this GPU, although torch has; write train.compile=false and optim.name=adamw, or "
                "install builds of torch, torchao and bitsandbytes for it"
            ) from error
        raise


def is_too_old_to_compile(device: torch.device) -> str | None:
    """The GPU in words if Triton generates no code for it."""
    if device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= _OLDEST_COMPILED:
        return None
    return f"{torch.cuda.get_device_name(device)} has compute capability {_words(capability)}"


def check_count(local_rank: int, local_world_size: int) -> None:
    """Raises DeviceError if more processes were started on this machine than it has GPUs; one of them prints it."""
    count = torch.cuda.device_count()
    if local_world_size <= count:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f" (CUDA_VISIBLE_DEVICES={visible})" if visible else ""
    error = DeviceError(
        f"{local_world_size} processes were started on this machine, and each sees {count} CUDA "
        f"{'device' if count == 1 else 'devices'}{seen}; start one for each: torchrun --nproc-per-node {count}, or, if Slurm "
        "hides the others, leave out --gpus-per-task and --gpu-bind"
    )
    error.is_reported = local_rank > 0
    raise error


def held_by_others(device: torch.device) -> int:
    """Bytes of a GPU's memory that other processes hold, or the driver for this one."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def _runs(name: str, capability: tuple[int, int]) -> bool:
    """Whether a device of `capability` runs the kernels that torch's list of architectures calls `name`."""
    kind, _, number = name.partition("_")
    built = _capability(name)
    if kind == "compute":
        # An intermediate form, from which the driver makes code for anything newer.
        return built <= capability
    if number.endswith("a"):
        return built == capability
    return built[0] == capability[0] and built[1] <= capability[1]


def _capability(name: str) -> tuple[int, int]:
    digits: Any = re.search(r"(\d+)(\d)", name)
    return int(digits[1]), int(digits[2])


def _words(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
