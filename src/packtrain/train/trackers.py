"""Decides what optional trackers receive, how each is opened, and that none can stop a run: a failing one is dropped."""

import contextlib
import io
import logging
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from packtrain.config.run import RunConfig
from packtrain.runs.layout import RunLayout

_log = logging.getLogger("packtrain")


class Tracker(Protocol):
    how_to_open: str
    """What to type or visit to see the run."""

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
                    _log.info("%s", self._open[name].how_to_open)

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
            id=_unique_name(layout),
            resume="allow",
            dir=str(layout.folder),
            config=config.model_dump(mode="json"),
            mode=mode,
            # A missing network must not delay a run for long.
            settings=wandb.Settings(init_timeout=30),
        )
        if self._run.url:
            self.how_to_open = f"Weights & Biases: {self._run.url}"
        else:
            kept = shlex.quote(str(Path(self._run.dir).parent))
            self.how_to_open = f"Weights & Biases, kept offline; upload it with: wandb sync {kept}"

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, _: RunConfig, layout: RunLayout) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(layout.tensorboard))
        self.how_to_open = f"TensorBoard: tensorboard --logdir {shlex.quote(str(layout.tensorboard))}"

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, config: RunConfig, layout: RunLayout) -> None:
        # It prints, and standard output is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            self._run = trackio.init(
                project=config.track.project,
                name=_unique_name(layout),
                resume="allow",
                config=config.model_dump(mode="json"),
                embed=False,
                auto_log_cpu=False,
            )
        self.how_to_open = f"trackio: trackio show --project {shlex.quote(config.track.project)}"

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            # Not the run's own method, after which trackio would finish it again at exit.
            trackio.finish()


def _unique_name(layout: RunLayout) -> str:
    """The same after a resume. The parent folder distinguishes runs with the same name."""
    return f"{layout.folder.resolve().parent.name}-{layout.folder.name}"


_TRACKERS: dict[str, Callable[[RunConfig, RunLayout], Tracker]] = {
    "wandb": _WandB,
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
}
