"""Decides when: which step comes next, and when to validate, save, log and stop."""

import functools
import logging
import math
import time
from typing import Any

import numpy as np

from packtrain.data.feed.loader import Batch
from packtrain.errors import DatasetError, Interrupted
from packtrain.optim.build import set_learning_rate
from packtrain.optim.schedule import learning_rate
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import Events, read_metrics
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter
from packtrain.train.memory import out_of_memory
from packtrain.train.monitor import Monitor
from packtrain.train.rollback import ROLLED_BACK, abandon_after
from packtrain.train.setup import Parts
from packtrain.train.signals import StopRequest
from packtrain.train.stall import StallWatch
from packtrain.train.state import collect, gather_model, restore
from packtrain.train.step import StepResult, train_step

_log = logging.getLogger("packtrain")


def fit(
    parts: Parts,
    layout: RunLayout,
    monitor: Monitor,
    events: Events | None,
    stop: StopRequest,
    watch: StallWatch,
) -> None:
    """Trains from where `parts` stand to the last step. Raises Interrupted, with everything saved, when `stop` is set."""
    checkpoints = parts.config.checkpoint
    retention = Retention(checkpoints.keep, checkpoints.keep_every)
    with CheckpointWriter(layout, parts.ranks, retention, functools.partial(_tell, events, "saved")) as writer:
        run = _Run(parts, layout, monitor, events, stop, writer)
        run.catch_up()
        while parts.progress.step < parts.num_steps:
            with watch.step(parts.progress.step + 1):
                result = run.step(next(parts.loader))
            run.after(result)
        writer.wait()


