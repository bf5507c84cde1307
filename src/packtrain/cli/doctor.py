"""`packtrain doctor`: what this machine has, what would fail on it, and how to fix that."""

from collections.abc import Iterator
from typing import Any

from packtrain.cli import screen
from packtrain.cli.options import AsJson

# Distribution name, what needs it, and the extra that installs it.
_EXTRAS = (
    ("bitsandbytes", "optim.name=adamw8bit", "lowbit"),
    ("torchao", "optim.name=adamw4bit and train.precision=fp8", "torchao"),
    ("wandb", "track.wandb", "wandb"),
    ("tensorboard", "track.tensorboard", "tensorboard"),
    ("ftfy", "clean.fix_encoding", "ftfy"),
)


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can do, and how to fix what would fail."""
    facts, problems = examine()
    if as_json:
        screen.print_json({"facts": facts, "problems": problems})
        return
    for name, value in facts.items():
        screen.console.print(f"[bold]{name:<16}[/bold] {value}", soft_wrap=True)
    for problem in problems:
        screen.warn(problem)
    if not problems:
        screen.console.print("\nno problems found")


def examine() -> tuple[dict[str, Any], list[str]]:
    """Facts by name, and for each thing that would fail or be slow a sentence with its fix."""
    import platform
    import shutil

    import psutil
    import torch

    from packtrain.config.train import TrainConfig
    from packtrain.model.fp8 import what_is_missing
    from packtrain.parallel.ranks import available_backends
    from packtrain.runs.manifest import hardware, versions
    from packtrain.train.device import resolve_device, resolve_precision

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
    if device.type == "cuda":
        facts["peer to peer"] = _peer_to_peer(torch)
    return facts, [*_problems(machine, disk.free)]


def _peer_to_peer(torch: Any) -> str:
    count = torch.cuda.device_count()
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    open_pairs = [pair for pair in pairs if torch.cuda.can_device_access_peer(*pair)]
    return f"{len(open_pairs)} of {len(pairs)} pairs of {count} GPUs reach each other directly"


def _problems(machine: dict[str, Any], free_bytes: int) -> Iterator[str]:
    import importlib.util
    from importlib import metadata

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
