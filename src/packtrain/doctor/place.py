"""Decides whether there is room and a way out: memory for a step, disk for every checkpoint, trackers that can be reached."""

import importlib.util
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from packtrain.config.run import RunConfig
from packtrain.doctor.finding import Finding, fault, skipped
from packtrain.parallel.ranks import Ranks
from packtrain.plan.memory import checkpoint_bytes, fits, largest_micro_batch, needed_bytes
from packtrain.plan.rows import choose_rows
from packtrain.runs.layout import RunLayout
from packtrain.train.device import open_device, resolve_precision
from packtrain.train.memory import memory_bytes

_WAIT_S = 5.0


def check_memory(config: RunConfig) -> Finding:
    """Whether a step of the run fits in the memory of this machine's device, as the planner computes it."""
    name = "memory"
    device = open_device(config.train.device)
    precision = resolve_precision(config.train, device).name
    if config.parallel.mode == "fsdp":
        return skipped(name, "parallel.mode=fsdp shares the model among several devices; see `packtrain plan --full`")
    available = memory_bytes(device, Ranks())
    rows = choose_rows(config, config.rows_per_step, available, precision, device.type)
    needed = needed_bytes(config, rows, precision, device.type, accumulates=rows < config.rows_per_step)
    if needed is None:
        return fault(name, "train.activation_gb is less than any step needs", "raise train.activation_gb")
    says = f"{needed / 1e9:.2f} GB for micro-batches of {rows} (computed), {available / 1e9:.2f} GB free"
    if fits(config, rows, available, precision, device.type):
        return Finding(name, "ok", says)
    largest = largest_micro_batch(config, available, precision, device.type)
    smaller = (
        f"write train.micro_batch_size={largest}"
        if 0 < largest < rows
        else "choose a smaller model, or a larger machine"
    )
    return fault(name, says, smaller)


def check_disk(config: RunConfig, folder: Path, num_steps: int | None) -> Finding:
    """Whether every checkpoint that the run keeps, and the one that it is writing, fit where the run would be."""
    name, where = "disk", _existing(folder)
    if not os.access(where, os.W_OK):
        return fault(name, f"{where} cannot be written to", "give --run a folder on a disk that can be")
    one, most = checkpoint_bytes(config), _most_at_once(config, num_steps)
    held = sum(file.stat().st_size for file in RunLayout(folder).checkpoints.glob("step-*/*") if file.is_file())
    needed, free = max(0, int(one * most * 1.01) - held), shutil.disk_usage(where).free
    says = f"{'1 checkpoint' if most == 1 else f'{most} checkpoints'} of {_size(one)} at once (computed)"
    says += f", {_size(held)} of them there" if held else ""
    says += f"; {_size(free)} free at {where}"
    if num_steps is None and config.checkpoint.keep_every:
        says += "; those of checkpoint.keep_every come on top, and their number is unknown without the run's length"
    if needed <= free:
        return Finding(name, "ok", says)
    fewest = _most_at_once(
        config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep": 1})}), num_steps
    )
    fix = f"free {_size(needed - free)}, or give --run a folder on a larger disk"
    if config.checkpoint.keep > 1 and one * fewest * 1.01 - held <= free:
        fix = f"write checkpoint.keep=1, which takes {_size(one * fewest)}, or {fix}"
    return fault(name, f"{says}, {_size(needed - free)} too little", fix)


def check_trackers(config: RunConfig) -> Finding:
    """Whether each tracker that is set is installed and, if it is a service, answers."""
    name = "tracker"
    wanted = [each for each, value in config.track if value is True]
    if not wanted:
        return Finding(name, "ok", "none is set (track.*); metrics.jsonl is written in any case")
    for each in wanted:
        if importlib.util.find_spec(each) is None:
            extra = f"run `pip install 'packtrain[{each}]'`, or write track.{each}=false"
            return fault(name, f"track.{each} is set, and {each} is not installed", extra)
        problem = _ASKED[each]() if each in _ASKED else None
        if problem:
            return fault(name, f"track.{each}: {problem[0]}", problem[1])
    return Finding(name, "ok", f"{', '.join(wanted)} can be used")


def _most_at_once(config: RunConfig, num_steps: int | None) -> int:
    """Most checkpoints that are on the disk at once, with the one that is being written."""
    kept = config.checkpoint
    most = kept.keep + 1 + (1 if config.evaluate.every else 0)
    if num_steps is None:
        return most if kept.every else 1
    saves = 1 if not kept.every else -(-num_steps // kept.every)
    return min(saves, most + (num_steps // kept.keep_every if kept.keep_every else 0))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _ask_wandb() -> tuple[str, str] | None:
    """What keeps a run from Weights & Biases, with the fix; None if nothing does."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return None
    address = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host, port = address.hostname or "api.wandb.ai", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=_WAIT_S).close()
    except OSError as error:
        return (
            f"{host}:{port} does not answer ({error.strerror or error})",
            "connect this machine, or set WANDB_MODE=offline and run `wandb sync` later",
        )
    if not (os.environ.get("WANDB_API_KEY") or _has_account(host)):
        return f"no account for {host} is set up", "run `wandb login`, or set WANDB_MODE=offline"
    return None


def _has_account(host: str) -> bool:
    """Whether ~/.netrc, where `wandb login` keeps a key, knows the host."""
    import netrc

    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


# Trackers that are services; the others write files beside the run.
_ASKED: dict[str, Callable[[], tuple[str, str] | None]] = {"wandb": _ask_wandb}
