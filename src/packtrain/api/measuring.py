"""Decides how a run is evaluated from beginning to end: the checkpoint, the device, the text, and evaluation.json."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packtrain.api.target import which_checkpoint
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.evaluate.measure import Progress, Stages


def evaluate(
    run: str | Path,
    *,
    tokens: int | None = None,
    everything: bool = False,
    step: int | None = None,
    best: bool = False,
    dataset: str | Path | None = None,
) -> dict[str, Any]:
    """Measures loss (nats per token) and bits per byte on held-out text, next to simpler methods; writes evaluation.json.

    Measures on `tokens` tokens at most (by default the run's evaluate.tokens), or on all with `everything`; on the last
    checkpoint, that of `step`, or the one with the `best` validation loss; on the run's dataset or another `dataset` with
    the same tokenizer. Returns the content of evaluation.json: `model` has loss, perplexity and bits_per_byte, `yardsticks`
    the same of each simpler method. Raises RunError, CheckpointError, DatasetError, TokenizerError and ConfigError.
    """
    if everything and tokens is not None:
        raise ConfigError(f"everything and tokens={tokens} both say how much to evaluate; keep one")
    return evaluate_and_save(
        Path(run),
        tokens=tokens,
        everything=everything,
        which=which_checkpoint(step, best),
        step=step,
        dataset=None if dataset is None else Path(dataset),
    )


@contextlib.contextmanager
def show_nothing(name: str, unit: str) -> Iterator[Progress]:  # noqa: ARG001
    """A stage without a progress bar."""
    yield lambda _done, _total: None


def evaluate_and_save(
    run: Path,
    *,
    tokens: int | None = None,
    everything: bool = False,
    which: Literal["last", "best"] = "last",
    step: int | None = None,
    dataset: Path | None = None,
    progress: Stages = show_nothing,
) -> dict[str, Any]:
    """Evaluates, showing `progress`, writes evaluation.json into the run, and returns its content."""
    from packtrain.evaluate.measure import evaluate_run, open_evaluation_data
    from packtrain.runs.checkpoint import open_run
    from packtrain.runs.layout import find_run, write_json
    from packtrain.train.device import keep_freed_memory, resolve_device, resolve_evaluation_precision

    find_run(run)
    device = resolve_device("auto")
    keep_freed_memory(device)
    opened = open_run(run, step=step, which=which, device=str(device))
    data = open_evaluation_data(opened, dataset)
    limit = None if everything else tokens or opened.config.evaluate.tokens
    seq_len = opened.config.data.seq_len
    if limit is not None and limit < seq_len:
        raise ConfigError(
            f"{limit} tokens are fewer than one row of data.seq_len={seq_len}; write --tokens {seq_len} or more"
        )
    with resolve_evaluation_precision(opened.config.train, device).autocast():
        outcome = evaluate_run(opened, data, tokens=limit, device=device, progress=progress)
    write_json(opened.layout.evaluation, outcome)
    return outcome
