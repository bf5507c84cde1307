"""Decides which checks a run gets before it begins, in which order, and which cannot be made if one fails."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.feed.loader import Batch
from packtrain.doctor.data import check_batches, check_labels, read_batches
from packtrain.doctor.finding import Finding, fault, from_error, skipped
from packtrain.doctor.learning import check_first_loss, check_gradients, check_overfit, learn_batch, measure_loss
from packtrain.doctor.links import check_links
from packtrain.doctor.place import check_disk, check_memory, check_trackers
from packtrain.doctor.round_trip import check_round_trip
from packtrain.doctor.trial import Size, Trial, build, choose_size, cut_batch, describe_reduction, reduce_config
from packtrain.errors import DatasetError, PacktrainError
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.init import build as build_model
from packtrain.parallel.ranks import Ranks
from packtrain.plan.parameters import num_parameters
from packtrain.plan.vocabulary import set_vocabulary
from packtrain.runs.bands import judge_run
from packtrain.runs.layout import RunLayout
from packtrain.runs.manifest import read_manifest, reopen_run_datasets
from packtrain.train.device import open_device
from packtrain.train.memory import memory_bytes
from packtrain.train.preflight import open_training_data

OF_THE_DATA = ("first batches", "labels")
OF_THE_MODEL = ("loss at step 0", "gradients", "one batch", "save, load, export")
_OPEN = "dataset"
# Of the free memory, for the weights of the whole model.
_MOST_MODEL_BYTES = 0.3
T = TypeVar("T")


def examine(config: RunConfig, folder: Path, run: RunLayout | None = None) -> Iterator[Finding]:
    """The findings of every check, as each is made. Nothing is written but in a temporary folder.

    `folder`: where the run would be; `run`: the run, if it exists, whose own dataset is looked at.
    """
    num_steps = config.given_steps
    if run is None and config.data.dataset is None:
        why = "no dataset is named; add data.dataset=FOLDER, which `packtrain prepare` writes"
        yield from (skipped(check, why) for check in (_OPEN, *OF_THE_DATA, *OF_THE_MODEL))
    else:
        opened = yield from _guard(_OPEN, lambda: _open(config, run), (*OF_THE_DATA, *OF_THE_MODEL))
        if opened is not None:
            datasets, num_steps = opened
            config = set_vocabulary(config, datasets.tokenizer.vocab_size)
            yield Finding(_OPEN, "ok", f"{datasets.name}, {num_steps:,} steps; its content matches its hashes")
            yield from _examine_data(config, datasets)
    for check, make in (
        ("memory", lambda: check_memory(config)),
        ("disk", lambda: check_disk(config, folder, num_steps)),
        ("tracker", lambda: check_trackers(config)),
        ("links between GPUs", lambda: check_links(config)),
    ):
        found = yield from _guard(check, make)
        if found is not None:
            yield found
    if run is not None:
        standing = yield from _guard("loss so far", lambda: check_standing(run))
        if standing is not None:
            yield standing


def check_standing(run: RunLayout) -> Finding:
    """Where the run's loss is in the band of runs like it. A loss above the band is a fault; one below it needs no fix."""
    standing = judge_run(run)
    says = "; ".join(filter(None, (standing.says, standing.sample)))
    if standing.state == "unknown":
        return Finding("loss so far", "skipped", says)
    fix = None
    if standing.state == "above" and standing.is_alike:
        fix = "compare the settings with `packtrain config` of the preset, and look at the events of the run in its report"
    return Finding("loss so far", "fault" if fix else "ok", says, fix)


