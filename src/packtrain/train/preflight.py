"""Decides what is refused or warned about before a run is built: data, model, schedule and batch that do not fit together."""

import logging

from packtrain.config.optim import ScheduleConfig
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import Outlook, RunDatasets, open_run_datasets
from packtrain.data.feed.mixture import Mixture
from packtrain.errors import ConfigError, RunError
from packtrain.optim.schedule import decay_steps, warmup
from packtrain.plan.vocabulary import check_vocabulary
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.layout import RunLayout

_log = logging.getLogger("packtrain")

# Up to here, tokens that are seen again are worth nearly as much as new ones; from there on ever less (Muennighoff et al.
# 2023, "Scaling Data-Constrained Language Models", arXiv 2305.16264).
MOST_USEFUL_EPOCHS = 4


def open_training_data(config: RunConfig) -> RunDatasets:
    """The datasets of a run. Raises TokenizerError if their vocabulary is not the model's."""
    datasets = open_run_datasets(config.data)
    check_vocabulary(config, datasets)
    return datasets


def check_checkpoint(config: RunConfig, checkpoint: Checkpoint, num_steps: int) -> None:
    """Raises RunError if the run cannot continue from `checkpoint`: another optimizer, or more steps than the run has."""
    # The configuration in a run's folder may have been edited.
    layout = RunLayout(checkpoint.folder.parent.parent)
    saved, step = checkpoint.state.get("optimizer", config.optim.name), checkpoint.state["step"]
    if saved != config.optim.name:
        raise RunError(
            f"{checkpoint.folder} holds the state of optim.name={saved}, so training cannot continue with "
            f"{config.optim.name}; write optim.name={saved}, or start a new run from its weights: `packtrain train "
            f"{layout.config} --continue-from {layout.folder} --run {layout.folder}-continued`"
        )
    if step > num_steps:
        raise RunError(
            f"the run is at step {step}, but its settings give only {num_steps} steps; write train.steps={step}"
        )


def resolve_micro_batch_size(config: RunConfig, world_size: int) -> int:
    """Rows of a micro-batch: train.micro_batch_size, or all rows of a rank if those are fewer.

    Raises ConfigError if the rows of a rank are not a multiple of it.
    """
    size, rows_per_rank = config.train.micro_batch_size, config.rows_per_step // world_size
    assert size != "auto", "resolve_rows comes first"
    if size > rows_per_rank:
        _log.warning(
            "train.micro_batch_size=%d is more rows than a process has in a step; using all %d", size, rows_per_rank
        )
        return rows_per_rank
    if rows_per_rank % size:
        largest = next(n for n in range(size, 0, -1) if rows_per_rank % n == 0)
        raise ConfigError(
            f"a process has {rows_per_rank} rows in a step, which is not a multiple of train.micro_batch_size={size}; "
            f"write train.micro_batch_size={largest}"
        )
    return size


def warn_about_schedule(config: RunConfig, num_steps: int) -> None:
    """Warns of settings of the schedule that have no effect or a smaller one than they say."""
    given, effective = config.schedule, config.effective_schedule
    warm = warmup(effective, num_steps)
    if warm < effective.warmup_steps:
        _log.warning(
            "schedule.warmup_steps=%d is not less than the %d steps of the run; warming up for %d steps",
            given.warmup_steps,
            num_steps,
            warm,
        )
    decay, wanted = decay_steps(effective, num_steps), round(effective.decay_fraction * num_steps)
    if effective.name == "wsd" and decay < wanted:
        _log.warning(
            "schedule.decay_fraction=%g of the %d steps is %d, but only %d are left after the warm-up; decaying for %d steps",
            effective.decay_fraction,
            num_steps,
            wanted,
            decay,
            decay,
        )
    for key, names in (("decay_fraction", ("wsd",)), ("min_lr_ratio", ("cosine", "wsd", "linear"))):
        if given.name not in names and getattr(given, key) != ScheduleConfig.model_fields[key].default:
            _log.warning("schedule.%s has no effect with schedule.name=%s; leave it out", key, given.name)


def report_data(
    config: RunConfig, datasets: RunDatasets, layout: Mixture, num_steps: int, outlooks: list[Outlook]
) -> None:
    """Logs each dataset's part in a mixture; warns of too little data, of many epochs, and of rows left over at its end."""
    for outlook in outlooks if len(outlooks) > 1 else ():
        _log.info("%s", outlook)
    _warn_about_epochs(config, datasets, outlooks)
    if config.data.repack and all(outlook.epochs <= 1 for outlook in outlooks):
        _log.warning("data.repack=true has no effect, because the run ends within the first epoch; leave it out")
    if layout.num_rows < config.rows_per_step or layout.num_targets < config.data.seq_len:
        _log.warning(
            "%s has only %s tokens to train on, which make %s rows of data.seq_len=%s, and a step takes %s rows: every step "
            "repeats text or trains on padding; lower train.global_batch_tokens and data.seq_len, or prepare more text",
            datasets.name,
            f"{layout.num_targets:,}",
            f"{layout.num_rows:,}",
            f"{config.data.seq_len:,}",
            f"{config.rows_per_step:,}",
        )
    if layout.num_places is not None and config.given_steps is None:
        left = layout.num_places - num_steps * config.rows_per_step
        if 0 < left < config.rows_per_step:
            _log.warning("the last %d rows of the data do not fill a step and are not trained on", left)


def _warn_about_epochs(config: RunConfig, datasets: RunDatasets, outlooks: list[Outlook]) -> None:
    """Warns of each dataset that is read so often that the model memorises it, unless its max_epochs asks for that."""
    for source, outlook in zip(datasets.parts, outlooks, strict=True):
        if outlook.epochs <= MOST_USEFUL_EPOCHS or source.max_epochs is not None:
            continue
        batch, seq_len = config.train.global_batch_tokens, config.data.seq_len
        useful = max(1, MOST_USEFUL_EPOCHS * outlook.rows * seq_len // batch) * batch
        shorter = (
            f"train.tokens={useful}"
            if len(outlooks) == 1
            else f"a smaller weight or max_epochs={MOST_USEFUL_EPOCHS} for it in data.dataset"
        )
        _log.warning(
            "%s has %s tokens for training and the run reads %s of it: %.1f epochs. Up to about %d epochs, tokens seen again "
            "help nearly as much as new ones; beyond, the model memorises them (Muennighoff et al. 2023, arXiv 2305.16264). "
            "Write %s, prepare more text, or take a smaller model%s",
            source.dataset.folder,
            f"{outlook.rows * seq_len:,}",
            f"{outlook.seen * seq_len:,}",
            outlook.epochs,
            MOST_USEFUL_EPOCHS,
            shorter,
            _describe_recipe(config),
        )


def _describe_recipe(config: RunConfig) -> str:
    """What a run that repeats its text on purpose should set, as the end of a sentence; nothing if it does."""
    missing = []
    if not config.data.repack:
        missing.append("data.repack=true")
    if not config.train.dropout:
        missing.append("train.dropout=0.1")
    if config.train.stop_after is None:
        missing.append("train.stop_after=5" + ("" if config.evaluate.every else " evaluate.every=100"))
    if not missing:
        return ""
    return f"; to repeat it on purpose, write {' '.join(missing)}, as the preset own-text does"
