"""Decides how a ladder is climbed: planned once, trained run by run, resumed after a stop, and concluded."""

import contextlib
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.errors import ConfigError, DatasetError, DivergedError, Interrupted, NonFiniteError, RunError
from packtrain.ladder.budget import Budget
from packtrain.ladder.conclude import conclude
from packtrain.ladder.measure import RateMeter
from packtrain.ladder.rungs import SEEN_OF_EACH_TOKEN, WANTED_STEPS, Rung, Target, choose_rungs
from packtrain.plan.parameters import num_parameters
from packtrain.plan.vocabulary import set_vocabulary
from packtrain.runs.ladder import LADDER_FILE, Asked, LadderRecord, RungRecord, read_ladder, write_ladder
from packtrain.runs.layout import RunLayout, lock_run
from packtrain.storage.atomic import disk_errors
from packtrain.train.preflight import open_training_data
from packtrain.train.run import train

_log = logging.getLogger("packtrain")

# Sections and settings that change no number of a run: they may differ when a ladder is resumed.
_FREE = {"parallel": None, "cpu": None, "track": None, "log": None, "data": ("dataset", "verify"), "train": ("device",)}
# Beyond four passes, repeated text is worth visibly less than fresh text (arXiv 2305.16264, section 6).
_MOST_EPOCHS = 4.0

OnStep = Callable[[int, int], None]
OnEnd = Callable[[RungRecord], None]


def plan_ladder(name: str, config: RunConfig, budget: Budget) -> LadderRecord:
    """The runs that `budget` buys for the preset `config`, called `name`; trains each size for a few steps to measure its rate.

    Raises ConfigError for a preset or budget too small for a ladder, DatasetError for data without text to validate on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a ladder trains small models, one process each; run `packtrain ladder` without torchrun")
    if config.train.given_weights is not None:
        key = next(k for k in ("anneal_from", "init_from", "continue_from") if getattr(config.train, k) is not None)
        raise ConfigError(
            f"train.{key} makes a run begin with the weights of another, and a ladder begins at step 0; leave it out"
        )
    datasets = open_training_data(config)
    config = set_vocabulary(config, datasets.tokenizer.vocab_size)
    if not any(part.dataset.split("validation").num_tokens for part in datasets.parts):
        raise DatasetError(
            f"{datasets.name} has no validation split, and a ladder compares losses on held-out text; "
            "prepare it with split.validation_fraction=0.1"
        )
    layout = datasets.layout(config.data.seq_len, config.data.packing, config.repack_seed)
    tokens = config.num_steps(layout.num_rows, layout.num_places) * config.train.global_batch_tokens
    epoch_tokens = layout.num_rows * config.data.seq_len
    target = Target(config, num_parameters(config.model), tokens)
    meter = RateMeter()
    try:
        with _quiet():
            rungs = choose_rungs(target, budget, meter)
    except Interrupted as stop:
        raise Interrupted("stopped while the rate of this machine was measured, before the first run") from stop
    return LadderRecord(
        asked=_ask(config, datasets, budget),
        preset=name,
        parameters=target.parameters,
        tokens=tokens,
        epochs=tokens / epoch_tokens,
        flops=target.flops,
        slowdown=meter.slowdown,
        runs=tuple(_describe(rung, epoch_tokens) for rung in rungs),
        notes=tuple(_notes(target, rungs, epoch_tokens)),
    )


def climb(
    name: str,
    config: RunConfig,
    budget: Budget,
    folder: Path,
    *,
    on_plan: Callable[[LadderRecord], None] | None = None,
    on_step: OnStep | None = None,
    on_end: OnEnd | None = None,
) -> LadderRecord:
    """Trains the ladder of the preset `config` in `folder`, or what is left of it, and concludes it in ladder.json.

    `on_plan` gets the ladder before the first step, `on_step` the steps done and to be done over all runs, `on_end` each run
    that has ended.

    Raises RunError if the folder holds anything else, Interrupted after a signal (saved). A run that diverges is left out.
    """
    with _lock(folder), disk_errors(folder):
        record = _open_or_plan(name, config, budget, folder)
        if on_plan is not None:
            on_plan(record)
        total, before = sum(rung.steps for rung in record.runs), 0
        for rung in record.runs:
            if rung.state == "planned":
                tell = None if on_step is None else functools.partial(_tell_step, on_step, before, total)
                done = _train_rung(_restore_config(rung, config), folder, rung, tell)
                runs = tuple(done if other.name == rung.name else other for other in record.runs)
                record = record.model_copy(update={"runs": runs})
                write_ladder(folder, record)
                if on_end is not None:
                    on_end(done)
            before += rung.steps
        record = conclude(record)
        write_ladder(folder, record)
    return record


def _open_or_plan(name: str, config: RunConfig, budget: Budget, folder: Path) -> LadderRecord:
    """The ladder in the folder, if it is the one that is asked for; a new one in an empty folder."""
    if not (folder / LADDER_FILE).exists():
        strangers = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        if strangers:
            raise RunError(
                f"{folder} is not empty and does not hold a ladder (it has {strangers[0]}); give another --out folder"
            )
        record = plan_ladder(name, config, budget)
        write_ladder(folder, record)
        return record
    record = read_ladder(folder)
    datasets = open_training_data(config)
    wanted = _ask(set_vocabulary(config, datasets.tokenizer.vocab_size), datasets, budget)
    difference = _find_difference(record.asked, wanted)
    if difference:
        raise RunError(
            f"{folder} holds a ladder with {difference}; give what it was started with, or another --out folder"
        )
    return record


def _train_rung(
    config: RunConfig, folder: Path, rung: RungRecord, on_step: Callable[[dict[str, Any]], None] | None
) -> RungRecord:
    """The run, trained or resumed to its end."""
    try:
        outcome = train(config, folder / rung.name, resume=True, on_step=on_step)
    except Interrupted as stop:
        raise Interrupted(f"stopped during {rung.name}, saved in {folder}") from stop
    # Other guards, such as that of a full disk, say nothing of the model.
    except (NonFiniteError, DivergedError) as error:
        return _diverged(rung, str(error))
    loss = outcome["val_loss"]
    if loss is None:
        return _diverged(rung, "its validation failed or its loss is not finite")
    guess = math.log(config.model.vocab_rows)
    if loss >= guess:
        return _diverged(rung, f"its loss of {loss:.3f} is no better than the {guess:.3f} of a guess")
    return rung.model_copy(update={"state": "finished", "loss": loss, "bits_per_byte": outcome["val_bpb"]})


def _tell_step(on_step: OnStep, before: int, total: int, line: dict[str, Any]) -> None:
    on_step(before + line["step"], total)


def _diverged(rung: RungRecord, reason: str) -> RungRecord:
    _log.warning("%s diverged and is left out of the law (%s)", rung.name, reason)
    return rung.model_copy(update={"state": "diverged", "reason": reason[:1000]})


def _describe(rung: Rung, epoch_tokens: int) -> RungRecord:
    config = rung.config
    return RungRecord(
        name=rung.name,
        config=config.model_dump(mode="json"),
        parameters=rung.parameters,
        hidden_size=config.model.hidden_size,
        num_hidden_layers=config.model.num_hidden_layers,
        tokens=rung.tokens,
        epochs=rung.tokens / epoch_tokens,
        steps=rung.steps,
        global_batch_tokens=config.train.global_batch_tokens,
        lr=config.optim.lr,
        flops=rung.flops,
        planned_s=rung.seconds,
    )


def _restore_config(rung: RungRecord, given: RunConfig) -> RunConfig:
    """A run's configuration as it was planned, with the settings of this start that may differ."""
    config, now = dict(rung.config), given.model_dump(mode="json")
    for section, keys in _FREE.items():
        config[section] = now[section] if keys is None else config[section] | {key: now[section][key] for key in keys}
    return RunConfig.model_validate(config)


