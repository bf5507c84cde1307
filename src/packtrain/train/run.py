"""Decides how a run begins and ends: the folder, the lock, what is resumed, and what is told at the end."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from packtrain.config.load import to_toml
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.errors import CheckpointError, DatasetError, Interrupted, PacktrainError, RunError
from packtrain.parallel.ranks import Ranks, join_processes
from packtrain.plan.parameters import flops_per_token, num_parameters
from packtrain.runs import checkpoint as checkpoints
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.layout import RunLayout, load_config, lock_run, write_json
from packtrain.runs.manifest import describe_run, describe_sources, hardware, versions
from packtrain.runs.metrics import Events, read_events, read_metrics, rewind_metrics
from packtrain.storage.atomic import disk_errors, write_atomically
from packtrain.train.anneal import annealing_start
from packtrain.train.device import check_precision, keep_freed_memory, peak_rate, resolve_device
from packtrain.train.loop import fit
from packtrain.train.monitor import Record, open_monitor
from packtrain.train.resume import changes, check_same_run
from packtrain.train.rollback import ANNEALING, rolled_back
from packtrain.train.setup import Parts, build_parts, open_training_data
from packtrain.train.signals import StopRequest
from packtrain.train.stall import StallWatch


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    on_start: Callable[[int, int], None] | None = None,
    on_step: Callable[[Record], None] | None = None,
    emulate_fp8: bool = False,
) -> dict[str, Any]:
    """Trains `config` in the run directory `folder` and returns what came of it: step, steps, tokens, checkpoint, loss,
    and the last validation's val_loss (nats per token), val_ppl and val_bpb (bits per byte).

    With `resume` a run that is there goes on where it was saved; without, it is refused. Raises the errors that the
    user can mend, Interrupted after a signal (saved), GuardError where a guard stopped the run. `emulate_fp8`: fp8 on
    any device, as `use_fp8` says, for tests of what an fp8 run is.
    """
    device = resolve_device(config.train.device)
    if not emulate_fp8:
        check_precision(config.train, device)
    sources = open_training_data(config)
    with join_processes(device.type) as ranks, StopRequest() as stop, disk_errors(folder):
        # By another function, so that nothing refers to the model when `join_processes` ends.
        return _train_joined(
            config,
            sources,
            RunLayout(folder),
            ranks,
            stop,
            resume=resume,
            on_start=on_start,
            on_step=on_step,
            emulate_fp8=emulate_fp8,
        )


def _train_joined(
    config: RunConfig,
    sources: RunDatasets,
    layout: RunLayout,
    ranks: Ranks,
    stop: StopRequest,
    *,
    resume: bool,
    on_start: Callable[[int, int], None] | None,
    on_step: Callable[[Record], None] | None,
    emulate_fp8: bool,
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        device = resolve_device(config.train.device, ranks.local_rank)
        keep_freed_memory(device, is_tight=config.train.activation_gb is not None)
        before: RunConfig | None = None
        with ranks.together():
            if ranks.is_main:
                stack.enter_context(lock_run(layout))
                before = _enter(layout, config, sources, resume=resume)
        saved = checkpoints.find_newest(layout, ranks)
        if saved is not None:
            saved = rolled_back(layout, saved)
        with ranks.together():
            _check_not_lost(layout, saved)
        origin = annealing_start(config, ranks) if config.train.anneal_from and saved is None else None
        parts = build_parts(
            config,
            sources,
            ranks=ranks,
            device=device,
            checkpoint=saved or origin,
            spread_before=ranks.gather(before.parallel if before else None)[0],
            emulate_fp8=emulate_fp8,
        )
        stack.enter_context(parts.loader)
        events = None
        with ranks.together():
            if ranks.is_main:
                events = stack.enter_context(_begin(layout, parts, sources, saved, before))
                if origin is not None:
                    events.record(ANNEALING, step=0, checkpoint=str(origin.folder), loader=origin.state["loader"])
        if on_start is not None:
            on_start(parts.progress.step, parts.num_steps)
        monitor = open_monitor(
            config,
            layout,
            device=device,
            is_main=ranks.is_main,
            flops_per_token=flops_per_token(config.model, config.data.seq_len),
            peak_flops=peak_rate(device, parts.precision, ranks.world_size),
            on_step=on_step,
        )
        stack.callback(monitor.close)
        watch = stack.enter_context(StallWatch(config.guard, layout, ranks.rank, events))
        with _failure_told(events, parts):
            fit(parts, layout, monitor, events, stop, watch)
        if events is not None:
            events.record("finished", step=parts.progress.step)
        return _outcome(parts, layout)


def _enter(layout: RunLayout, config: RunConfig, sources: RunDatasets, *, resume: bool) -> RunConfig | None:
    """Makes the folder this run's, or makes sure that it is: then what the run was last started with."""
    if not layout.config.is_file():
        strangers = [entry.name for entry in layout.folder.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise RunError(
                f"{layout.folder} is not empty and holds no run ({strangers[0]} lies there); give another --run folder"
            )
    else:
        if not resume:
            raise RunError(
                f"{layout.folder} holds a run already; add --resume to go on with it, or give another --run folder"
            )
        saved = load_config(layout)
        check_same_run(saved, config, str(layout.folder))
        _check_same_sources(layout, sources)
        return saved
    return None


def _check_same_sources(layout: RunLayout, sources: RunDatasets) -> None:
    events = [e for e in read_events(layout.events) if e["event"] in ("started", "resumed")]
    if not events or events[-1]["dataset_hash"] == sources.hash:
        return
    if len(sources.parts) > 1:
        raise DatasetError(
            f"the mixture of {sources.name} is not what {layout.folder} was trained on (other datasets, weights or max_epochs); "
            "give data.dataset as it was, or start another --run"
        )
    raise DatasetError(
        f"{sources.name} is not the dataset that {layout.folder} was trained on (its manifest changed); "
        "give that one with data.dataset=FOLDER, or start another --run"
    )


def _check_not_lost(layout: RunLayout, saved: Checkpoint | None) -> None:
    """Raises CheckpointError where there are checkpoints and none of them is whole: a run must not begin anew unasked."""
    if saved is None and layout.saved_steps():
        raise CheckpointError(
            f"no checkpoint of {layout.folder} is whole, or all processes of the run do not see it on a disk that they share; "
            f"put one back, or move {layout.checkpoints} away to begin again"
        )


def _begin(
    layout: RunLayout, parts: Parts, sources: RunDatasets, saved: Checkpoint | None, before: RunConfig | None
) -> Events:
    """Writes what a run keeps besides its steps, takes the metrics back to the checkpoint, and opens the events."""
    # First of all: it is what makes the folder a run's.
    write_atomically(layout.config, to_toml(parts.config).encode())
    rewind_metrics(layout.metrics, parts.progress.step)
    if not layout.manifest.is_file():
        layout.tokenizer.mkdir(exist_ok=True)
        for file in sources.tokenizer_folder.iterdir():
            write_atomically(layout.tokenizer / file.name, file.read_bytes())
        write_json(
            layout.manifest,
            describe_run(
                device=parts.device,
                dataset=describe_sources(sources),
                num_parameters=num_parameters(parts.config.model),
                num_steps=parts.num_steps,
                world_size=parts.ranks.world_size,
            ),
        )
    passed_over = [step for step in layout.saved_steps() if step > parts.progress.step]
    events = Events(layout.events)
    events.record(
        "resumed" if saved else "started",
        step=parts.progress.step,
        dataset_hash=sources.hash,
        versions=versions(),
        hardware=hardware(parts.device),
        world_size=parts.ranks.world_size,
        # config.toml holds what is in force now.
        **({"changed": to_jsonable_python(changes(before, parts.config))} if before else {}),
        **({"passed_over": passed_over} if passed_over else {}),
    )
    return events


@contextlib.contextmanager
def _failure_told(events: Events | None, parts: Parts) -> Iterator[None]:
    """Leaves an event of whatever ends the block but a signal, which leaves its own."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if events is not None:
            reason = str(error) if isinstance(error, PacktrainError) else type(error).__name__
            # Where the disk is full there may be no room for this either.
            with contextlib.suppress(OSError):
                events.record("failed", step=parts.progress.step, reason=reason)
        raise


def _outcome(parts: Parts, layout: RunLayout) -> dict[str, Any]:
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
    }
