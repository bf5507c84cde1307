"""Decides what `packtrain evaluate` measures on a run's own rows, beside the yardsticks, and on which data."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from packtrain.config.data import VerifyMode
from packtrain.data.feed.datasets import RunDatasets, as_run_datasets
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import DatasetError, TokenizerError
from packtrain.evaluate.held_out import HeldOutPart, choose_parts, combine
from packtrain.evaluate.loss import LossResult, evaluate_rows
from packtrain.evaluate.outcome import MeasuredPart, describe_outcome
from packtrain.evaluate.rows import score_rows
from packtrain.evaluate.yardsticks import document_texts, measure_yardsticks, pairs_of_rows, sample_training
from packtrain.pretrained.open import OpenModel
from packtrain.pretrained.trained_on import reopen_training_datasets
from packtrain.runs.checkpoint import OpenRun
from packtrain.runs.manifest import reopen_run_datasets

Progress = Callable[[int, int], None]
Stages = Callable[[str, str], AbstractContextManager[Progress]]
"""Shows the progress of a stage: takes its name and unit, and gives a callback that takes (done, total)."""
_log = logging.getLogger("packtrain")


def evaluate_run(
    run: OpenRun,
    sources: RunDatasets,
    *,
    tokens: int | None,
    progress: Stages,
) -> dict[str, Any]:
    """The protocol `rows`: step, dataset, `model` (LossResult, its interval and what it sees), `yardsticks`, `coverage`, seconds.
    For a mixture, these figures are for text mixed by share, and `sources` has the same figures for each source.

    Measures on at most `tokens` targets of the validation splits, chosen as in training, or on all of them (None). Call it
    inside an autocast block for a precision other than that of the weights. Raises TokenizerError if the dataset has another
    tokenizer than the run, DatasetError if there is no validation split, NonFiniteError if the weights are damaged.
    """
    began = time.perf_counter()
    tokenizer = load_tokenizer(run.tokenizer_folder)
    made_by = sources.tokenizer
    if made_by.hash != tokenizer.hash:
        raise TokenizerError(
            f"{sources.name} was prepared with another tokenizer (hash {made_by.hash[:12]}) than the run has "
            f"({tokenizer.hash[:12]}), so it has no rows for the run; leave out --protocol rows, or give a dataset prepared "
            f"with tokenizer.name={run.tokenizer_folder}"
        )
    data = run.config.data
    parts = choose_parts(sources, data.seq_len, data.packing, tokenizer, tokens)
    if not parts:
        raise refuse_nothing_held_out(sources)
    is_mixed = len(parts) > 1
    measured = [_measure_rows(run, part, tokenizer, made_by.adds_bos, progress, is_mixed) for part in parts]
    context = "its document" if data.document_mask else "its row"
    outcome = describe_outcome(
        measured,
        protocol={"name": "rows", "window": data.seq_len, "packing": data.packing},
        sees=f"up to {data.seq_len} tokens before, of {context}; trained on the training split",
        step=run.step,
        average=run.average,
        text=describe_datasets(sources),
    )
    return {**outcome, "seconds": round(time.perf_counter() - began, 2)}


def measure_rows(run: OpenRun, sources: RunDatasets, tokens: int) -> LossResult:
    """The loss alone, on at most `tokens` targets of the validation splits. Raises DatasetError if there are none."""
    data = run.config.data
    parts = choose_parts(sources, data.seq_len, data.packing, load_tokenizer(run.tokenizer_folder), tokens)
    if not parts:
        raise refuse_nothing_held_out(sources)
    results = []
    for part in parts:
        nats = evaluate_rows(run.model, part.held_out, micro_batch_size=1, document_mask=data.document_mask)
        assert nats is not None, "without should_stop, evaluation cannot stop early"
        results.append(part.held_out.result(nats))
    return combine([part.share for part in parts], results)


def open_evaluation_data(run: OpenRun, folder: Path | None = None) -> RunDatasets:
    """The dataset in `folder`; without it, the datasets that the run was trained on, wherever the run was started from.

    Warns if those have changed since. Raises DatasetError if they cannot be found, or if a file is not what was prepared
    (`data.verify`).
    """
    mode = run.config.data.verify
    if folder is not None:
        return _open_dataset(folder, mode)
    sources = reopen_run_datasets(run.config, run.manifest, run.layout.folder)
    if run.manifest.get("dataset", {}).get("hash") not in (None, sources.hash):
        _log.warning(
            "%s has changed since the run was trained on it: documents now held out may have been trained on",
            sources.name,
        )
    _check_content(sources, mode)
    return sources


def open_data_to_measure(opened: OpenModel, folder: Path | None = None) -> RunDatasets:
    """`open_evaluation_data` of a run; of a model from elsewhere, the dataset in `folder`, or those that its export names.

    Raises DatasetError if there are none, or if they are not what they were.
    """
    if opened.run is not None:
        return open_evaluation_data(opened.run, folder)
    if folder is not None:
        return _open_dataset(folder, "sample")
    sources = reopen_training_datasets(opened)
    _check_content(sources, "sample")
    return sources


def _open_dataset(folder: Path, mode: VerifyMode) -> RunDatasets:
    """A single dataset, with its held-out files compared with their hashes as `mode` says."""
    sources = as_run_datasets(open_dataset(folder))
    _check_content(sources, mode)
    return sources


def _check_content(sources: RunDatasets, mode: VerifyMode) -> None:
    """Compares what is measured on as `mode` says, and of the training side, which yardsticks learn from, a sample at most."""
    sources.check_content(mode, sides=("validation",))
    sources.check_content("none" if mode == "none" else "sample", sides=("train",))


def _measure_rows(
    run: OpenRun,
    part: HeldOutPart,
    tokenizer: Tokenizer,
    adds_bos: bool,
    stages: Stages,
    is_mixed: bool,
) -> MeasuredPart:
    of = f" {part.name}" if is_mixed else ""
    with stages(f"evaluating{of}", "rows") as on_rows:
        tally = score_rows(
            run.model,
            part.held_out,
            tokenizer,
            adds_bos=adds_bos,
            rows_per_pass=run.config.rows_per_pass,
            document_mask=run.config.data.document_mask,
            on_progress=on_rows,
        )
    with stages(f"yardsticks{of}", "documents") as on_documents:
        yardsticks = measure_yardsticks(
            pairs_of_rows(part.held_out),
            document_texts(part.held_out, tokenizer, on_documents),
            part.held_out.num_bytes,
            sample_training(part.source.dataset.split("train")),
            tokenizer.vocab_size,
        )
    result = part.held_out.result(math.fsum(tally.nats))
    return MeasuredPart(part.name, part.share, result, tally, yardsticks, _coverage(part, is_mixed))


def describe_datasets(sources: RunDatasets) -> dict[str, Any]:
    """What was measured on, as an evaluation's file names it."""
    known = [
        {"folder": str(source.dataset.folder.resolve()), "hash": source.dataset.manifest.hash}
        for source in sources.parts
    ]
    if len(known) == 1:
        return {**known[0], "split": "validation"}
    return {"hash": sources.hash, "sources": known, "split": "validation"}


def refuse_nothing_held_out(sources: RunDatasets) -> DatasetError:
    return DatasetError(
        f"{sources.name} has no validation split to evaluate on; prepare it with split.validation_fraction above 0"
    )


def _coverage(part: HeldOutPart, is_mixed: bool) -> str:
    plan, chosen = part.held_out.plan, len(part.held_out.rows)
    documents = f"{len(plan.index):,} held-out documents"
    where = f" of {part.name} ({part.share:.1%} of the mixture)" if is_mixed else ""
    if chosen == plan.num_rows:
        return f"Measured on all {chosen:,} rows of {plan.seq_len:,} tokens, from {documents}{where}."
    return (
        f"Measured on {chosen:,} of {plan.num_rows:,} rows of {plan.seq_len:,} tokens, spread evenly over {documents}{where}; "
        "the compressors get every document that a row touches, whole."
    )
