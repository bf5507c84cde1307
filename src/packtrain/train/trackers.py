"""Decides what optional trackers receive, and that none can stop a run: one that fails is dropped with a warning."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

from packtrain.config.run import RunConfig
from packtrain.runs.layout import RunLayout

_log = logging.getLogger("packtrain")


class Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """The trackers that the configuration names and that could be opened."""

    def __init__(self, config: RunConfig, layout: RunLayout) -> None:
        self._open: dict[str, Tracker] = {}
        for name, opener in _TRACKERS.items():
            if getattr(config.track, name):
                with self._drop_if_failing(name):
                    self._open[name] = opener(config, layout)

    def log(self, record: dict[str, Any]) -> None:
        """Sends every number of a metrics line to each tracker, under `train/` or `validation/`."""
        group = "validation" if "val_loss" in record else "train"
        values = {
            f"{group}/{key}": float(value) for key, value in record.items() if key != "step" and value is not None
        }
        for name, tracker in list(self._open.items()):
            with self._drop_if_failing(name):
                tracker.log(record["step"], values)

    def close(self) -> None:
        for name, tracker in list(self._open.items()):
            with self._drop_if_failing(name):
                tracker.close()

    @contextlib.contextmanager
    def _drop_if_failing(self, name: str) -> Iterator[None]:
        try:
            yield
        # Trackers run third-party code and use the network: whatever they raise must not stop the run.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._open.pop(name, None)
            _log.warning("track.%s failed and is dropped; the run continues: %s: %s", name, type(error).__name__, error)


class _WandB:
    def __init__(self, config: RunConfig, layout: RunLayout) -> None:
        import wandb

        mode: Literal["offline"] | None = None
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
            # wandb would prompt for an account and wait.
            _log.warning(
                "no Weights & Biases account is set up, so metrics are kept offline; run `wandb login` to set one up"
            )
            mode = "offline"
        self._run = wandb.init(
            project=config.track.project,
            name=layout.folder.name,
            # The same after a resume. The parent folder distinguishes runs with the same name.
            id=f"{layout.folder.resolve().parent.name}-{layout.folder.name}",
            resume="allow",
            dir=str(layout.folder),
            config=config.model_dump(mode="json"),
            mode=mode,
            # A missing network must not delay a run for long.
            settings=wandb.Settings(init_timeout=30),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, _: RunConfig, layout: RunLayout) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(layout.tensorboard))

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


_TRACKERS: dict[str, Callable[[RunConfig, RunLayout], Tracker]] = {"wandb": _WandB, "tensorboard": _TensorBoard}
