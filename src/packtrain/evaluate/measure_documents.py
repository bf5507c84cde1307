"""Decides what `packtrain evaluate` measures on documents by themselves: of a dataset with any tokenizer, or of a text file."""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from packtrain.data.feed.datasets import RunDataset, RunDatasets
from packtrain.data.rows.index import DocumentIndex
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ConfigError, DatasetError, TokenizerError
from packtrain.evaluate.documents import Document, choose_overlap, score_documents
from packtrain.evaluate.held_out import combine
from packtrain.evaluate.loss import LossResult, prefix_length
from packtrain.evaluate.measure import Progress, Stages, describe_datasets, refuse_nothing_held_out
from packtrain.evaluate.outcome import MeasuredPart, describe_outcome
from packtrain.evaluate.tally import Tally
from packtrain.evaluate.texts import Text, choose_documents, encode_documents, hash_text, is_same_tokenizer
from packtrain.evaluate.yardsticks import (
    CountedText,
    Yardstick,
    measure_yardsticks,
    pairs_of_documents,
    sample_training,
)
from packtrain.pretrained.open import OpenModel
from packtrain.pretrained.trained_on import find_training_datasets
from packtrain.runs.manifest import reopen_run_datasets

_log = logging.getLogger("packtrain")
# Windows of a model from elsewhere, which may be made for far more tokens than a document has.
MOST_WINDOW = 2048
# Tokens of training text that are encoded again for the yardsticks: a few seconds of the tokenizer's time.
_MOST_ENCODED_AGAIN = 2**20


