"""Decides how a model is evaluated from beginning to end: what is opened, the device, the text or the tasks, and where figures are kept."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packtrain.api.target import is_dataset, which_checkpoint
from packtrain.errors import ConfigError, DiskFullError, RunError, TokenizerError

if TYPE_CHECKING:
    from packtrain.evaluate.continuations import Prompt
    from packtrain.evaluate.measure import Progress, Stages
    from packtrain.evaluate.outcome import Protocol
    from packtrain.pretrained.open import OpenModel

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how; `evaluate` has the meanings."""

    tokens: int | None = None
    everything: bool = False
    dataset: Path | None = None
    text: Path | None = None
    separator: str | None = None
    text_column: str = "text"
    protocol: Protocol | None = None
    window: int | None = None
    overlap: int | None = None
    tasks: tuple[str, ...] = ()
    task_files: Path | None = None
    limit: int | None = None

    def check(self) -> None:
        """Raises ConfigError for options that contradict each other."""
        if self.everything and self.tokens is not None:
            raise ConfigError(f"everything and tokens={self.tokens} both say how much to evaluate; keep one")
        if self.text is not None and self.dataset is not None:
            raise ConfigError(f"--text {self.text} and --dataset {self.dataset} both say what to evaluate on; keep one")
        if self.text is None and self.separator is not None:
            raise ConfigError("--separator splits the file of --text, which is not given; give it, or leave it out")
        if self.protocol not in (None, "rows", "documents"):
            raise ConfigError(f"there is no protocol '{self.protocol}'; write rows or documents")
        if self.protocol == "rows" and self.text is not None:
            raise ConfigError("--text has documents and no rows; leave out --protocol rows")
        if self.protocol == "rows" and (self.window is not None or self.overlap is not None):
            raise ConfigError("--window and --overlap belong to --protocol documents; write that, or leave them out")
        if not self.tasks and (self.task_files is not None or self.limit is not None):
            raise ConfigError("--task-files and --limit belong to --tasks; write --tasks NAME too")

    @property
    def wants_text(self) -> bool:
        """Whether text is measured: unless only tasks are asked for."""
        about_text = (self.tokens, self.dataset, self.text, self.protocol, self.window, self.overlap)
        return not self.tasks or self.everything or any(option is not None for option in about_text)


