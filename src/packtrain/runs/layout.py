"""Decides the name of every file in a run directory, once."""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packtrain.config.load import from_toml
from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError, RunError
from packtrain.storage.atomic import write_atomically

_STEP_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class RunLayout:
    """Where the parts of the run in `folder` lie."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.folder / "samples"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    def stall(self, rank: int) -> Path:
        return self.folder / "stalls" / f"rank-{rank}.txt"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def sample(self, step: int) -> Path:
        return self.samples / f"step-{step:08d}.jsonl"

    def saved_steps(self) -> list[int]:
        """Steps that have a checkpoint folder, ascending; whether each is whole is for `runs.checkpoint` to say."""
        if not self.checkpoints.is_dir():
            return []
        matches = (_STEP_NAME.fullmatch(entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match[1]) for match in matches if match)


def existing_run(folder: Path) -> RunLayout:
    """The layout of a run that is there. Raises RunError where `folder` holds none."""
    layout = RunLayout(folder)
    if not layout.config.is_file():
        what = "does not exist" if not folder.exists() else "holds no run (no config.toml)"
        raise RunError(f"{folder} {what}; give a folder that `packtrain train ... --run FOLDER` wrote")
    return layout


def saved_config(layout: RunLayout) -> RunConfig:
    """The configuration that a run was started or resumed with last. Raises ConfigError where its file was spoiled."""
    try:
        text = layout.config.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{layout.config} is not the text that was written there; put a copy of it back") from None
    return from_toml(RunConfig, text, str(layout.config))


@contextlib.contextmanager
def locked(layout: RunLayout) -> Iterator[None]:
    """Holds the run directory against a second writer for the length of the block.

    The lock is the kernel's (flock): it is gone with the process, however that ends. Raises RunError if it is taken.
    """
    try:
        layout.folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{layout.folder} is a file, or lies below one; give --run a folder") from None
    with (layout.folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{layout.folder} is in use by another process; wait until it ends, or give another --run folder"
            ) from None
        yield


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by an indented JSON document: readers see the old one or the new one, also after a power cut."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
