"""Decides how a run is saved while it trains: into a temporary folder before its next update, hashed, then renamed.

Each rank writes its own parts into one folder, on a disk that all of them share. `hashes.json` is written last and names
every file, so that an incomplete checkpoint is recognised.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from packtrain.errors import DiskFullError, RunError
from packtrain.parallel.parts import TensorPart
from packtrain.parallel.ranks import Ranks
from packtrain.runs.layout import HASHES, LOGS, MADE_BY, STATE, VALIDATION, RunLayout, write_json
from packtrain.runs.logs import measure_manifest
from packtrain.runs.retention import Retention, remove
from packtrain.runs.saved_state import FORMAT_VERSION
from packtrain.runs.snapshot import Snapshot
from packtrain.runs.staging import Staging
from packtrain.runs.tensors import write_parts
from packtrain.storage.atomic import flush_folder, hash_file, is_no_room, write_atomically
from packtrain.storage.json_file import seal

_log = logging.getLogger("packtrain")


class _Facts(NamedTuple):
    """What a checkpoint has besides its tensors."""

    state: Mapping[str, Any]
    made_by: str | None
    logs: Mapping[str, Any] | None


class CheckpointWriter:
    """Saves a run's checkpoints, one at a time, on its own thread; also a context manager.

    Every rank makes one, and all call `save` for the same steps. The next call of `save` or `wait` raises, on all ranks,
    any error of writing; `has_failed` says so earlier. `poll` and `wait` call `on_saved` with each step that was saved.
    """

    def __init__(
        self, layout: RunLayout, ranks: Ranks, retention: Retention, on_saved: Callable[[int], None] | None = None
    ) -> None:
        self._layout, self._ranks, self._retention, self._on_saved = layout, ranks, retention, on_saved
        self._channel = ranks.new_channel()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="packtrain-checkpoint")
        self._writing: Future[int] | None = None
        self._staging = Staging(self._has_memory)
        self._snapshot = Snapshot({}, self._has_memory, self._staging)
        self._has_warned = False

    @property
    def has_failed(self) -> bool:
        """Whether the current save has failed."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def save(
        self,
        parts: Mapping[str, TensorPart],
        state: Mapping[str, Any],
        *,
        made_by: str | None = None,
        logs: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins the checkpoint of `state["step"]` from this rank's `parts`, which must not change until `wait_free` returns.

        The parts of all ranks make up the tensors of a checkpoint; exactly one rank must give each part. `made_by`: the
        run's configuration, as TOML; `logs`: where metrics and events stand, by file. Waits for the previous save. Raises
        DiskFullError if the disk lacks space, and leaves earlier checkpoints untouched.
        """
        self.wait()
        num_bytes = sum(part.tensor.nbytes for part in parts.values())
        self._check_disk(sum(self._ranks.gather(num_bytes)))
        self._snapshot = Snapshot(parts, self._has_memory, self._staging)
        self._writing = self._thread.submit(self._write, self._snapshot, parts, _Facts(dict(state), made_by, logs))

    def add_validation(self, step: int, val_loss: float) -> None:
        """Adds the validation loss of a step to its checkpoint, if it has one. Waits for the current save."""
        self.wait()
        folder = self._layout.checkpoint(step)
        if self._ranks.is_main and folder.is_dir():
            write_json(folder / VALIDATION, seal({"step": step, "val_loss": val_loss}))
            self._retention.prune(self._layout, step)

    def wait_free(self) -> None:
        """Returns when the tensors given to `save` may change. A forward and backward pass need not wait for this."""
        if self._writing is not None and not self._writing.done():
            self._snapshot.wait_free()

    def poll(self) -> None:
        """Calls `on_saved` if a save has succeeded since. Does not wait."""
        if self._writing is not None and self._writing.done() and not self.has_failed:
            self.wait()

    def wait(self) -> None:
        """Waits for the current save. Raises its error: DiskFullError, RunError or OSError."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        step = writing.result()
        if self._on_saved is not None:
            self._on_saved(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)
        self._staging.close()

    def _write(self, snapshot: Snapshot, parts: Mapping[str, TensorPart], facts: _Facts) -> int:
        """Writes one checkpoint with the other ranks and returns its step."""
        step = int(facts.state["step"])
        target = self._layout.checkpoint(step)
        aside = target.with_name(f".{target.name}.tmp")
        try:
            snapshot.copy_from_gpu()
            with self._fail_together(aside):
                if self._ranks.is_main:
                    shutil.rmtree(aside, ignore_errors=True)
                    # Not its parents: if the run's folder was removed, the rest of the run is not worth a checkpoint.
                    self._layout.checkpoints.mkdir(exist_ok=True)
                    aside.mkdir()
            hashes: dict[str, str] = {}
            with self._fail_together(aside):
                hashes = write_parts(aside, parts, rank=self._ranks.rank, take=snapshot.take)
        finally:
            snapshot.release()
        everyones = {name: digest for each in self._channel.gather(hashes) for name, digest in each.items()}
        with self._fail_together(aside):
            if self._ranks.is_main:
                self._publish(aside, target, everyones, facts)
        return step

    def _publish(self, aside: Path, target: Path, hashes: dict[str, str], facts: _Facts) -> None:
        for name in hashes:
            if not (aside / name).is_file():
                raise RunError(
                    f"{aside / name} was written by another machine and cannot be seen from this one; give --run a folder on a "
                    "disk that all machines of the run share"
                )
        names = [STATE]
        write_json(aside / STATE, {"format": FORMAT_VERSION, **facts.state})
        if facts.made_by is not None:
            names.append(MADE_BY)
            write_atomically(aside / MADE_BY, facts.made_by.encode())
        if facts.logs is not None:
            write_json(aside / LOGS, seal({**facts.logs, **measure_manifest(self._layout)}))
        write_json(aside / HASHES, {**hashes, **{name: hash_file(aside / name) for name in names}})
        flush_folder(aside)
        remove(target)
        aside.rename(target)
        flush_folder(self._layout.checkpoints)
        self._retention.prune(self._layout, int(facts.state["step"]))

    @contextlib.contextmanager
    def _fail_together(self, aside: Path) -> Iterator[None]:
        """Waits at the end of the block for all ranks. If it fails on one, it fails on all, and the partial save is removed."""
        error: Exception | None = None
        try:
            yield
        except (OSError, RunError) as raised:
            error = raised
        errors = [each for each in self._channel.gather(error) if each is not None]
        if not errors:
            return
        if self._ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        if is_no_room(errors[0]):
            raise DiskFullError(self._describe_full_disk()) from None
        raise errors[0]

    def _check_disk(self, needed_bytes: int) -> None:
        # One percent more for headers and the file system.
        wanted = int(needed_bytes * 1.01) + 1_000_000
        if any(self._ranks.gather(shutil.disk_usage(self._layout.folder).free < wanted)):
            raise DiskFullError(self._describe_full_disk(needed_bytes))

    def _describe_full_disk(self, needed_bytes: int | None = None) -> str:
        need = f"{needed_bytes / 1e6:,.1f} MB" if needed_bytes else "more space"
        free = shutil.disk_usage(self._layout.folder).free / 1e6
        return (
            f"the disk of {self._layout.folder} has {free:,.1f} MB left and a checkpoint needs {need}; free some space or lower "
            "checkpoint.keep, then continue with --resume"
        )

    def _has_memory(self, num_bytes: int) -> bool:
        """Whether this machine has memory for a copy of that many bytes by each of its processes."""
        if psutil.virtual_memory().available > num_bytes * self._ranks.local_world_size * 1.1:
            return True
        if not self._has_warned:
            self._has_warned = True
            _log.warning("no memory for a copy of %.2f GB: steps wait until the checkpoint is written", num_bytes / 1e9)
        return False