def evaluate(
    target: str | Path,
    *,
    tokens: int | None = None,
    everything: bool = False,
    step: int | None = None,
    best: bool = False,
    last: bool = False,
    average: bool | None = None,
    dataset: str | Path | None = None,
    text: str | Path | None = None,
    separator: str | None = None,
    text_column: str = "text",
    protocol: Protocol | None = None,
    window: int | None = None,
    overlap: int | None = None,
    tasks: str | Sequence[str] = (),
    task_files: str | Path | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Measures a model on held-out text, beside simpler methods, or on tasks of lm-evaluation-harness.

    `target` is a run, of which checkpoint and `average` are chosen as by `load`, a checkpoint's folder, or a model from
    elsewhere that `load` opens; the result's `average` is the kind of average that was measured, or None. The text is the
    validation split of the run's dataset, that of another `dataset` (encoded again if its tokenizer is another), or a file
    `text`: one document, or several split by `separator`, or the `text_column` of each line of a .jsonl file. At most `tokens`
    tokens (by default the run's evaluate.tokens), or all with `everything`.

    `protocol` is "rows", those that validation in training scores, or "documents": each document by itself from its first
    token, in windows of `window` tokens (by default the run's data.seq_len) that repeat `overlap` (by default half).
    `tasks` are names of tasks, `task_files` a folder of the user's own, and `limit` the number of questions of each.

    Returns what is also saved in a run's folder: `model` has loss, perplexity and bits_per_byte with their `interval`,
    `yardsticks` the same of each simpler method, and `tasks` the metrics of each task. Raises UserError, each kind of it, and
    NonFiniteError for damaged weights.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    options = EvaluateOptions(
        tokens=tokens,
        everything=everything,
        dataset=None if dataset is None else Path(dataset),
        text=None if text is None else Path(text),
        separator=separator,
        text_column=text_column,
        protocol=protocol,
        window=window,
        overlap=overlap,
        tasks=tuple(name.strip() for listed in names for name in listed.split(",") if name.strip()),
        task_files=None if task_files is None else Path(task_files),
        limit=limit,
    )
    which = which_checkpoint(Path(target), step, best, last)
    return evaluate_and_save(Path(target), options, which=which, step=step, average=average)


@contextlib.contextmanager
def show_nothing(name: str, unit: str) -> Iterator[Progress]:  # noqa: ARG001
    """A stage without a progress bar."""
    yield lambda _done, _total: None


def evaluate_and_save(
    target: Path,
    options: EvaluateOptions | None = None,
    *,
    which: Literal["last", "best"] = "last",
    step: int | None = None,
    average: bool | None = None,
    progress: Stages = show_nothing,
) -> dict[str, Any]:
    """Evaluates, showing `progress`, saves the figures in the run's folder, and returns them."""
    from packtrain.config.train import TrainConfig
    from packtrain.pretrained.open import open_model
    from packtrain.train.device import keep_freed_memory, open_device, resolve_evaluation_precision

    options = options or EvaluateOptions()
    options.check()
    if is_dataset(target):
        raise RunError(f"{target} is a dataset; give a run or a model first, and the dataset with --dataset")
    device = open_device("auto")
    keep_freed_memory(device)
    opened = open_model(target, step=step, which=which, device=str(device), average=average)
    # A model from elsewhere says nothing of how it was trained.
    train = TrainConfig(precision="fp32") if opened.run is None else opened.run.config.train
    outcome: dict[str, Any] = {}
    if options.wants_text:
        with resolve_evaluation_precision(train, device).autocast():
            outcome = measure_text(opened, options, progress)
        _save_text(opened, outcome)
    if options.tasks:
        # In float32, as the exported model has it, so that its figures are the same elsewhere.
        found = _run_tasks(opened, options, progress)
        _save_tasks(opened, found)
        outcome = {"step": opened.step, "average": opened.average, **found, **outcome}
    return outcome


def measure_text(opened: OpenModel, options: EvaluateOptions, progress: Stages) -> dict[str, Any]:
    """The figures on text, by the protocol that is asked for or fits."""
    from packtrain.config.evaluate import EvaluateConfig
    from packtrain.evaluate import measure, measure_documents
    from packtrain.evaluate.texts import read_text

    if options.text is not None:
        texts = read_text(options.text, separator=options.separator, column=options.text_column)
        return measure_documents.evaluate_file(
            opened, options.text, texts, window=options.window, overlap=options.overlap, progress=progress
        )
    run = opened.run
    data = measure.open_data_to_measure(opened, options.dataset)
    settings = EvaluateConfig() if run is None else run.config.evaluate
    limit = None if options.everything else options.tokens or settings.tokens
    protocol = options.protocol or _choose_protocol(opened, data.tokenizer.hash, options)
    if protocol == "documents":
        return measure_documents.evaluate_documents(
            opened, data, tokens=limit, window=options.window, overlap=options.overlap, progress=progress
        )
    if run is None:
        raise TokenizerError(
            f"{opened.folder} is a model and not a run, and only a run has rows; leave out --protocol rows"
        )
    seq_len = run.config.data.seq_len
    if limit is not None and limit < seq_len:
        raise ConfigError(
            f"{limit} tokens are fewer than one row of data.seq_len={seq_len}; write --tokens {seq_len} or more"
        )
    return measure.evaluate_run(run, data, tokens=limit, progress=progress)


def _choose_protocol(opened: OpenModel, dataset_tokenizer: str, options: EvaluateOptions) -> Protocol:
    """Rows, as validation in training, if there are any."""
    has_rows = opened.run is not None and dataset_tokenizer == opened.tokenizer.hash
    return "rows" if has_rows and options.window is None and options.overlap is None else "documents"


def _run_tasks(opened: OpenModel, options: EvaluateOptions, progress: Stages) -> dict[str, Any]:
    from packtrain.evaluate.tasks import run_tasks

    return run_tasks(
        opened,
        options.tasks,
        task_files=options.task_files,
        limit=options.limit,
        continue_prompts=lambda prompts: continue_for_task(opened, prompts),
        progress=progress,
    )


def continue_for_task(opened: OpenModel, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The new tokens of each prompt. What is drawn at random is drawn with the seed 0."""
    from packtrain.generate.many import continue_prompts
    from packtrain.generate.settings import GenerateSettings

    # A task asks for all its prompts in the same way, but it need not.
    alike: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        alike.setdefault(repr((prompt.max_tokens, prompt.stop, prompt.sampling)), []).append(number)
    continued: dict[int, list[int]] = {}
    for numbers in alike.values():
        first = prompts[numbers[0]]
        sampling = {"top_p": 1.0, **first.sampling}
        settings = GenerateSettings(max_tokens=first.max_tokens, stop=first.stop, seed=0, **sampling)
        answers = continue_prompts(
            opened.model,
            opened.tokenizer,
            [prompts[number].ids for number in numbers],
            settings,
            context_length=opened.context_length,
        )
        continued |= {number: answer.token_ids for number, (answer,) in zip(numbers, answers, strict=True)}
    return [continued[number] for number in range(len(prompts))]


def _save_tasks(opened: OpenModel, found: dict[str, Any]) -> None:
    if opened.run is None:
        return
    layout, is_no_average = opened.run.layout, opened.run.leaves_average
    for name, task in found["tasks"].items():
        path = layout.task_evaluation(opened.run.step, name, found["limit"], is_no_average)
        saved = {
            "format": 1,
            "created": time.time(),
            "step": opened.step,
            "average": opened.average,
            "task": name,
            "limit": found["limit"],
        }
        _save(path, saved | {"harness": found["harness"]} | task)


def _save_text(opened: OpenModel, outcome: dict[str, Any]) -> None:
    if opened.run is None:
        return
    layout, protocol = opened.run.layout, outcome["protocol"]["name"]
    text, is_no_average = outcome["dataset"]["hash"], opened.run.leaves_average
    path = layout.text_evaluation(opened.run.step, protocol, text, is_no_average)
    _save(path, outcome)
    # The newest on a dataset is the run's headline. A file of text may be about anything.
    if outcome["dataset"]["split"] == "validation":
        _save(layout.evaluation, outcome)


def _save(path: Path, outcome: dict[str, Any]) -> None:
    """Writes figures. They may have taken hours, so a folder that cannot be written to is a warning."""
    from packtrain.runs.layout import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, outcome)
    except (OSError, DiskFullError) as error:
        _log.warning("the figures could not be saved to %s: %s", path, error)
