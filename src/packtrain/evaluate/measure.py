"""Decides what `packtrain evaluate` finds out about a run: its held-out loss beside the yardsticks, and on what data."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from packtrain.data.pack import plan
from packtrain.data.shards import Dataset, open_dataset
from packtrain.data.tokenizer import load_tokenizer
from packtrain.errors import DatasetError, TokenizerError
from packtrain.evaluate.loss import HeldOut, choose_held_out, evaluate_rows
from packtrain.evaluate.yardsticks import measure_yardsticks
from packtrain.runs.checkpoint import OpenRun

Progress = Callable[[int, int], None]
Stages = Callable[[str, str], AbstractContextManager[Progress]]
"""Draws a stage: takes its name and the unit it counts in, gives the callback for (done, total)."""
FORMAT_VERSION = 1
_log = logging.getLogger("packtrain")


def evaluate_run(
    run: OpenRun,
    dataset: Dataset,
    *,
    tokens: int | None,
    device: torch.device | str = "cpu",
    progress: Stages | None = None,
) -> dict[str, Any]:
    """What evaluation.json holds: step, dataset, `model` (LossResult and what it sees), `yardsticks`, `coverage`, seconds.

    Measures on at most `tokens` targets of the validation split, chosen as in training, or on all of it (None). Call it
    within an autocast block for another precision than the weights'. Raises TokenizerError for a dataset of another
    tokenizer than the run's, DatasetError where it holds nothing out.
    """
    began = time.perf_counter()
    tokenizer = load_tokenizer(run.tokenizer_folder)
    made_by = dataset.manifest.tokenizer
    if made_by.hash != tokenizer.hash:
        raise TokenizerError(
            f"{dataset.folder} was prepared with another tokenizer (hash {made_by.hash[:12]}) than the run's "
            f"({tokenizer.hash[:12]}); give a dataset prepared with tokenizer.name={run.tokenizer_folder}"
        )
    split = dataset.split("validation")
    if not split.num_tokens:
        raise DatasetError(
            f"{dataset.folder} holds nothing out to evaluate on; prepare it with split.validation_fraction above 0"
        )
    data = run.config.data
    rows = plan(split, data.seq_len, data.packing)
    held_out = choose_held_out(rows, tokenizer, adds_bos=made_by.adds_bos, tokens=tokens)
    stages = progress or _silent
    with stages("evaluating", "rows") as on_rows:
        nats = evaluate_rows(
            run.model,
            held_out,
            micro_batch_size=run.config.train.micro_batch_size,
            device=device,
            document_mask=data.document_mask,
            on_progress=on_rows,
        )
    assert nats is not None, "nothing asked it to stop"
    with stages("yardsticks", "documents") as on_documents:
        yardsticks = measure_yardsticks(held_out, dataset.split("train"), tokenizer, on_progress=on_documents)
    result = {key: _finite(value) for key, value in dataclasses.asdict(held_out.result(nats)).items()}
    context = "its document" if data.document_mask else "its row"
    return {
        "format": FORMAT_VERSION,
        "created": time.time(),
        "step": run.step,
        "dataset": {"folder": str(dataset.folder.resolve()), "hash": dataset.manifest.hash, "split": split.name},
        "coverage": _coverage(held_out),
        "model": {**result, "sees": f"up to {data.seq_len} tokens before, of {context}; trained on the training split"},
        "yardsticks": [{"name": y.name, "bits_per_byte": _finite(y.bits_per_byte), "sees": y.sees} for y in yardsticks],
        "seconds": round(time.perf_counter() - began, 2),
    }


def open_evaluation_data(run: OpenRun, folder: Path | None = None) -> Dataset:
    """The dataset in `folder`, or the one that the run was trained on, also where it was started from another folder.

    Warns where that one has changed since. Raises DatasetError where there is none.
    """
    if folder is not None:
        return open_dataset(folder)
    trained_on = run.manifest.get("dataset", {})
    places = [Path(place) for place in (run.config.data.dataset, trained_on.get("folder")) if place]
    if not places:
        raise DatasetError(f"{run.layout.folder} does not say what it was trained on; write --dataset FOLDER")
    dataset = open_dataset(next((place for place in places if place.is_dir()), places[0]))
    if trained_on.get("hash") not in (None, dataset.manifest.hash):
        _log.warning(
            "%s is not as it was when the run was trained on it: documents held out now may have been trained on",
            dataset.folder,
        )
    return dataset


def _coverage(held_out: HeldOut) -> str:
    plan, chosen = held_out.plan, len(held_out.rows)
    documents = f"{len(plan.index):,} held-out documents"
    if chosen == plan.num_rows:
        return f"Measured on all {chosen:,} rows of {plan.seq_len:,} tokens, from {documents}."
    return (
        f"Measured on {chosen:,} of {plan.num_rows:,} rows of {plan.seq_len:,} tokens, spread evenly over {documents}; "
        "the compressors get every document that a row touches, whole."
    )


@contextmanager
def _silent(_name: str, _unit: str) -> Iterator[Progress]:
    yield lambda _done, _total: None


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
