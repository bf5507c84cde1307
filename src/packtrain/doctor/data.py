"""Decides whether the data of a run can be trained on: what its first batches say, and whether every label is in range."""

from collections.abc import Iterator

import numpy as np

from packtrain.config.data import IGNORE_INDEX
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.feed.loader import Rows, read_rows, step_rows
from packtrain.data.feed.mixture import Mixture
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.doctor.finding import Finding, fault

NUM_BATCHES = 3
_MOST_TOKENS = 2**21
# Ids that are read of a large dataset, in stretches spread over it.
_SCANNED, _STRETCHES = 2**24, 64
_SHOWN = 100
# A row may begin or end within a character; more of them mean that these ids are another tokenizer's.
_MOST_BROKEN = 0.05
_MOST_PADDING = 0.5


def read_batches(config: RunConfig, layout: Mixture) -> list[Rows]:
    """The rows of the first steps; of a very large step, its first ones."""
    per_step = config.rows_per_step
    count = max(1, min(per_step, _MOST_TOKENS // config.data.seq_len))
    return [
        read_rows(
            layout,
            step_rows(layout, config.train.seed, step * per_step, count),
            document_mask=config.data.document_mask,
        )
        for step in range(NUM_BATCHES)
    ]


def check_batches(batches: list[Rows], datasets: RunDatasets) -> Finding:
    """Shows the beginning of each of the first batches; a fault if the ids do not read as text, or hardly any are trained on."""
    name, tokenizer = "first batches", load_tokenizer(datasets.tokenizer_folder)
    targets = np.concatenate([rows.targets_BT.numpy() for rows in batches])
    padded = float((targets == IGNORE_INDEX).mean())
    texts = [_decode(rows, tokenizer) for rows in batches]
    lines = tuple(f"step {step}: {_shorten(text)}" for step, text in enumerate(texts, 1))
    if padded > _MOST_PADDING:
        return fault(
            name,
            f"{padded:.0%} of the positions of the first {len(batches)} steps are padding, and nothing is learned from them",
            "lower data.seq_len, or prepare more text",
        )
    broken = max(text.count("\ufffd") / max(1, len(text)) for text in texts)
    if broken > _MOST_BROKEN:
        return Finding(
            name,
            "fault",
            f"{broken:.0%} of the characters of a row cannot be decoded: these ids are not the tokenizer's",
            f"run `packtrain verify` on {datasets.name}, or prepare it again",
            lines,
        )
    says = f"{targets.shape[0]} rows of {targets.shape[1]} tokens in {len(batches)} steps, {padded:.1%} of it padding"
    return Finding(name, "ok", says, lines=lines)


def check_labels(batches: list[Rows], datasets: RunDatasets) -> Finding:
    """Whether every id of the first batches, and of stretches from all over the dataset, is one that the tokenizer has."""
    name, vocab_size = "labels", datasets.tokenizer.vocab_size
    found = [(f"step {step}", ids) for step, rows in enumerate(batches, 1) for ids in _labels(rows)]
    of_batches = sum(ids.size for _, ids in found)
    looked_at, total = 0, 0
    for part in datasets.parts:
        split = part.dataset.split("train")
        total += split.num_tokens
        for start, stop in _spread(split.num_tokens, _SCANNED // len(datasets.parts)):
            found.append((f"{part.name}, position {start:,} and later", split.read(start, stop)))
            looked_at += stop - start
    for where, ids in found:
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
            wrong = int(ids.max()) if int(ids.max()) >= vocab_size else int(ids.min())
            return fault(
                name,
                f"{where}: token id {wrong}, and the tokenizer's ids are 0 to {vocab_size - 1}",
                f"run `packtrain verify` on {datasets.name}, or prepare it again",
            )
    says = f"{looked_at:,} of the {total:,} ids to train on, and {of_batches:,} in batches"
    return Finding(name, "ok", f"{says}, are all from 0 to {vocab_size - 1}")


def _decode(rows: Rows, tokenizer: Tokenizer) -> str:
    ids = rows.inputs_BT[0].tolist()
    return tokenizer.decode([i for i in ids if 0 <= i < tokenizer.vocab_size], skip_special=False)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _labels(rows: Rows) -> Iterator[np.ndarray]:
    yield rows.inputs_BT.numpy()
    targets = rows.targets_BT.numpy()
    yield targets[targets != IGNORE_INDEX]


def _spread(total: int, budget: int) -> Iterator[tuple[int, int]]:
    """Stretches of `total` positions that have `budget` in all, evenly spread; all positions if they are no more."""
    if total <= budget:
        yield from ((start, min(total, start + 2**20)) for start in range(0, total, 2**20))
        return
    length = budget // _STRETCHES
    for number in range(_STRETCHES):
        start = number * (total - length) // (_STRETCHES - 1)
        yield start, start + length
