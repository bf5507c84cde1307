"""Decides which folders below a folder are runs."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from packtrain.errors import RunError
from packtrain.runs.layout import RunLayout, is_locked
from packtrain.runs.status import RunStatus, read_status, read_tree

# Folders that are large and hold no runs.
_PASSED_OVER = {"node_modules", "site-packages", "__pycache__", "wandb"}


def list_runs(folder: Path, problems: list[str] | None = None) -> list[RunStatus]:
    """The runs in `folder` and below it, those that were written last first. Raises RunError if there is no such folder.

    `problems` gets a sentence for each folder that cannot be read.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise RunError(f"{folder} {what}; give a folder with runs in it, such as runs")
    found = [read_status(each) for each in find_runs(folder, [] if problems is None else problems)]
    return sorted(found, key=lambda run: (-(run.seen or 0.0), str(run.folder)))


def find_runs(folder: Path, problems: list[str]) -> Iterator[Path]:
    """The folders of runs in `folder` and below it, through links too. Does not look into runs, datasets or hidden folders."""
    waiting, known = [folder], set[tuple[int, int]]()
    while waiting:
        here = waiting.pop()
        try:
            status = here.stat()
            entries = {entry.name: entry for entry in os.scandir(here)}
        except OSError as error:
            problems.append(f"{here} cannot be read ({error.strerror})")
            continue
        if (status.st_dev, status.st_ino) in known:
            continue
        known.add((status.st_dev, status.st_ino))
        if _is_run(here, entries.keys()):
            yield here
        elif not ("manifest.json" in entries and "tokenizer" in entries):
            waiting += [
                here / name
                for name in sorted(entries, reverse=True)
                if not name.startswith(".") and name not in _PASSED_OVER and _is_folder(entries[name])
            ]


def looks_like_run(folder: Path) -> bool:
    """Whether a folder is a run, or what is left of one."""
    try:
        return _is_run(folder, {entry.name for entry in os.scandir(folder)})
    except OSError:
        return False


def _is_run(folder: Path, names: Collection[str]) -> bool:
    logs = {"metrics.jsonl", "events.jsonl", "checkpoints"} & set(names)
    if "config.toml" in names:
        # Many programs have a config.toml.
        return bool(logs) or ".lock" in names or {"model", "train"} <= read_tree(RunLayout(folder), []).keys()
    if {"metrics.jsonl", "events.jsonl"} <= set(names) or {"checkpoints", "events.jsonl"} <= set(names):
        return True
    # A process that has just begun has written nothing else yet.
    return ".lock" in names and all(name.startswith(".") for name in names) and bool(is_locked(RunLayout(folder)))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
