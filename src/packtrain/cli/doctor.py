"""`packtrain doctor`: what this machine has, what would fail on it or in a run, and how to fix that."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, Settings
from packtrain.errors import ConfigError, UserError

if TYPE_CHECKING:
    from packtrain.config.run import RunConfig
    from packtrain.doctor.finding import Finding
    from packtrain.runs.layout import RunLayout

# Distribution name, what needs it, and the extra that installs it.
_EXTRAS = (
    ("bitsandbytes", "optim.name=adamw8bit", "lowbit"),
    ("torchao", "optim.name=adamw4bit and train.precision=fp8", "torchao"),
    ("wandb", "track.wandb", "wandb"),
    ("tensorboard", "track.tensorboard", "tensorboard"),
    ("ftfy", "clean.fix_encoding", "ftfy"),
)


_MARKS = {"ok": "[green]ok[/green]     ", "fault": "[bold red]fault[/bold red]  ", "skipped": "[dim]skipped[/dim]"}


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|RUN]", help="A preset, a TOML file or a run to check; unset: this machine."),
    ] = None,
    settings: Settings = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="FOLDER", help="With a preset: where the run would be, whose disk is checked."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine can do, or check a run before it starts.

    With a preset or a run, checks its data, model, checkpoints, disk and trackers in about a minute. Nothing is trained for good,
    and nothing is written into the run. Ends with 2 if a check finds a fault.
    """
    if target is None:
        if run is not None:
            raise ConfigError(
                f"--run {run} is where a run would be; name its preset, or check a run with `packtrain doctor {run}`"
            )
        _show_machine(as_json)
    else:
        screen.route_logging()
        _check_run(*_resolve(target, settings or [], run), as_json=as_json)


def _resolve(target: str, settings: list[str], folder: Path | None) -> "tuple[RunConfig, Path, RunLayout | None]":
    """The configuration to check, the folder of the run, and the run if it exists."""
    from packtrain.config.load import load_run_config
    from packtrain.config.shipped import shipped
    from packtrain.runs.configuration import newest_config
    from packtrain.runs.layout import find_run

    if target in shipped("presets") or not Path(target).is_dir():
        return load_run_config(target, settings).config, folder or Path(), None
    layout = find_run(Path(target))
    if settings:
        raise ConfigError(f"{target} is a run, whose settings are fixed; leave out '{settings[0]}'")
    if folder is not None:
        raise ConfigError(f"{target} is a run, and is where it is; leave out --run {folder}")
    return newest_config(layout), layout.folder, layout


def _check_run(config: "RunConfig", folder: Path, layout: "RunLayout | None", *, as_json: bool) -> None:
    from packtrain.doctor.examine import examine as examine_run

    findings = []
    for finding in examine_run(config, folder, layout):
        findings.append(finding)
        if not as_json:
            _show(finding)
    faults = [finding.check for finding in findings if finding.state == "fault"]
    if as_json:
        screen.print_json({"checks": [dataclasses.asdict(finding) for finding in findings], "faults": faults})
    if faults:
        count = f"{len(faults)} of {len(findings)} checks found a fault"
        raise UserError(f"{count} ({', '.join(faults)}); fix what is said above, and run the command again")
    if not as_json:
        left = sum(finding.state == "skipped" for finding in findings)
        screen.console.print("\nno faults found" + (f"; checks not made: {left}" if left else ""))


def _show(finding: "Finding") -> None:
    screen.console.print(
        f"{_MARKS[finding.state]} [bold]{finding.check:<20}[/bold] {screen.escape(finding.says)}", soft_wrap=True
    )
    for line in finding.lines:
        screen.console.print(f"        {screen.escape(line)}", style="dim", no_wrap=True, overflow="ellipsis")
    if finding.fix:
        screen.console.print(f"        fix: {screen.escape(finding.fix)}", soft_wrap=True)


def _show_machine(as_json: bool) -> None:
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
