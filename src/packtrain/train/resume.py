"""Decides which settings a run continues with: its own, but for those that are typed and may differ or are changed on purpose."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packtrain.config.load import change_run_config, rivals, split_word
from packtrain.config.optimizers import OPTIMIZERS
from packtrain.config.run import RunConfig
from packtrain.config.words import show
from packtrain.errors import RunError
from packtrain.optim.schedule import learning_rate
from packtrain.parallel.ranks import Ranks
from packtrain.runs.configuration import changes, config_in_force
from packtrain.runs.layout import RunLayout
from packtrain.runs.manifest import list_datasets
from packtrain.storage.json_file import read_json

Changes = Mapping[str, tuple[Any, Any]]
_log = logging.getLogger("packtrain")

# Settings that weights, rows or optimizer state depend on.
_FIXED = (
    "model.",
    "data.seq_len",
    "data.packing",
    "data.repack",
    "data.document_mask",
    "train.seed",
    "train.global_batch_tokens",
    "optim.name",
)
_BEGINNING = ("train.anneal_from", "train.init_from", "train.continue_from", "train.extend_vocab")
# Settings that change no number of the run, or only the order in which numbers are added. A dataset has a hash of its own.
_FREE = (
    "data.dataset",
    "data.verify",
    "train.device",
    "train.micro_batch_size",
    "train.activation_gb",
    "train.attention",
    "checkpoint.",
    "guard.stall_",
    "log.",
    "track.",
    "evaluate.prompts",
    "evaluate.sample_tokens",
    "parallel.",
    "cpu.",
)
# Settings that the learning rate of a step depends on.
_SCHEDULED = ("optim.lr", "schedule.", "train.steps", "train.tokens", "train.epochs")


def continue_config(layout: RunLayout, typed: Sequence[str], changed: Sequence[str] = ()) -> RunConfig:
    """The configuration that the run in `layout` continues with: its own, with the `KEY=VALUE` words `typed` and `changed`.

    A typed setting may differ from the run's if it changes no number; any other must be among `changed`, which win over
    typed ones. Raises ConfigError for a word that is not a setting or a value that does not fit, RunError for a typed
    setting that differs, and for one that cannot change at all.
    """
    source = f"the run in {layout.folder}"
    own = _find_data(config_in_force(layout), layout)
    _refuse_optimizer(own, [*typed, *changed], layout)
    meant = {key for word in changed for key in rivals(split_word(word)[0])}
    plain = [word for word in typed if split_word(word)[0] not in meant]
    said = change_run_config(own, plain, source)
    _refuse_fixed(changes(own, said), layout, own)
    keys = tuple(split_word(word)[0] for word in plain)
    for key, (before, now) in changes(own, said).items():
        # A length that is typed unsets the other one; only what was typed is spoken of.
        if key in keys and not key.startswith(_FREE):
            raise RunError(
                f"{layout.folder} has {key}={show(before)}, and the command says {key}={show(now)}; leave it out to continue "
                f"as before, or write --change {key}={show(now)} to continue with another value"
            )
    given = change_run_config(said, changed, source)
    _refuse_fixed(changes(own, given), layout, own)
    return given


def check_same_run(saved: RunConfig, given: RunConfig, folder: str) -> None:
    """Raises RunError if `given` does not fit the run in `folder`; warns of settings that change its numbers."""
    refuse_another(saved, given, folder, (*_FIXED, *_BEGINNING))
    for key, (before, now) in changes(saved, given).items():
        if not key.startswith(_FREE):
            _log.warning(
                "%s was %s and is now %s: no uninterrupted run could give the same numbers as this one now will",
                key,
                before,
                now,
            )


def refuse_another(saved: RunConfig, given: RunConfig, folder: str, fixed: tuple[str, ...] = _FIXED) -> None:
    """Raises RunError for the first setting under `fixed` that differs: weights, rows or optimizer state would not fit."""
    for key, (before, now) in changes(saved, given).items():
        if key.startswith(fixed):
            raise RunError(
                f"{folder} was trained with {key}={before} and cannot continue with {key}={now}; "
                f"write {key}={before}, or give another --run folder"
            )


def check_same_everywhere(config: RunConfig, layout: RunLayout, ranks: Ranks) -> None:
    """Raises RunError if the processes of a run have read different settings of it."""
    everywhere = ranks.gather(config)
    for rank, other in enumerate(everywhere):
        if other != everywhere[0]:
            key, (first, now) = next(iter(changes(everywhere[0], other).items()))
            raise RunError(
                f"process {rank} reads {key}={now} for {layout.folder} and process 0 {key}={first}; put the run's folder on a disk "
                "that all processes share"
            )


def tell_continuation(
    layout: RunLayout, before: RunConfig, now: RunConfig, step: int, num_steps: int, steps_before: int
) -> None:
    """Says that a run has nothing left to do, or what changed settings do to the learning rate of its next step."""
    if step >= num_steps:
        _log.info(
            "%s is finished: all of its %s steps are done; to train longer, write `packtrain resume %s --change train.steps=N`",
            layout.folder,
            f"{num_steps:,}",
            layout.folder,
        )
        return
    if not any(key.startswith(_SCHEDULED) for key in changes(before, now)):
        return
    was = learning_rate(before.effective_schedule, before.optim.lr, min(step + 1, steps_before), steps_before)
    rate = learning_rate(now.effective_schedule, now.optim.lr, step + 1, num_steps)
    then = (
        f"without the change it would be {was:.3g}" if step < steps_before else f"that of the last step was {was:.3g}"
    )
    longer = num_steps > steps_before and rate > was * 1.01
    why = f", because schedule.name={now.schedule.name} decays towards the last step" if longer else ""
    _log.warning(
        "the run ends at step %s; the learning rate of step %s is %.3g (computed), and %s%s",
        f"{num_steps:,}",
        f"{step + 1:,}",
        rate,
        then,
        why,
    )


def _find_data(own: RunConfig, layout: RunLayout) -> RunConfig:
    """`own` with the folders of its datasets as they were found at the start, if the command is given in another folder."""

    def find(folder: str) -> str:
        parts = Path(folder).parts
        there = next((known for known in recorded if Path(known).parts[-len(parts) :] == parts), folder)
        if there == folder or Path(folder).exists() or not Path(there).is_dir():
            return folder
        _log.info("%s is not in this folder; using %s", folder, there)
        return there

    named = own.data.dataset
    recorded = _recorded_folders(layout)
    if named is None or not recorded:
        return own
    if isinstance(named, str):
        found: Any = find(named)
    else:
        found = tuple(part.model_copy(update={"folder": find(part.folder)}) for part in named)
    return own.model_copy(update={"data": own.data.model_copy(update={"dataset": found})})


def _recorded_folders(layout: RunLayout) -> list[str]:
    """The whole paths of a run's datasets, if its manifest can be read; a damaged one is nothing to stop for."""
    try:
        described = list_datasets(read_json(layout.manifest, RunError))
    except (RunError, AttributeError, TypeError):
        return []
    folders = [each.get("folder") for each in described if isinstance(each, dict)]
    return [folder for folder in folders if isinstance(folder, str)]


