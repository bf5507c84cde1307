"""Decides how a run begins and ends: the folder, the lock, what it continues from, and the outcome."""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.errors import Interrupted, PacktrainError
from packtrain.parallel.links import check_links
from packtrain.parallel.ranks import Ranks, join_processes, read_local_place
from packtrain.plan.vocabulary import set_vocabulary
from packtrain.runs import checkpoint as checkpoints
from packtrain.runs.layout import RunLayout, lock_run
from packtrain.runs.logs import measure_logs, note_end
from packtrain.runs.metrics import Events, read_metrics
from packtrain.storage.atomic import disk_errors
from packtrain.train.attention_kernel import use_attention
from packtrain.train.beginning import STARTED_FROM, Beginning, begin
from packtrain.train.device import check_precision, keep_freed_memory, resolve_device
from packtrain.train.gpu import explain_kernels, use_gpu
from packtrain.train.header import Header, describe_header
from packtrain.train.loop import fit
from packtrain.train.monitor import Record, open_monitor
from packtrain.train.numerics import choose_kernels_of_gpu
from packtrain.train.origin import PRESET
from packtrain.train.preflight import open_training_data
from packtrain.train.resume import check_same_everywhere
from packtrain.train.rollback import apply_rollback
from packtrain.train.run_folder import check_continues, check_folder, record_start
from packtrain.train.setup import Parts, build_parts
from packtrain.train.signals import StopRequest
from packtrain.train.stall import StallWatch


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    on_start: Callable[[Header], None] | None = None,
    on_step: Callable[[Record], object] | None = None,
    on_event: Callable[[Record], None] | None = None,
    preset: dict[str, Any] | None = None,
    emulate_fp8: bool = False,
) -> dict[str, Any]:
    """Trains `config` in the run directory `folder` and returns the outcome: step, steps, tokens, checkpoint, loss,
    and the last validation's val_loss (nats per token), val_ppl and val_bpb (bits per byte).

    With `resume`, a run in the folder continues from its last checkpoint; without, it is refused. If `on_step` returns True,
    the run is saved and stops early. Raises errors that the user can fix, Interrupted after a signal (saved), GuardError if a
    guard stopped the run.

    Of the main rank alone: `on_start` gets the header, `on_step` each step's record and each validation's, `on_event` each
    line of events.jsonl, and `sampled` with a list of prompts and texts, from any thread. `preset`: what a new run records of
    its preset, as `describe_preset` gives it. `emulate_fp8`: fp8 on any device, as in `use_fp8`, for tests.
    """
    device = resolve_device(config.train.device, *read_local_place())
    with choose_kernels_of_gpu(config.train, device):
        use_gpu(device)
        if not emulate_fp8:
            check_precision(config.train, device)
        datasets = open_training_data(config)
        config = set_vocabulary(config, datasets.tokenizer.vocab_size)
        layout = RunLayout(folder)
        with join_processes(device, config.parallel) as ranks, StopRequest() as stop, disk_errors(folder):
            check_same_everywhere(config, layout, ranks)
            check_links(ranks, device)
            # A separate function, so that nothing refers to the model any more when the processes leave.
            told = _Told(on_start, stop.heed(on_step), on_event, preset)
            return _train_joined(config, datasets, layout, ranks, device, stop, resume, told, emulate_fp8)


class _Told(NamedTuple):
    """Who is told what the main rank does, and the preset that a new run is told to record."""

    on_start: Callable[[Header], None] | None
    on_step: Callable[[Record], None] | None
    on_event: Callable[[Record], None] | None
    preset: dict[str, Any] | None


def _train_joined(
    config: RunConfig,
    datasets: RunDatasets,
    layout: RunLayout,
    ranks: Ranks,
    device: torch.device,
    stop: StopRequest,
    resume: bool,
    told: _Told,
    emulate_fp8: bool,
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        keep_freed_memory(device, is_tight=config.train.activation_gb is not None)
        before, events = None, None
        with ranks.together():
            if ranks.is_main:
                stack.enter_context(lock_run(layout))
                check_folder(layout, resume=resume)
        saved = checkpoints.find_newest(layout, ranks)
        with ranks.together():
            if ranks.is_main:
                before = check_continues(layout, config, datasets, saved)
        _check_content(config, datasets, ranks, stop)
        saved = saved and apply_rollback(layout, saved)
        beginning = Beginning() if saved else begin(config, datasets, layout, ranks)
        parts = build_parts(
            config,
            datasets,
            ranks=ranks,
            device=device,
            checkpoint=saved or beginning.checkpoint,
            read=beginning.read,
            place=beginning.place,
            before=ranks.gather(before)[0],
            emulate_fp8=emulate_fp8,
        )
        stack.enter_context(parts.loader)
        with ranks.together():
            if ranks.is_main:
                new = {PRESET: told.preset, STARTED_FROM: beginning.record}
                started = record_start(layout, parts, datasets, saved, before, told.on_event, new)
                events = stack.enter_context(started)
                beginning.tell(events)
        if told.on_start is not None and ranks.is_main:
            told.on_start(describe_header(parts, datasets, layout, beginning.source))
        monitor = open_monitor(config, parts.placement, layout, told.on_step, told.on_event)
        stack.callback(monitor.close)
        watch = stack.enter_context(StallWatch(config.guard, layout, ranks.rank, events))
        with _record_failure(events, parts), explain_kernels(), use_attention(parts.config):
            try:
                fit(parts, layout, monitor, events, stop, watch)
            except Interrupted:
                # Every rank raises it, and only the main rank has a callback. A signal counts more.
                if not ranks.any(stop.is_asked and stop.signal is None):
                    raise
                return _describe_outcome(parts, layout)
        if events is not None:
            events.record("finished", step=parts.progress.step)
            note_end(layout, parts.progress.step, measure_logs(monitor.metrics, events))
        return _describe_outcome(parts, layout)


def _check_content(config: RunConfig, datasets: RunDatasets, ranks: Ranks, stop: StopRequest) -> None:
    """Compares files with their hashes, once on each machine: its processes divide them. Each start draws another sample."""
    draw = ranks.gather(secrets.randbits(32))[0]
    share = (ranks.local_rank, ranks.local_world_size)
    with ranks.together():
        datasets.check_content(config.data.verify, seed=draw, share=share, should_stop=lambda: stop.is_set)


@contextlib.contextmanager
def _record_failure(events: Events | None, parts: Parts) -> Iterator[None]:
    """Records whatever ends the block early, except a signal, which the loop records itself."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if events is not None:
            reason = str(error) if isinstance(error, PacktrainError) else type(error).__name__
            # A full disk may have no space for this line either.
            with contextlib.suppress(OSError):
                code = error.exit_code if isinstance(error, PacktrainError) else 1
                events.record("failed", step=parts.progress.step, reason=reason, exit_code=code)
        raise


def _describe_outcome(parts: Parts, layout: RunLayout) -> dict[str, Any]:
    lines = read_metrics(layout.metrics)
    training: Record = next((line for line in reversed(lines) if "loss" in line), {})
    validation: Record = next((line for line in reversed(lines) if "val_loss" in line), {})
    return {
        "run": str(layout.folder),
        "step": parts.progress.step,
        "steps": parts.num_steps,
        "tokens": parts.progress.tokens,
        "loss": training.get("loss"),
        **{key: validation.get(key) for key in ("val_loss", "val_ppl", "val_bpb")},
        "checkpoint": str(layout.checkpoint(parts.progress.step)),
        "prompts": list(parts.validator.prompts) if parts.validator else [],
    }
