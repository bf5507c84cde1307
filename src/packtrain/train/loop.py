"""Decides when: which step comes next, and when to validate, save, log and stop."""

import functools
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from packtrain.config.load import to_toml
from packtrain.data.feed.loader import Batch
from packtrain.data.feed.position import LoaderState
from packtrain.errors import Interrupted
from packtrain.optim.build import set_pace
from packtrain.optim.schedule import learning_rate
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.logs import measure_logs
from packtrain.runs.metrics import Events, read_metrics
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter
from packtrain.train.memory import explain_out_of_memory
from packtrain.train.monitor import Monitor
from packtrain.train.patience import STOPPED_EARLY, describe_stop, find_patience
from packtrain.train.rollback import ROLLED_BACK, abandon_after
from packtrain.train.setup import Parts
from packtrain.train.signals import StopRequest
from packtrain.train.stall import StallWatch
from packtrain.train.state import collect, gather_model, restore
from packtrain.train.step import StepResult, check_ids, draw_dropout, train_step
from packtrain.train.validate import EvaluationFailedError, Validator, describe_failure

_log = logging.getLogger("packtrain")


def fit(
    parts: Parts, layout: RunLayout, monitor: Monitor, events: Events | None, stop: StopRequest, watch: StallWatch
) -> None:
    """Trains from where `parts` are to the last step. Raises Interrupted, with everything saved, once `stop` is set."""
    checkpoints = parts.config.checkpoint
    retention = Retention(checkpoints.keep, checkpoints.keep_every)
    with CheckpointWriter(
        layout, parts.placement.ranks, retention, functools.partial(_record, events, "saved")
    ) as writer:
        run = _Run(parts, layout, monitor, events, stop, writer)
        run.catch_up()
        while parts.progress.step < parts.num_steps and not run.has_stopped_early:
            with watch.step(parts.progress.step + 1):
                result = run.step(next(parts.loader))
            run.after(result)
        writer.wait()


