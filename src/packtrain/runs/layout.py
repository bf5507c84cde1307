"""Decides the name of every file in a run directory, once."""

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packtrain.config.load import from_toml
from packtrain.config.run import RunConfig
from packtrain.errors import ConfigError, RunError
from packtrain.storage.atomic import write_atomically
from packtrain.storage.json_file import describe_os_error, read_bounded
from packtrain.storage.regular import is_regular

# Files of a checkpoint's folder, besides the tensors.
STATE, HASHES, LOGS, VALIDATION = "state.json", "hashes.json", "logs.json", "validation.json"
# Not config.toml, which makes a folder a run.
MADE_BY = "configuration.toml"
_ATTEMPTS = 3
_OF = {False: "", True: "-no-average"}
_STEP_NAME = re.compile(r"step-(\d{8,})")


class RunLayout:
    """The path of each file of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / ".lock"
        self.config = folder / "config.toml"
        self.manifest = folder / "manifest.json"
        self.metrics = folder / "metrics.jsonl"
        self.events = folder / "events.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.samples = folder / "samples"
        self.tokenizer = folder / "tokenizer"
        self.evaluation = folder / "evaluation.json"
        self.evaluations = folder / "evaluations"
        self.report = folder / "report.html"
        self.tensorboard = folder / "tensorboard"

    def stall(self, rank: int) -> Path:
        return self.folder / "stalls" / f"rank-{rank}.txt"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def sample(self, step: int) -> Path:
        return self.samples / f"step-{step:08d}.jsonl"

    def text_evaluation(self, step: int, protocol: str, text: str, is_no_average: bool = False) -> Path:
        """The figures of a step by a protocol, on the text with that hash; beside those of the average `is_no_average`."""
        return self.evaluations / f"step-{step:08d}" / f"{protocol}-{_plain_name(text)[:12]}{_OF[is_no_average]}.json"

    def task_evaluation(self, step: int, task: str, limit: int | None, is_no_average: bool = False) -> Path:
        """The figures of a step in a task, or in the first `limit` questions of it."""
        part = "" if limit is None else f"-first-{limit}"
        return self.evaluations / f"step-{step:08d}" / f"task-{_plain_name(task)}{part}{_OF[is_no_average]}.json"

    @staticmethod
    def step_of(checkpoint: Path) -> int | None:
        """The step in the name of a checkpoint's folder; None for another name."""
        found = _STEP_NAME.fullmatch(checkpoint.name)
        return int(found[1]) if found else None

    def saved_steps(self) -> list[int]:
        """Steps that have a checkpoint folder, ascending. `runs.checkpoint` checks whether each is whole."""
        if not self.checkpoints.is_dir():
            return []
        steps = (self.step_of(entry) for entry in self.checkpoints.iterdir())
        return sorted(step for step in steps if step is not None)


def _plain_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def find_run(folder: Path) -> RunLayout:
    """The layout of an existing run. Raises RunError if `folder` does not contain one."""
    layout = RunLayout(folder)
    if not layout.config.is_file():
        what = "does not exist" if not folder.exists() else "does not contain a run (it has no config.toml)"
        raise RunError(f"{folder} {what}; give a folder that `packtrain train ... --run FOLDER` wrote")
    return layout


def load_config(layout: RunLayout) -> RunConfig:
    """The configuration that a run was last started or resumed with. Raises ConfigError if its file is damaged."""
    try:
        text = read_bounded(layout.config).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{layout.config} is not UTF-8 text, as packtrain wrote it; restore a copy of it") from None
    except OSError as error:
        raise ConfigError(f"{layout.config}: {describe_os_error(error)}; restore a copy of it") from None
    except ValueError as error:
        raise ConfigError(f"{layout.config}: {error}; restore a copy of it") from None
    return from_toml(RunConfig, text, str(layout.config))


@contextlib.contextmanager
def lock_run(layout: RunLayout) -> Iterator[None]:
    """Locks the run directory against a second writer for the length of the block.

    The kernel (flock) frees the lock when the process ends, however it ends. Raises RunError if another process has it.
    """
    try:
        layout.folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{layout.folder} is a file, or is inside one; give --run a folder") from None
    with layout.lock.open("w") as handle:
        if not _try_lock(handle.fileno()):
            raise RunError(
                f"{layout.folder} is in use by another process; wait until it ends, or give another --run folder"
            )
        yield


def _try_lock(descriptor: int) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            # `is_locked` of some other process holds it for an instant.
            time.sleep(0.02)
    return False


def is_locked(layout: RunLayout) -> bool | None:
    """Whether a process has the run locked, so that it is training it; None if that cannot be found out.

    Writes nothing, and holds the lock itself for an instant.
    """
    if not layout.lock.exists():
        return False
    if not is_regular(layout.lock):
        return None
    try:
        with layout.lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` with an indented JSON document. Readers see the old or the new one, even after a power failure."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