def _refuse_fixed(differing: Changes, layout: RunLayout, own: RunConfig) -> None:
    for key, (before, now) in differing.items():
        if not key.startswith((*_FIXED, *_BEGINNING)):
            continue
        raise RunError(
            f"{layout.folder} was trained with {key}={show(before)} and cannot continue with {key}={show(now)}; leave it out, "
            f"or {_another_way(layout, key, now, own)}"
        )


def _refuse_optimizer(own: RunConfig, words: Sequence[str], layout: RunLayout) -> None:
    """Raises RunError for another optimizer. It is asked first, because others of the run's settings may not fit it."""
    for key, value in map(split_word, words):
        if key == "optim.name" and value in OPTIMIZERS and value != own.optim.name:
            _refuse_fixed({key: (own.optim.name, value)}, layout, own)


def _another_way(layout: RunLayout, key: str, value: Any, own: RunConfig) -> str:
    """What to do instead of resuming a run with another value of a setting that cannot change."""
    if value is None or key.startswith(("model.", *_BEGINNING)):
        return "start a new run in another --run folder"
    return f"start a new run from its weights: `{continue_command(layout, key, value, own)}`"


def continue_command(layout: RunLayout, key: str, value: Any, own: RunConfig) -> str:
    """The command that starts a new run from the weights of the one in `layout`, whose settings are `own`, with one changed.

    Settings that another optimizer does not have are set to their defaults.
    """
    new, number = Path(f"{layout.folder}-continued"), 1
    while new.exists():
        number += 1
        new = Path(f"{layout.folder}-continued-{number}")
    words = ["packtrain", "train", str(layout.config), f"{key}={show(value)}"]
    if key == "optim.name":
        words += [f"optim.{name}={show(default)}" for name, default in own.optim.list_misfits(value).items()]
    return shlex.join([*words, "--continue-from", str(layout.folder), "--run", str(new)])