@dataclass
class _Run:
    """One training run: the methods say what happens around a step."""

    parts: Parts
    layout: RunLayout
    monitor: Monitor
    events: Events | None
    stop: StopRequest
    writer: CheckpointWriter

    has_stopped_early: bool = False

    def __post_init__(self) -> None:
        self.ranks = self.parts.placement.ranks
        self.loader_state = self.parts.loader.state()

    def catch_up(self) -> None:
        """Adds the validation that the checkpoint lacks, so that a resumed run has the metrics of an uninterrupted one."""
        progress = self.parts.progress
        if self._is_stopping():
            raise Interrupted(
                f"stopped by {self.stop.who} before step {progress.step + 1}, with nothing new to save in "
                f"{self.layout.folder}"
            )
        if progress.step == 0 or progress.val_loss is not None:
            self._judge_patience()
            return
        if not self._is_due(progress.step, self.parts.config.evaluate.every):
            return
        recorded = self._find_validation()
        if recorded is None:
            # Stopped before its validation had ended.
            self._validate()
        else:
            # Killed between the line and the checkpoint. A loss that was not finite is not saved.
            progress.val_loss = recorded["val_loss"]
        self._add_validation()
        self._judge_patience()

    def step(self, batch: Batch) -> StepResult:
        parts, config, progress = self.parts, self.parts.config, self.parts.progress
        check_ids(batch, config.model.vocab_rows)
        step = progress.step + 1
        lr = learning_rate(config.effective_schedule, config.optim.lr, step, parts.num_steps)
        set_pace(parts.optimizer, config.effective_optim, step, parts.num_steps, lr=lr)
        start = time.perf_counter()
        with explain_out_of_memory(config, parts.placement):
            result = train_step(
                parts.trained,
                parts.optimizer,
                batch,
                parts.placement,
                grad_clip=config.train.grad_clip,
                z_loss=config.train.z_loss,
                dropout=draw_dropout(config.train, step, len(batch.rows), parts.placement.ranks.rank),
                judge=parts.guard.judge,
                before_update=self.writer.wait_free,
            )
            parts.average.update(parts.model, step, parts.num_steps, self.writer.wait_free)
        self.writer.poll()
        # The step has waited for the device, so this measures all of its work on CUDA too.
        step_s = time.perf_counter() - start
        progress.step, progress.tokens, progress.val_loss = step, progress.tokens + batch.num_targets, None
        self.loader_state = batch.state
        self.monitor.after_step(
            step, result, lr=lr, tokens=progress.tokens, new_tokens=batch.num_targets, step_s=step_s
        )
        return result

    def after(self, result: StepResult) -> None:
        """Does what is due after a step."""
        config, step = self.parts.config, self.parts.progress.step
        if not result.is_applied:
            reason, numbers = result.skipped, {"loss": str(result.loss), "grad_norm": str(result.grad_norm)}
            _record(self.events, "skipped", step, reason=reason, **numbers)
            self._warn(f"skipped: {reason} (loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g})")
        if self.parts.guard.observe(result):
            self._roll_back(result)
            return
        # Every rank must answer, and all must act alike, so this is asked once, and again only after a validation.
        is_stopping = self._is_stopping()
        must_save = self._is_due(step, config.checkpoint.every, always_last=True)
        # The best of its validated steps is what such a run is for.
        must_save |= config.train.stop_after is not None and self._is_due(step, config.evaluate.every)
        if must_save or is_stopping:
            self._save()
        if self._is_due(step, config.evaluate.every) and not is_stopping:
            if must_save:
                # Whatever happens in the validation, the steps so far are on the disk.
                self.writer.wait()
            self._validate()
            self._add_validation()
            is_stopping = self._is_stopping()
            if is_stopping and not must_save:
                self._save()
                self._add_validation()
            if not is_stopping:
                self._judge_patience()
        if is_stopping:
            self._interrupt()

    def _roll_back(self, result: StepResult) -> None:
        """Restores the last good checkpoint, but continues with the data after this step. Raises GuardError if there is none."""
        parts, guard, progress = self.parts, self.parts.guard, self.parts.progress
        # The checkpoint that is being written may be the one.
        self.writer.wait()
        at_most = guard.last_good_step(progress.step)
        good = None if at_most is None else checkpoint.find_newest(self.layout, self.ranks, at_most=at_most)
        if good is None:
            raise guard.explain_stop(progress.step, result)
        guard.num_rollbacks += 1
        if self.ranks.is_main:
            abandon_after(self.layout, good.step)
        _record(
            self.events,
            ROLLED_BACK,
            progress.step,
            reason=result.skipped,
            to_step=good.step,
            num_rollbacks=guard.num_rollbacks,
            loader=self.loader_state.to_dict(),
        )
        self._warn(f"is one skipped step too many: rolling back to step {good.step}, and continuing with the next data")
        self.monitor.rewind(good.step)
        restore(good, parts.model, parts.optimizer, parts.placement.precision.scaler, parts.average)
        guard.restore(good.state.get("guard", {}))
        progress.step, progress.tokens = good.step, good.state.get("tokens", 0)
        progress.val_loss = good.state["val_loss"]
        self.ranks.barrier()

    def _warn(self, what: str) -> None:
        if self.ranks.is_main:
            _log.warning("step %d %s", self.parts.progress.step, what)

    def _is_due(self, step: int, every: int, *, always_last: bool = False) -> bool:
        if step == self.parts.num_steps:
            return always_last or every > 0
        return every > 0 and step % every == 0

    def _is_stopping(self) -> bool:
        # A checkpoint that could not be written ends the run too: the save that follows raises the reason.
        return self.ranks.any(self.stop.is_set or self.writer.has_failed)

    def _find_validation(self) -> dict[str, Any] | None:
        """The validation line of this step in the main rank's metrics.jsonl; None if it has none."""
        lines = (line for line in read_metrics(self.layout.metrics) if line["step"] == self.parts.progress.step)
        return self.ranks.gather(next((line for line in lines if "val_loss" in line), None))[0]

    def _validate(self) -> None:
        """Validates, if there is held-out text; without a result if the run is asked to stop meanwhile.

        A validation or sample that fails is an event: it costs the run nothing else.
        """
        if self.parts.validator is not None:
            with self.parts.average.in_place(self.parts.model, self.writer.wait_free):
                self._measure(self.parts.validator)

    def _measure(self, validator: Validator) -> None:
        """Validates the model as it is, and writes samples."""
        parts, step = self.parts, self.parts.progress.step
        try:
            validation = validator.validate(parts.model, self.stop)
        except Exception as error:
            # Other ranks would wait for this one, unless all raise the same.
            if self.ranks.world_size > 1 and not isinstance(error, EvaluationFailedError):
                raise
            self._note_failure("validation", describe_failure(error))
            return
        if validation is None:
            return
        loss = validation["val_loss"]
        parts.progress.val_loss = loss if math.isfinite(loss) else None
        if parts.progress.val_loss is None:
            _record(self.events, "non_finite", step, what="validation loss")
            self._warn("has a validation loss that is not finite: its update ruined the weights, or products overflow")
        self.monitor.after_validation(step, validation)
        if validator.prompts:
            model = gather_model(parts.model, self.ranks)
            if self.ranks.is_main and model is not None:
                try:
                    self.monitor.after_samples(step, validator.write_samples(model, self.layout, step))
                # No sample is worth a run.
                except Exception as error:  # noqa: BLE001
                    self._note_failure("samples", describe_failure(error))

    def _judge_patience(self) -> None:
        """Ends the run if its validation loss has not fallen for train.stop_after validations."""
        step, most = self.parts.progress.step, self.parts.config.train.stop_after
        if most is None or step == self.parts.num_steps:
            return
        found = self.ranks.gather(find_patience(read_metrics(self.layout.metrics)) if self.ranks.is_main else None)[0]
        if found is None or found.num_since < most:
            return
        self.has_stopped_early = True
        details = {"best_step": found.best_step, "val_loss": found.best_loss, "validations": found.num_since}
        _record(self.events, STOPPED_EARLY, step, **details)
        if self.ranks.is_main:
            _log.info("step %d: %s", step, describe_stop(found, self.parts.num_steps))

    def _note_failure(self, what: str, reason: str) -> None:
        _record(self.events, "evaluation_failed", self.parts.progress.step, what=what, reason=reason)
        self._warn(f"has no {what}, which failed ({reason}); training continues")

    def _add_validation(self) -> None:
        """Adds the loss of this step's validation, if it has one, to the step's checkpoint."""
        val_loss = self.parts.progress.val_loss
        if val_loss is not None:
            self.writer.add_validation(self.parts.progress.step, val_loss)

    def _save(self) -> None:
        parts = self.parts
        self.monitor.sync()
        if self.events is not None:
            self.events.sync()
        tensors, numbers = collect(parts.model, parts.optimizer, self.ranks, parts.average)
        state = describe_state(parts, self.loader_state) | {"optimizer_numbers": numbers}
        logs = measure_logs(self.monitor.metrics, self.events)
        self.writer.save(tensors, state, made_by=to_toml(parts.config), logs=logs)

    def _interrupt(self) -> None:
        self.writer.wait()
        step, name = self.parts.progress.step, self.stop.who
        _record(self.events, "stopped", step, reason=name)
        raise Interrupted(f"stopped by {name} at step {step} of {self.parts.num_steps}, saved in {self.layout.folder}")


def describe_state(parts: Parts, position: LoaderState) -> dict[str, Any]:
    """What a checkpoint holds besides tensors and the optimizer's numbers; `position`: the run's place in the data."""
    return {
        "step": parts.progress.step,
        "tokens": parts.progress.tokens,
        "guard": parts.guard.state(),
        "loader": position.to_dict(),
        "optimizer": parts.config.optim.name,
        "scaler": parts.placement.precision.scaler.state_dict(),
        "tokenizer": parts.tokenizer.model_dump(),
        **parts.average.state(),
    }


def _record(events: Events | None, event: str, step: int, **details: Any) -> None:
    if events is not None:
        events.record(event, step=step, **details)
        events.sync()