class _Run:
    """One training run: the methods say what happens around a step."""

    def __init__(
        self,
        parts: Parts,
        layout: RunLayout,
        monitor: Monitor,
        events: Events | None,
        stop: StopRequest,
        writer: CheckpointWriter,
    ) -> None:
        self.parts = parts
        self.layout = layout
        self.monitor = monitor
        self.events = events
        self.stop = stop
        self.writer = writer
        self.loader_state = parts.loader.state()

    def catch_up(self) -> None:
        """Validates the step that a stopped run was saved at, if it had no time to: the metrics end up the same."""
        progress = self.parts.progress
        if self._is_stopping():
            raise Interrupted(
                f"stopped by {self._who_stopped()} before step {progress.step + 1}, with nothing new to save in "
                f"{self.layout.folder}; the same command with --resume goes on"
            )
        if progress.step == 0 or progress.val_loss is not None:
            return
        if not self._is_due(progress.step, self.parts.config.evaluate.every):
            return
        lines = (line for line in read_metrics(self.layout.metrics) if line["step"] == progress.step)
        found = self.parts.ranks.gather([line["val_loss"] for line in lines if "val_loss" in line])[0]
        if found:
            # Killed between the line and the checkpoint: the line stays, as it would have in an unbroken run.
            progress.val_loss = found[0]
        # None: it was not finite, and there is no loss to save.
        if found != [None] and (found or self._validate()):
            self._save()

    def step(self, batch: Batch) -> StepResult:
        parts, config, progress = self.parts, self.parts.config, self.parts.progress
        check_ids(batch, config.model.vocab_size)
        step = progress.step + 1
        lr = learning_rate(config.effective_schedule, config.optim.lr, step, parts.num_steps)
        set_learning_rate(parts.optimizer, lr)
        start = time.perf_counter()
        with out_of_memory(
            config,
            parts.micro_batch_size,
            len(batch.inputs_BT),
            parts.precision_name,
            parts.device,
            parts.ranks,
            is_sharded=parts.is_sharded,
        ):
            result = train_step(
                parts.trained,
                parts.optimizer,
                batch,
                micro_batch_size=parts.micro_batch_size,
                grad_clip=config.train.grad_clip,
                precision=parts.precision,
                ranks=parts.ranks,
                device=parts.device,
                z_loss=config.train.z_loss,
                judge=parts.guard.judge,
                before_update=self.writer.wait_free,
            )
        self.writer.poll()
        # The step has waited for the device, so the clock is honest on CUDA too.
        step_s = time.perf_counter() - start
        progress.step, progress.tokens, progress.val_loss = step, progress.tokens + batch.num_targets, None
        self.loader_state = batch.state
        self.monitor.after_step(
            step, result, lr=lr, tokens=progress.tokens, new_tokens=batch.num_targets, step_s=step_s
        )
        return result

    def after(self, result: StepResult) -> None:
        """What is due after a step."""
        config, step = self.parts.config, self.parts.progress.step
        if not result.is_applied:
            reason, numbers = result.skipped, {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}
            _tell(self.events, "skipped", step, reason=reason, **numbers)
            self._warn(f"skipped: {reason} (loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g})")
        if self.parts.guard.observe(result):
            self._roll_back(result)
            return
        # Asked once, and again only after what takes long: every rank has to answer, and all must do the same.
        is_stopping = self._is_stopping()
        if self._is_due(step, config.evaluate.every) and not is_stopping:
            self._validate()
            is_stopping = self._is_stopping()
        if self._is_due(step, config.checkpoint.every, always_last=True) or is_stopping:
            self._save()
        if is_stopping:
            self._interrupt()

    def _roll_back(self, result: StepResult) -> None:
        """Goes back to the last good checkpoint and on with the data after this step's. Raises GuardError if it cannot."""
        parts, guard, progress = self.parts, self.parts.guard, self.parts.progress
        # The checkpoint that is being written may be the one.
        self.writer.wait()
        at_most = guard.last_good_step(progress.step)
        good = None if at_most is None else checkpoint.find_newest(self.layout, parts.ranks, at_most=at_most)
        if good is None:
            raise guard.stopped(progress.step, result)
        guard.num_rollbacks += 1
        if parts.ranks.is_main:
            abandon_after(self.layout, good.step)
        _tell(
            self.events,
            ROLLED_BACK,
            progress.step,
            reason=result.skipped,
            to_step=good.step,
            num_rollbacks=guard.num_rollbacks,
            loader=self.loader_state.to_dict(),
        )
        self._warn(f"is one skipped step too many: back to step {good.step}, and on with the data after this one's")
        self.monitor.rewind(good.step)
        restore(good, parts.model, parts.optimizer, parts.precision.scaler)
        guard.restore(good.state.get("guard", {}))
        progress.step, progress.tokens = good.step, good.state["tokens"]
        progress.val_loss = good.state["val_loss"]
        parts.ranks.barrier()

    def _warn(self, what: str) -> None:
        if self.parts.ranks.is_main:
            _log.warning("step %d %s", self.parts.progress.step, what)

    def _is_due(self, step: int, every: int, *, always_last: bool = False) -> bool:
        if step == self.parts.num_steps:
            return always_last or every > 0
        return every > 0 and step % every == 0

    def _is_stopping(self) -> bool:
        # A checkpoint that could not be written ends the run as well: the save that follows says why.
        return self.parts.ranks.any(self.stop.is_set or self.writer.has_failed)

    def _validate(self) -> bool:
        """Whether there is a result: not where there is nothing to validate on, or a stop was asked for meanwhile."""
        parts = self.parts
        if parts.validator is None:
            return False
        validation = parts.validator.validate(parts.forward, self.stop)
        if validation is None:
            return False
        loss = validation.result.loss
        parts.progress.val_loss = loss if math.isfinite(loss) else None
        if parts.progress.val_loss is None:
            _tell(self.events, "non_finite", parts.progress.step, what="validation loss")
            self._warn("has a validation loss that is not finite: its update ruined the weights, or products overflow")
        self.monitor.after_validation(parts.progress.step, validation.record())
        if parts.config.evaluate.prompts:
            model = gather_model(parts.model, parts.ranks)
            if parts.ranks.is_main and model is not None:
                parts.validator.write_samples(model, self.layout, parts.progress.step)
        return True

    def _save(self) -> None:
        parts = self.parts
        self.monitor.sync()
        tensors, numbers = collect(parts.model, parts.optimizer, parts.ranks)
        state = {
            "step": parts.progress.step,
            "tokens": parts.progress.tokens,
            "val_loss": parts.progress.val_loss,
            "guard": parts.guard.state(),
            "loader": self.loader_state.to_dict(),
            "optimizer": parts.config.optim.name,
            "scaler": parts.precision.scaler.state_dict(),
            "optimizer_numbers": numbers,
        }
        self.writer.save(tensors, state)

    def _interrupt(self) -> None:
        self.writer.wait()
        step, name = self.parts.progress.step, self._who_stopped()
        _tell(self.events, "stopped", step, reason=name)
        raise Interrupted(
            f"stopped by {name} at step {step} and saved in {self.layout.folder}; the same command with --resume goes on"
        )

    def _who_stopped(self) -> str:
        return self.stop.signal.name if self.stop.signal else "a signal on another rank"


def check_ids(batch: Batch, vocab_size: int) -> None:
    """Raises DatasetError for a token id that the model has no row for: the dataset is not what its manifest says."""
    largest = max(int(np.max(batch.inputs_BT.numpy())), int(np.max(batch.targets_BT.numpy())))
    if largest >= vocab_size:
        raise DatasetError(
            f"the dataset holds token id {largest} and the model has model.vocab_size={vocab_size}; "
            "run `packtrain verify` on the dataset, or prepare it again"
        )


def _tell(events: Events | None, event: str, step: int, **details: Any) -> None:
    if events is not None:
        events.record(event, step=step, **details)
        events.sync()
