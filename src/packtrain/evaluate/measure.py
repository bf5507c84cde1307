"""Decides what `packtrain evaluate` measures: the held-out loss of a run next to the yardsticks, and on which data."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from packtrain.config.data import VerifyMode
from packtrain.data.feed.datasets import RunDatasets, as_run_datasets
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import DatasetError, TokenizerError
from packtrain.evaluate.held_out import HeldOutPart, choose_parts, combine
from packtrain.evaluate.loss import LossResult, evaluate_rows
from packtrain.evaluate.yardsticks import Yardstick, measure_yardsticks
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
    device: torch.device | str = "cpu",
    progress: Stages,
) -> dict[str, Any]:
    """The content of evaluation.json: step, dataset, `model` (LossResult and what it sees), `yardsticks`, `coverage`, seconds.
    For a mixture, these figures are for text mixed by share, and `sources` has the same figures for each source.

    Measures on at most `tokens` targets of the validation splits, chosen as in training, or on all of them (None). Call it
    inside an autocast block for a precision other than that of the weights. Raises TokenizerError if the dataset has another
    tokenizer than the run, DatasetError if there is no validation split.
    """
    began = time.perf_counter()
    tokenizer = load_tokenizer(run.tokenizer_folder)
    made_by = sources.tokenizer
    if made_by.hash != tokenizer.hash:
        raise TokenizerError(
            f"{sources.name} was prepared with another tokenizer (hash {made_by.hash[:12]}) than the run has "
            f"({tokenizer.hash[:12]}); give a dataset prepared with tokenizer.name={run.tokenizer_folder}"
        )
    data = run.config.data
    parts = choose_parts(sources, data.seq_len, data.packing, tokenizer, tokens)
    if not parts:
        raise DatasetError(
            f"{sources.name} has no validation split to evaluate on; prepare it with split.validation_fraction above 0"
        )
    measured = [_measure(run, part, tokenizer, device, progress, len(parts) > 1) for part in parts]
    result = combine(parts, [figures for figures, _ in measured])
    context = "its document" if data.document_mask else "its row"
    sees = f"up to {data.seq_len} tokens before, of {context}; trained on the training split"
    outcome = {
        "format": 1,
        "created": time.time(),
        "step": run.step,
        "dataset": _describe(sources),
        "coverage": " ".join(_coverage(part, len(parts) > 1) for part in parts),
        "model": _model(result, sees),
        "yardsticks": _combined_yardsticks(parts, [yardsticks for _, yardsticks in measured]),
    }
    if len(parts) > 1:
        outcome["sources"] = [
            {"name": part.name, "share": part.share, "model": _model(figures, sees), "yardsticks": _listed(yardsticks)}
            for part, (figures, yardsticks) in zip(parts, measured, strict=True)
        ]
    return {**outcome, "seconds": round(time.perf_counter() - began, 2)}


def open_evaluation_data(run: OpenRun, folder: Path | None = None) -> RunDatasets:
    """The dataset in `folder`; without it, the datasets that the run was trained on, wherever the run was started from.

    Warns if those have changed since. Raises DatasetError if they cannot be found, or if a file is not what was prepared
    (`data.verify`).
    """
    mode = run.config.data.verify
    if folder is not None:
        sources = as_run_datasets(open_dataset(folder))
        _check_content(sources, mode)
        return sources
    sources = reopen_run_datasets(run.config, run.manifest, run.layout.folder)
    if run.manifest.get("dataset", {}).get("hash") not in (None, sources.hash):
        _log.warning(
            "%s has changed since the run was trained on it: documents now held out may have been trained on",
            sources.name,
        )
    _check_content(sources, mode)
    return sources


def _check_content(sources: RunDatasets, mode: VerifyMode) -> None:
    """Compares what is measured on as `mode` says, and of the training side, which yardsticks learn from, a sample at most."""
    sources.check_content(mode, sides=("validation",))
    sources.check_content("none" if mode == "none" else "sample", sides=("train",))


def _measure(
    run: OpenRun, part: HeldOutPart, tokenizer: Tokenizer, device: torch.device | str, stages: Stages, is_mixed: bool
) -> tuple[LossResult, list[Yardstick]]:
    of = f" {part.name}" if is_mixed else ""
    with stages(f"evaluating{of}", "rows") as on_rows:
        nats = evaluate_rows(
            run.model,
            part.held_out,
            micro_batch_size=run.config.train.micro_batch_size,
            device=device,
            document_mask=run.config.data.document_mask,
            on_progress=on_rows,
        )
    assert nats is not None, "without should_stop, evaluation cannot stop early"
    train = part.source.dataset.split("train")
    with stages(f"yardsticks{of}", "documents") as on_documents:
        yardsticks = measure_yardsticks(part.held_out, train, tokenizer, on_progress=on_documents)
    return part.held_out.result(nats), yardsticks


def _combined_yardsticks(parts: Sequence[HeldOutPart], measured: Sequence[list[Yardstick]]) -> list[dict[str, Any]]:
    """For a mixture, mean bits of a token over its mean bytes, both weighted by share, as for the model."""
    if len(parts) == 1:
        return _listed(measured[0])
    weights = [part.share * part.held_out.num_bytes / part.held_out.num_tokens for part in parts]
    sees = "what it sees of each source; the mean of the sources by share"
    combined = []
    for same in zip(*measured, strict=True):
        bits = math.fsum(weight * one.bits_per_byte for weight, one in zip(weights, same, strict=True))
        combined.append(Yardstick(same[0].name, bits / math.fsum(weights) if any(weights) else math.nan, sees))
    return _listed(combined)


def _listed(yardsticks: list[Yardstick]) -> list[dict[str, Any]]:
    return [{"name": y.name, "bits_per_byte": _finite(y.bits_per_byte), "sees": y.sees} for y in yardsticks]


def _model(result: LossResult, sees: str) -> dict[str, Any]:
    return {**{key: _finite(value) for key, value in dataclasses.asdict(result).items()}, "sees": sees}


def _describe(sources: RunDatasets) -> dict[str, Any]:
    known = [
        {"folder": str(source.dataset.folder.resolve()), "hash": source.dataset.manifest.hash}
        for source in sources.parts
    ]
    if len(known) == 1:
        return {**known[0], "split": "validation"}
    return {"hash": sources.hash, "sources": known, "split": "validation"}


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


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