def _ask(config: RunConfig, datasets: RunDatasets, budget: Budget) -> Asked:
    settings = config.model_dump(mode="json")
    for section, keys in _FREE.items():
        for key in list(settings[section]) if keys is None else keys:
            del settings[section][key]
    return Asked(settings=settings, dataset_hash=datasets.hash, budget=budget.text)


def _find_difference(saved: Asked, wanted: Asked) -> str:
    """The first thing that another command was given, in words; empty if the two are the same."""
    if saved.budget != wanted.budget:
        return f"--budget {saved.budget} instead of {wanted.budget}"
    if saved.dataset_hash != wanted.dataset_hash:
        return "another dataset"
    for section in wanted.settings:
        before, now = saved.settings.get(section, {}), wanted.settings[section]
        for key in now:
            if before.get(key) != now[key]:
                return f"{section}.{key}={before.get(key)} instead of {now[key]}"
    return ""


def _notes(target: Target, rungs: Sequence[Rung], epoch_tokens: int) -> Iterator[str]:
    """What a reader must know before trusting the prediction."""
    lengths = [rung.tokens for rung in rungs]
    seen = min(lengths) / target.config.model.vocab_rows
    if seen < 0.9 * SEEN_OF_EACH_TOKEN:
        yield (
            f"The shortest runs see each token of the vocabulary {seen:.0f} times on average, and a law takes about "
            f"{SEEN_OF_EACH_TOKEN}. Raise --budget, or use a smaller vocabulary."
        )
    steps = min(rung.steps for rung in rungs)
    if steps < 0.9 * WANTED_STEPS:
        yield (
            f"The shortest runs take {steps} steps, and a law takes about {WANTED_STEPS}. Raise --budget, or lower "
            "train.global_batch_tokens."
        )
    if max(lengths) > epoch_tokens:
        yield (
            f"The longest runs of the ladder pass {max(lengths) / epoch_tokens:.1f} times over the training text. Prepare more "
            "text, or lower --budget, for runs that do not repeat any."
        )
    if target.tokens > _MOST_EPOCHS * epoch_tokens:
        yield (
            f"The preset would pass {target.tokens / epoch_tokens:.1f} times over the training text. The law counts repeated text "
            "as fresh, which is nearly true up to four times (arXiv 2305.16264): expect a higher loss than it predicts."
        )


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        with lock_run(RunLayout(folder)):
            yield
    except RunError as error:
        # The lock is a run's, and so are its words.
        raise type(error)(str(error).replace("--run", "--out")) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of the few steps that measure a rate: the runs themselves give them again."""
    level = _log.level
    _log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _log.setLevel(level)
