"""Decides what validation measures: the loss on a fixed choice of held-out rows, in nats per token and bits per byte."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from packtrain.config.data import IGNORE_INDEX
from packtrain.data.feed.loader import Rows, read_rows
from packtrain.data.rows.order import order_key, permute
from packtrain.data.rows.plan import RowPlan
from packtrain.data.tokens.tokenizer import Tokenizer

# Independent of the run's seed and epoch, so that all runs are measured on the same rows.
_KEY = order_key(0, 0, "held-out rows")
_ROWS_PER_READ = 1024


@dataclass(frozen=True)
class HeldOut:
    """The rows that a model is measured on, ascending, with the number of their targets and of the bytes those stand for."""

    plan: RowPlan
    rows: np.ndarray
    num_tokens: int
    num_bytes: int

    def result(self, nats: float) -> "LossResult":
        """The figures for a cross-entropy summed over all rows and ranks."""
        return LossResult.of(nats, self.num_tokens, self.num_bytes)


@dataclass(frozen=True)
class LossResult:
    """Loss in nats per token, its perplexity exp(loss), and bits per byte of UTF-8 text.

    Bits per byte can be compared between tokenizers: all nats, including those of control tokens, over the bytes of the text.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_bytes: int

    @classmethod
    def of(cls, nats: float, num_tokens: int, num_bytes: int) -> "LossResult":
        """The figures for a cross-entropy in nats, summed over tokens that stand for so many bytes."""
        loss = nats / num_tokens
        perplexity = math.exp(loss) if loss < 700 else math.inf
        bits = nats / math.log(2) / num_bytes if num_bytes else math.nan
        return cls(loss, perplexity, bits, num_tokens, num_bytes)


def choose_held_out(
    plan: RowPlan, tokenizer: Tokenizer, *, adds_bos: bool, tokens: int | None, text_bytes: int | None = None
) -> HeldOut:
    """A fixed choice of a split's rows, spread evenly over it, with at most `tokens` targets (None: all rows).

    The same for every call on the same plan; at least one row. Bytes are the UTF-8 bytes of the text after cleaning. For all
    rows they are `text_bytes`, which the manifest has for the split. Otherwise they are the bytes that the tokens stand for,
    tokens that are not whole characters and byte-fallback tokens included; that is exact unless the tokenizer loses
    text. Llama 2's tokenizer adds a space to the front of each document, so one byte is subtracted for every document that
    begins in the rows. `adds_bos`: whether documents of the dataset begin with a BOS token.
    """
    # A row may have fewer targets than places, so a small split can have more rows than `tokens` would fill.
    takes_all = tokens is None or plan.split.num_tokens <= tokens
    num_rows = plan.num_rows if takes_all else max(1, min(plan.num_rows, (tokens or 0) // plan.seq_len))
    rows = np.sort(permute(np.arange(num_rows), plan.num_rows, _KEY))
    token_bytes, prefix_bytes = tokenizer.token_bytes(), prefix_length(tokenizer)
    num_bytes = 0
    for first in range(0, num_rows, _ROWS_PER_READ):
        targets = read_rows(plan, rows[first : first + _ROWS_PER_READ]).targets_BT.numpy()
        num_bytes += int(token_bytes[targets[targets != IGNORE_INDEX]].sum(dtype=np.int64))
    if prefix_bytes:
        first_token = int(adds_bos)
        begun = sum(f.start <= first_token < f.start + f.length for row in rows.tolist() for f in plan.sources(row))
        num_bytes -= prefix_bytes * begun
    if text_bytes is not None and num_rows == plan.num_rows:
        num_bytes = text_bytes
    return HeldOut(plan, rows, int(plan.row_targets(rows).sum()), num_bytes)


def prefix_length(tokenizer: Tokenizer) -> int:
    """Bytes that the tokenizer adds before every document: 1 for Llama 2's space, 0 for byte-level tokenizers."""
    # A tokenizer that loses text may have no token for this letter.
    return max(0, int(tokenizer.token_bytes()[tokenizer.encode("a")].sum()) - 1)


def evaluate_rows(
    model: nn.Module,
    held_out: HeldOut,
    *,
    micro_batch_size: int,
    must_pad: bool = False,
    device: torch.device | str = "cpu",
    document_mask: bool = False,
    rank: int = 0,
    world_size: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> float | None:
    """Cross-entropy in nats, summed over this rank's share of the rows; `HeldOut.result` takes the sum over all ranks.

    `model(inputs, targets, segments_BT=, positions_BT=)` returns the sum over its targets, as `Llama` does. Draws no
    random number and leaves the model in its mode (training or not). Call it inside an autocast block for another
    precision. With `must_pad`, every micro-batch has `micro_batch_size` rows: the last is filled with rows whose targets do not
    count. Returns None if `should_stop` is true before a micro-batch. Progress counts rows of this rank.
    """
    num_rows = len(held_out.rows)
    share = held_out.rows[num_rows * rank // world_size : num_rows * (rank + 1) // world_size]
    largest_share = -(-num_rows // world_size)
    was_training = model.training
    model.eval()
    sums: list[torch.Tensor] = []
    try:
        with torch.no_grad():
            # Every rank makes the same number of passes, because a sharded model needs all ranks for each.
            for first in range(0, largest_share, micro_batch_size):
                if should_stop is not None and should_stop():
                    return None
                chosen = share[first : first + micro_batch_size]
                is_spare = not len(chosen)
                numbers = held_out.rows[:1] if is_spare else chosen
                rows = read_rows(held_out.plan, numbers, document_mask=document_mask)
                rows = (pad(rows, micro_batch_size) if must_pad else rows).to(device)
                nats = model(
                    rows.inputs_BT, rows.targets_BT, segments_BT=rows.segments_BT, positions_BT=rows.positions_BT
                )
                if is_spare:
                    continue
                sums.append(nats)
                if on_progress is not None:
                    on_progress(min(first + micro_batch_size, len(share)), len(share))
    finally:
        model.train(was_training)
    # Waits for the device once. fsum rounds once, so the order of summation does not matter.
    return math.fsum(torch.stack(sums).tolist()) if sums else 0.0


def pad(rows: Rows, size: int) -> Rows:
    """`size` rows: the given ones, and copies of the last whose targets do not count."""
    missing = size - len(rows)
    if missing <= 0:
        return rows

    def fill(rows_BT: torch.Tensor | None) -> torch.Tensor | None:
        return None if rows_BT is None else torch.cat((rows_BT, rows_BT[-1:].expand(missing, -1)))

    targets_BT = torch.cat(
        (rows.targets_BT, rows.targets_BT.new_full((missing, rows.targets_BT.shape[1]), IGNORE_INDEX))
    )
    inputs_BT = torch.cat((rows.inputs_BT, rows.inputs_BT[-1:].expand(missing, -1)))
    return Rows(inputs_BT, targets_BT, fill(rows.segments_BT), fill(rows.positions_BT))