def _examine_data(config: RunConfig, datasets: RunDatasets) -> Iterator[Finding]:
    layout = datasets.layout(config.data.seq_len, config.data.packing, config.repack_seed)
    batches = yield from _guard(OF_THE_DATA[0], lambda: read_batches(config, layout), (OF_THE_DATA[1], *OF_THE_MODEL))
    if batches is None:
        return
    labels: Finding | None = None
    for check, make in zip(OF_THE_DATA, (check_batches, check_labels), strict=True):
        labels = yield from _guard(check, functools.partial(make, batches, datasets))
        if labels is not None:
            yield labels
    if labels is None or labels.state == "fault":
        yield from (
            skipped(check, "the labels are not in order, and no model can be trained on them") for check in OF_THE_MODEL
        )
        return
    yield from _examine_model(config, datasets)


def _examine_model(config: RunConfig, datasets: RunDatasets) -> Iterator[Finding]:
    made = yield from _guard(OF_THE_MODEL[0], lambda: _build_trial(config, datasets), OF_THE_MODEL[1:])
    if made is None:
        return
    trial, size = made
    with trial.parts.loader:
        first = yield from _guard(OF_THE_MODEL[0], lambda: _check_first_loss(config, trial, size))
        if first is not None:
            yield first
        lesson = yield from _guard(OF_THE_MODEL[1], lambda: learn_batch(trial), OF_THE_MODEL[2:])
        if lesson is None:
            return
        yield check_gradients(lesson)
        yield check_overfit(lesson, trial)
        back = yield from _guard(OF_THE_MODEL[3], lambda: check_round_trip(trial, datasets))
        if back is not None:
            yield back


def _open(config: RunConfig, run: RunLayout | None) -> tuple[RunDatasets, int]:
    """The datasets as training would open them, and the number of steps. Raises the errors that training would."""
    if run is None:
        datasets = open_training_data(config)
    else:
        manifest = read_manifest(run)
        datasets = reopen_run_datasets(config, manifest, run.folder)
        if manifest["dataset"]["hash"] != datasets.hash:
            raise DatasetError(
                f"{datasets.name} is not what {run.folder} is trained on, because it has changed since; put the old dataset back"
            )
    datasets.check_content(config.data.verify)
    layout = datasets.layout(config.data.seq_len, config.data.packing, config.repack_seed)
    return datasets, config.num_steps(layout.num_rows, layout.num_places)


def _build_trial(config: RunConfig, datasets: RunDatasets) -> tuple[Trial, Size]:
    device = open_device(config.train.device)
    size = choose_size(config, device)
    parts = build(reduce_config(config, size.layers), datasets, device, None)
    batch: Batch = cut_batch(next(parts.loader), size.tokens)
    return Trial(parts, batch, describe_reduction(config, size)), size


def _check_first_loss(config: RunConfig, trial: Trial, size: Size) -> Finding:
    """Of the whole model if its weights fit, even if fewer of its layers are trained here."""
    model, parts, reduced = config.model, trial.parts, trial.reduced
    if config.train.given_weights is not None:
        return skipped(OF_THE_MODEL[0], "the run begins with weights that are trained")
    whole = parts.model
    if size.layers < model.num_hidden_layers:
        device = parts.placement.device
        if 4 * num_parameters(model) <= _MOST_MODEL_BYTES * memory_bytes(device, Ranks()):
            whole, reduced = build_model(model, seed=config.train.seed, device=device), ""
            if device.type == "cpu":
                use_cpu_kernels(whole)
    loss = measure_loss(whole, trial, parts.placement.precision)
    return check_first_loss(loss, model, dataclasses.replace(trial, reduced=reduced).shape)


def _guard(check: str, make: Callable[[], T], after: tuple[str, ...] = ()) -> Generator[Finding, None, T | None]:
    """What `make` returns. An error is a fault of `check`, and then the checks `after` it cannot be made."""
    try:
        return make()
    except PacktrainError as error:
        yield from_error(check, error)
    except (torch.OutOfMemoryError, MemoryError):
        yield fault(check, "there is not enough memory for it", "free some, or run it on the machine that will train")
    for each in after:
        yield skipped(each, f"it needs what the check '{check}' looks at, and that is not in order")
    return None
