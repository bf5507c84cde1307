"""Decides the protocol `documents`: each document is scored by itself, from its first token, whatever rows a run was trained on.

A document longer than the context is cut into windows of `seq_len` inputs. Each window but the first repeats the last `overlap`
inputs of the one before, so that its first target has that much context, and each token is a target of exactly one window.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from packtrain.config.data import IGNORE_INDEX
from packtrain.errors import ConfigError
from packtrain.evaluate.scores import hidden_states, log_probabilities
from packtrain.model.llama import Llama

# Tokens of a pass: enough that a product is worth its call, and few enough that the memory does not count beside the weights.
TOKENS_PER_PASS = 4096


@dataclass(frozen=True)
class Document:
    """Text as a model reads it."""

    ids: np.ndarray
    """int64[n]: the tokens to predict, from the first on; an end-of-text token too, where the text has one."""
    start: int | None
    """The token before the first: begin-of-text, or the end-of-text of what came before. None: nothing, and the first token
    costs what a uniform choice from the vocabulary does."""
    num_bytes: int
    """UTF-8 bytes that the ids stand for."""


class Window(NamedTuple):
    """Targets of a document that are scored in one piece. Positions count the ids of the document."""

    document: int
    begin: int
    """The first target, scored or not; the input for it is the start or the id before."""
    first: int
    """The first target that is scored."""
    end: int
    """Just after the last target."""


class Scored(NamedTuple):
    """The loss of some consecutive tokens of a document."""

    document: int
    first: int
    """Position of the first of them in the document's ids."""
    nats: np.ndarray
    """float64[n]."""
    seen: np.ndarray
    """int64[n]: how many tokens the model had before each."""


def choose_overlap(seq_len: int, overlap: int | None) -> int:
    """The tokens that a window repeats: half of it unless given. Raises ConfigError if a window would have nothing new."""
    if overlap is None:
        return seq_len // 2
    if not 0 <= overlap < seq_len:
        raise ConfigError(
            f"--overlap {overlap} does not fit windows of {seq_len} tokens; write a number from 0 to {seq_len - 1}"
        )
    return overlap


def cut_windows(documents: Sequence[Document], seq_len: int, overlap: int) -> list[Window]:
    """Windows of at most `seq_len` targets, which score each token once except a first one that nothing comes before."""
    windows = []
    for number, document in enumerate(documents):
        num_tokens = len(document.ids)
        begin = first = int(document.start is None)
        while first < num_tokens:
            end = min(num_tokens, begin + seq_len)
            windows.append(Window(number, begin, first, end))
            begin, first = end - overlap, end
    return windows


def score_documents(
    model: Llama,
    documents: Sequence[Document],
    *,
    seq_len: int,
    overlap: int,
    tokens_per_pass: int = TOKENS_PER_PASS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Scored]:
    """The loss of every token of every document, once, in nats. Windows come by length, the longest first; documents are not in order.

    Call it inside an autocast block for another precision. Leaves the model in its mode and draws no random number. Progress
    counts tokens. Raises NonFiniteError for damaged weights.
    """
    windows = sorted(cut_windows(documents, seq_len, overlap), key=lambda window: window.begin - window.end)
    total, done = sum(len(document.ids) for document in documents), 0
    was_training = model.training
    model.eval()
    try:
        for number, document in enumerate(documents):
            if document.start is None and len(document.ids):
                done += 1
                yield Scored(number, 0, np.array([np.log(model.config.vocab_rows)]), np.zeros(1, dtype=np.int64))
        at = 0
        while at < len(windows):
            width = windows[at].end - windows[at].begin
            some = windows[at : at + max(1, tokens_per_pass // width)]
            at += len(some)
            yield from _score(model, documents, some, width)
            done += sum(window.end - window.first for window in some)
            if on_progress is not None:
                on_progress(done, total)
    finally:
        model.train(was_training)


@torch.no_grad()
def _score(model: Llama, documents: Sequence[Document], windows: list[Window], width: int) -> list[Scored]:
    inputs = np.zeros((len(windows), width), dtype=np.int64)
    targets = np.full((len(windows), width), IGNORE_INDEX, dtype=np.int64)
    for row, window in enumerate(windows):
        document = documents[window.document]
        ids = document.ids[window.begin : window.end]
        before = document.ids[window.begin - 1] if window.begin else document.start
        assert before is not None, "without a start, windows begin at the second token"
        inputs[row, 0] = before
        inputs[row, 1 : len(ids)] = ids[:-1]
        targets[row, window.first - window.begin : len(ids)] = ids[window.first - window.begin :]
    device = model.lm_head.weight.device
    hidden_ND = hidden_states(model, torch.from_numpy(inputs).to(device)).flatten(0, 1)
    is_target = targets.reshape(-1) != IGNORE_INDEX
    hidden_ND = hidden_ND[torch.from_numpy(np.flatnonzero(is_target)).to(device)]
    targets_N = torch.from_numpy(targets.reshape(-1)[is_target]).to(device)
    logs_N = log_probabilities(model, hidden_ND, torch.arange(len(targets_N), device=device), targets_N)
    nats = -logs_N.double().numpy()
    scored, at = [], 0
    for window in windows:
        count = window.end - window.first
        # Without a start, the first of the ids is the first input.
        seen = np.arange(window.first - window.begin, window.end - window.begin, dtype=np.int64) + 1
        scored.append(Scored(window.document, window.first, nats[at : at + count], seen))
        at += count
    return scored