def evaluate_documents(
    opened: OpenModel,
    sources: RunDatasets,
    *,
    tokens: int | None,
    window: int | None = None,
    overlap: int | None = None,
    progress: Stages,
) -> dict[str, Any]:
    """The protocol `documents` on held-out documents: as `evaluate_run`, but each document by itself, whatever the packing.

    The dataset may have any tokenizer: its documents are then decoded, and encoded with the model's. `tokens` counts tokens of the
    dataset. Raises DatasetError if there is no validation split, ConfigError for windows that do not fit.
    """
    began = time.perf_counter()
    windows = _choose_windows(opened, window, overlap)
    own = load_tokenizer(sources.tokenizer_folder)
    chosen = [source for source in sources.parts if source.dataset.split("validation").num_tokens]
    if not chosen:
        raise refuse_nothing_held_out(sources)
    if not is_same_tokenizer(own, opened.tokenizer):
        _log.warning(
            "%s has another tokenizer than the model: its text is decoded and encoded again, so compare bits per byte, not losses",
            sources.name,
        )
    total = sum(source.weight for source in chosen)
    parts = []
    for source in chosen:
        of = f" {source.name}" if len(chosen) > 1 else ""
        wanted = None if tokens is None else max(1, tokens * source.weight // total)
        text = choose_documents(source.dataset, own, opened.tokenizer, add_bos=opened.add_bos, tokens=wanted)
        counted = _sample_source(source, own, opened.tokenizer)
        share = source.weight / total
        coverage = f"Measured on {text.coverage}" + (f" ({share:.1%} of the mixture)." if of else ".")
        result, tally, yardsticks = _measure_documents(opened, text, counted, windows, of, progress)
        parts.append(MeasuredPart(source.name, share, result, tally, yardsticks, coverage))
    known = {part.hash for part in find_training_datasets(opened)}
    is_own = known.issuperset(source.dataset.manifest.hash for source in chosen)
    trained = "; trained on the training split" if is_own else ""
    outcome = _of_documents(opened, parts, windows, trained, describe_datasets(sources))
    return {**outcome, "seconds": round(time.perf_counter() - began, 2)}


def measure_loss(opened: OpenModel, sources: RunDatasets, tokens: int) -> LossResult:
    """The loss alone, on about `tokens` tokens of held-out documents of each source, or less if it has less.

    Raises DatasetError if there are none.
    """
    window, overlap = _choose_windows(opened, None, None)
    own, token_bytes = load_tokenizer(sources.tokenizer_folder), opened.tokenizer.token_bytes()
    weights, results = [], []
    for source in sources.parts:
        if not source.dataset.split("validation").num_tokens:
            continue
        text = choose_documents(source.dataset, own, opened.tokenizer, add_bos=opened.add_bos, tokens=tokens)
        # At least one document is chosen, and it may be of any length.
        begun = [
            Document(ids, document.start, int(token_bytes[ids].sum()))
            for document in text.documents
            if len(ids := document.ids[:tokens])
        ]
        nats = [
            math.fsum(piece.nats) for piece in score_documents(opened.model, begun, seq_len=window, overlap=overlap)
        ]
        num_tokens, num_bytes = sum(len(each.ids) for each in begun), sum(each.num_bytes for each in begun)
        results.append(LossResult.of(math.fsum(nats), num_tokens, num_bytes))
        weights.append(source.weight)
    if not results:
        raise refuse_nothing_held_out(sources)
    return combine([weight / sum(weights) for weight in weights], results)


def evaluate_file(
    opened: OpenModel,
    path: Path,
    texts: list[bytes],
    *,
    window: int | None = None,
    overlap: int | None = None,
    progress: Stages,
) -> dict[str, Any]:
    """The protocol `documents` on the documents of a file, without end-of-text tokens, which the file does not have."""
    began = time.perf_counter()
    windows = _choose_windows(opened, window, overlap)
    documents = encode_documents(opened.tokenizer, texts, add_bos=opened.add_bos, end=None)
    count = "one document" if len(texts) == 1 else f"{len(texts):,} documents"
    text = Text(documents, texts, f"{count} of {path.name}")
    result, tally, yardsticks = _measure_documents(opened, text, _sample_run(opened), windows, "", progress)
    part = MeasuredPart(path.name, 1.0, result, tally, yardsticks, f"Measured on {text.coverage}.")
    described = {"folder": str(path.resolve()), "hash": hash_text(texts), "split": "text"}
    outcome = _of_documents(opened, [part], windows, "", described)
    return {**outcome, "seconds": round(time.perf_counter() - began, 2)}


def _measure_documents(
    opened: OpenModel, text: Text, counted: CountedText | None, windows: tuple[int, int], of: str, stages: Stages
) -> tuple[LossResult, Tally, list[Yardstick]]:
    token_bytes, prefix = opened.tokenizer.token_bytes(), prefix_length(opened.tokenizer)
    tally = Tally(np.array([document.num_bytes for document in text.documents], dtype=np.int64))
    with stages(f"evaluating{of}", "tokens") as on_tokens:
        pieces = score_documents(
            opened.model, text.documents, seq_len=windows[0], overlap=windows[1], on_progress=on_tokens
        )
        for piece in pieces:
            ids = text.documents[piece.document].ids[piece.first : piece.first + len(piece.nats)]
            sizes = token_bytes[ids].astype(np.float64)
            if piece.first == 0:
                sizes[0] -= prefix
            tally.add(np.full(len(ids), piece.document), piece.nats, sizes, piece.seen)
    with stages(f"yardsticks{of}", "documents") as on_documents:
        texts = _counting(text.texts, on_documents)
        yardsticks = measure_yardsticks(
            pairs_of_documents(text.documents), texts, text.num_bytes, counted, opened.tokenizer.vocab_size
        )
    return LossResult.of(math.fsum(tally.nats), text.num_tokens, text.num_bytes), tally, yardsticks


def _of_documents(
    opened: OpenModel, parts: list[MeasuredPart], windows: tuple[int, int], trained: str, text: dict[str, Any]
) -> dict[str, Any]:
    return describe_outcome(
        parts,
        protocol={"name": "documents", "window": windows[0], "overlap": windows[1]},
        sees=f"up to {windows[0]} tokens before, of its document{trained}",
        step=opened.step,
        average=opened.average,
        text=text,
    )


def _choose_windows(opened: OpenModel, window: int | None, overlap: int | None) -> tuple[int, int]:
    """Tokens of a window, and how many of them it repeats of the one before."""
    if window is None:
        is_run = opened.run is not None
        window = opened.run.config.data.seq_len if is_run and opened.run else min(opened.context_length, MOST_WINDOW)
    elif window > opened.context_length:
        raise ConfigError(
            f"--window {window} is more than the model's context of {opened.context_length}; write that or less"
        )
    return window, choose_overlap(window, overlap)


def _sample_source(source: RunDataset, own: Tokenizer, tokenizer: Tokenizer) -> CountedText | None:
    """Training text of a dataset, in the model's tokens."""
    train = source.dataset.split("train")
    if is_same_tokenizer(own, tokenizer) or not train.num_tokens:
        return sample_training(train)
    index = DocumentIndex(train)
    # As many documents as have about that many tokens, spread evenly over the split.
    count = max(1, min(len(index), _MOST_ENCODED_AGAIN * len(index) // train.num_tokens))
    chosen = np.linspace(0, len(index) - 1, count).astype(np.int64)
    spans = zip(index.starts(chosen).tolist(), index.ends(chosen).tolist(), strict=True)
    texts = [own.decode(train.read(start, end).tolist()) for start, end in spans]
    parts = [np.array(ids, dtype=np.int64) for ids in tokenizer.encode_batch(texts)]
    return CountedText(parts, f"{sum(map(len, parts)):,} tokens of the training split, encoded again")


def _sample_run(opened: OpenModel) -> CountedText | None:
    """The text that a run was trained on; None if it cannot be found, or for a model from elsewhere."""
    if opened.run is None:
        return None
    try:
        sources = reopen_run_datasets(opened.run.config, opened.run.manifest, opened.run.layout.folder)
        if sources.tokenizer.hash != opened.tokenizer.hash:
            raise DatasetError(f"{sources.name} was prepared again, with another tokenizer")
    except (DatasetError, TokenizerError) as error:
        _log.warning("unigram and bigram are left out, because the training text is not there: %s", error)
        return None
    samples = [sample_training(part.dataset.split("train")) for part in sources.parts]
    found = [sample for sample in samples if sample is not None]
    return CountedText([part for sample in found for part in sample.parts], found[0].words) if found else None


def _counting(texts: Iterable[bytes], on_progress: Progress) -> Iterator[bytes]:
    every = list(texts)
    for done, text in enumerate(every, start=1):
        yield text
        on_progress(done, len(every))
