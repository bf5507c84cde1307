"""Decides when a server of a run that is still training answers with a newer checkpoint."""

import logging
import threading
from typing import Literal, NamedTuple

from packtrain.errors import PacktrainError
from packtrain.generate.weights import Weights, narrow_weights
from packtrain.pretrained.open import OpenModel, open_model
from packtrain.runs.layout import HASHES, RunLayout
from packtrain.runs.retention import find_best_step
from packtrain.serve.worker import Worker

_log = logging.getLogger("packtrain")
_EVERY_S = 2.0

Version = tuple[int, int, int]
"""Step, and inode and time of its list of hashes: after a rollback, a step is saved again."""


class Follow(NamedTuple):
    """Which checkpoint to answer with, and how its weights are held."""

    which: Literal["last", "best"]
    weights: Weights = "float32"
    average: bool | None = None
    """As in `open_run`."""


class Follower:
    """A thread that looks for the checkpoint to answer with, loads it, and hands it to the worker.

    A checkpoint that cannot be opened is told once, and the server stays with the one it has.
    """

    def __init__(self, worker: Worker, follow: Follow, device: str) -> None:
        self._worker, self._which, self._weights, self._average, self._device = worker, *follow, device
        self._layout = RunLayout(worker.served.opened.folder)
        self._version = self._look(worker.served.opened.step)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="packtrain-reload", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            try:
                self._follow()
            except (PacktrainError, OSError) as error:
                _log.warning("the newest checkpoint is not used: %s", error)

    def _follow(self) -> None:
        steps = self._layout.saved_steps()
        step = find_best_step(self._layout) if self._which == "best" else max(steps, default=None)
        version = self._look(step)
        if version is None or version == self._version:
            return
        self._version = version
        self._worker.swap(self._open(version[0]))

    def _open(self, step: int) -> OpenModel:
        opened = open_model(self._layout.folder, step=step, device=self._device, average=self._average)
        narrow_weights(opened.model, self._weights)
        return opened

    def _look(self, step: int | None) -> Version | None:
        if step is None:
            return None
        try:
            status = (self._layout.checkpoint(step) / HASHES).stat()
        except OSError:
            # Taken away in this moment, as old checkpoints are.
            return None
        return step, status.st_ino, status.st_mtime_ns
