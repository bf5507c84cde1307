"""Decides what is said of this machine: its devices, memory, disk and libraries, and what would fail or be slow on it."""

import importlib.util
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import psutil
import torch

from packtrain.config.load import load_run_config
from packtrain.config.train import TrainConfig
from packtrain.doctor.links import describe_links, examine_links, tell_problems
from packtrain.errors import DeviceError
from packtrain.model.cpu.products import can_use_onednn
from packtrain.model.cpu.timing import choose
from packtrain.model.fp8 import what_is_missing
from packtrain.parallel.ranks import available_backends
from packtrain.runs.manifest import hardware, versions
from packtrain.train.cpu_libraries import measure_products
from packtrain.train.device import resolve_device, resolve_precision
from packtrain.train.gpu import use_gpu

# Its shapes are those of other models of about 100M parameters.
_MEASURED_PRESET, _MEASURED_TOKENS = "llama2-110m", 1024
# Distribution name, what needs it, and the extra that installs it.
_EXTRAS = (
    ("bitsandbytes", "optim.name=adamw8bit", "lowbit"),
    ("torchao", "optim.name=adamw4bit and train.precision=fp8", "torchao"),
    ("wandb", "track.wandb", "wandb"),
    ("tensorboard", "track.tensorboard", "tensorboard"),
    ("ftfy", "clean.fix_encoding", "ftfy"),
    ("uvicorn", "packtrain serve", "serve"),
)


@dataclass(frozen=True)
class MachineFacts:
    """What `doctor` says of a machine: facts by name, and a sentence, with its fix, for each thing that would fail or be slow."""

    facts: dict[str, str]
    problems: list[str]


def examine_machine() -> MachineFacts:
    """Looks at this machine. On a CPU, it runs matrix products for about a second; of several GPUs it tries the links."""
    device = resolve_device("auto")
    machine = hardware(device)
    disk = shutil.disk_usage(".")
    facts = {
        "device": f"{machine['device']} ({device.type}), {machine['memory_bytes'] / 1e9:.1f} GB",
        "cores": f"{machine['cores']}, torch uses {machine['threads']} threads",
        "memory": f"{psutil.virtual_memory().available / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB free",
        "disk here": f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB free",
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "precision auto": resolve_precision(TrainConfig(), device).name,
        "fp8": f"no: {missing}" if (missing := what_is_missing(device)) else "yes, with train.precision=fp8",
        "distributed": ", ".join(available_backends()) or "none",
        "libraries": ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python"),
    }
    unusable = explain_unusable(device)
    links = examine_links() if device.type == "cuda" and unusable is None else None
    if links is not None:
        facts["between GPUs"] = describe_links(links)
    if device.type == "cpu":
        facts["matrix products"] = _describe_products(resolve_precision(TrainConfig(), device).dtype or torch.float32)
    told = [*([unusable] if unusable else ()), *(tell_problems(links) if links else ())]
    return MachineFacts(facts, [*told, *_problems(machine, disk.free)])


def explain_unusable(device: torch.device) -> str | None:
    """Why a run could not use `device`, with the way out: a GPU that is too old for this torch, or that others fill."""
    try:
        use_gpu(device)
    except DeviceError as error:
        return str(error)
    return None


def _describe_products(dtype: torch.dtype) -> str:
    """Who takes a step's products here, at the shapes of one preset, as a run of it measures them in each of two lanes."""
    if not can_use_onednn(torch.empty(0, dtype=dtype)):
        return "torch's own, as it has no oneDNN for them here"
    model, threads = load_run_config(_MEASURED_PRESET).config.model, max(1, torch.get_num_threads() // 2)
    measured = measure_products(model, _MEASURED_TOKENS, dtype, threads, again=True)
    ranges = [
        f"{name} {min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f}"
        for name, rates in zip(("torch", "oneDNN"), zip(*(rates for _, rates in measured), strict=True), strict=True)
    ]
    chosen = "; ".join(f"cpu.{name}={library}" for name, library in choose(measured))
    return (
        f"{' and '.join(ranges)} GFLOP/s as measured ({_MEASURED_PRESET}, {str(dtype).removeprefix('torch.')}, "
        f"{threads} of {torch.get_num_threads()} threads), which gives {chosen}"
    )


def _problems(machine: dict[str, Any], free_bytes: int) -> Iterator[str]:
    if machine["device_type"] == "cpu":
        yield "no GPU was found: models above about 15M parameters take days; to use a GPU, install its driver and the CUDA build of torch"
    if free_bytes < 20e9:
        yield "less than 20 GB of disk is free here, and a checkpoint of 437M parameters takes 5.3 GB; give --run and --out on another disk"
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError):
            yield "torchvision does not match this version of torch, which breaks transformers and export; run `pip uninstall torchvision`"
    for name, purpose, extra in _EXTRAS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed, and {purpose} needs it; run `pip install 'packtrain[{extra}]'` if you want that"
    if machine["cores"] != machine["threads"]:
        yield f"torch uses {machine['threads']} threads on {machine['cores']} cores; set OMP_NUM_THREADS={machine['cores']}"
