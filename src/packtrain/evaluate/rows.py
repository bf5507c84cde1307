"""Decides the protocol `rows`: the rows that validation in training scores, with the loss of each of their tokens."""

from collections.abc import Callable

import numpy as np
import torch

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.feed.loader import read_rows
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.evaluate.loss import HeldOut, prefix_length
from packtrain.evaluate.scores import hidden_states, log_probabilities
from packtrain.evaluate.tally import Tally
from packtrain.model.llama import Llama


@torch.no_grad()
def score_rows(
    model: Llama,
    held_out: HeldOut,
    tokenizer: Tokenizer,
    *,
    adds_bos: bool,
    rows_per_pass: int,
    document_mask: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tally:
    """The losses of all targets of the rows, by the document that each is of. Progress counts rows.

    A token sees what is before it in its row, or with `document_mask` what is of its document. Raises NonFiniteError for
    damaged weights.
    """
    device = model.lm_head.weight.device
    layout, token_bytes = held_out.plan, tokenizer.token_bytes()
    prefix_bytes, first_token = prefix_length(tokenizer), int(adds_bos)
    pieces = [layout.sources(row) for row in held_out.rows.tolist()]
    documents = np.unique([piece.document for of_row in pieces for piece in of_row])
    tally = Tally(_count_bytes(held_out, documents, token_bytes, prefix_bytes))
    for first in range(0, len(held_out.rows), rows_per_pass):
        chosen = slice(first, first + rows_per_pass)
        rows = read_rows(layout, held_out.rows[chosen], document_mask=document_mask)
        targets = rows.targets_BT.numpy()
        owners, sizes = np.zeros(targets.shape, dtype=np.int64), token_bytes[targets.clip(0)].astype(np.float64)
        for row, of_row in enumerate(pieces[chosen]):
            for piece in of_row:
                owners[row, piece.offset : piece.offset + piece.length] = piece.document
                if piece.start <= first_token < piece.start + piece.length:
                    sizes[row, piece.offset + first_token - piece.start] -= prefix_bytes
        columns = np.arange(layout.seq_len) if rows.positions_BT is None else rows.positions_BT.numpy()
        is_target = targets != IGNORE_INDEX
        seen = np.broadcast_to(columns + 1, targets.shape)[is_target]

        moved = rows.to(device)
        hidden_ND = hidden_states(
            model, moved.inputs_BT, segments_BT=moved.segments_BT, positions_BT=moved.positions_BT
        ).flatten(0, 1)
        if not is_target.all():
            hidden_ND = hidden_ND[torch.from_numpy(np.flatnonzero(is_target)).to(device)]
        targets_N = torch.from_numpy(targets[is_target]).to(device)
        logs_N = log_probabilities(model, hidden_ND, torch.arange(len(targets_N), device=device), targets_N)
        numbers = np.searchsorted(documents, owners[is_target])
        tally.add(numbers, -logs_N.double().numpy(), sizes[is_target], seen)
        if on_progress is not None:
            on_progress(min(first + rows_per_pass, len(held_out.rows)), len(held_out.rows))
    return tally


def _count_bytes(held_out: HeldOut, documents: np.ndarray, token_bytes: np.ndarray, prefix_bytes: int) -> np.ndarray:
    """UTF-8 bytes of each document, all of it, int64[documents]."""
    layout = held_out.plan
    starts, ends = layout.index.starts(documents), layout.index.ends(documents)
    read = layout.split.read
    sizes = [token_bytes[read(start, end)].sum() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return np.maximum(np.array(sizes, dtype=np.int64) - prefix_bytes, 0)
