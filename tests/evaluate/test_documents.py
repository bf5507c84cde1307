"""Whether each token of a document is scored once, with what is before it in its document and nothing else."""

import math

import numpy as np
import pytest
import torch

from packtrain.errors import ConfigError, NonFiniteError
from packtrain.evaluate.documents import Document, choose_overlap, cut_windows, score_documents
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.llama import Llama

START = 5


def documents(
    model: Llama, *, start: int | None, lengths: tuple[int, ...] = (1, 2, 7, 8, 9, 30, 31, 3, 8)
) -> list[Document]:
    draw = np.random.default_rng(0)
    return [Document(draw.integers(model.config.vocab_rows, size=n), start, n) for n in lengths]


def naive(model: Llama, document: Document, seq_len: int, overlap: int) -> tuple[list[float], list[int]]:
    """Each token's loss from a pass over its own window, and the tokens before it."""
    stream = [*([] if document.start is None else [document.start]), *document.ids.tolist()]
    skipped = len(document.ids) - (len(stream) - 1)
    losses, seen = [math.log(model.config.vocab_rows)] * skipped, [0] * skipped
    begin = 0
    for target in range(1, len(stream)):
        if target - begin > seq_len:
            begin += seq_len - overlap
        with torch.no_grad():
            logits = model(torch.tensor([stream[begin:target]]))[0, -1].double()
        losses.append(-float(torch.log_softmax(logits, 0)[stream[target]]))
        seen.append(target - begin)
    return losses, seen


@pytest.mark.parametrize("start", [START, None])
@pytest.mark.parametrize(("seq_len", "overlap"), [(8, 3), (8, 0), (8, 7), (64, 32)])
def test_every_token_has_the_loss_of_its_window(model: Llama, start: int | None, seq_len: int, overlap: int) -> None:
    given = documents(model, start=start)
    found = [[(math.nan, -1)] * len(document.ids) for document in given]
    times = [np.zeros(len(document.ids), dtype=int) for document in given]
    reports: list[tuple[int, int]] = []
    pieces = score_documents(
        model,
        given,
        seq_len=seq_len,
        overlap=overlap,
        tokens_per_pass=20,
        on_progress=lambda done, total: reports.append((done, total)),
    )
    for piece in pieces:
        end = piece.first + len(piece.nats)
        found[piece.document][piece.first : end] = zip(piece.nats.tolist(), piece.seen.tolist(), strict=True)
        times[piece.document][piece.first : end] += 1
    assert all((count == 1).all() for count in times)
    assert reports[-1] == (sum(len(document.ids) for document in given),) * 2
    for document, scored in zip(given, found, strict=True):
        losses, seen = naive(model, document, seq_len, overlap)
        assert [nats for nats, _ in scored] == pytest.approx(losses, abs=1e-5)
        assert [count for _, count in scored] == seen


def test_the_kernels_of_the_cpu_give_the_same(model: Llama) -> None:
    given = documents(model, start=START)
    plain = {(p.document, p.first): p.nats for p in score_documents(model, given, seq_len=8, overlap=4)}
    use_cpu_kernels(model)
    for piece in score_documents(model, given, seq_len=8, overlap=4):
        np.testing.assert_allclose(piece.nats, plain[piece.document, piece.first], atol=1e-5)


def test_windows_repeat_what_is_said(model: Llama) -> None:
    windows = cut_windows(documents(model, start=START, lengths=(20,)), 8, 3)
    assert [(w.begin, w.first, w.end) for w in windows] == [(0, 0, 8), (5, 8, 13), (10, 13, 18), (15, 18, 20)]
    assert cut_windows(documents(model, start=None, lengths=(1,)), 8, 3) == []


def test_an_overlap_leaves_something_new() -> None:
    assert choose_overlap(8, None) == 4
    assert choose_overlap(1, None) == 0
    with pytest.raises(ConfigError, match="from 0 to 7"):
        choose_overlap(8, 8)


def test_damaged_weights_are_told(model: Llama) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        list(score_documents(model, documents(model, start=START), seq_len=8, overlap=4))
