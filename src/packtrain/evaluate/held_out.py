"""Decides which held-out text represents a run's data: the validation split of each source, weighted by its share."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from packtrain.data.feed.datasets import RunDataset, RunDatasets
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.evaluate.loss import HeldOut, LossResult, choose_held_out

_log = logging.getLogger("packtrain")


@dataclass(frozen=True)
class HeldOutPart:
    """The held-out rows of one source. `share` is its part of the tokens, among the sources with a validation split."""

    source: RunDataset
    share: float
    held_out: HeldOut

    @property
    def name(self) -> str:
        return self.source.name


def choose_parts(
    sources: RunDatasets, seq_len: int, packing: Packing, tokenizer: Tokenizer, tokens: int | None
) -> list[HeldOutPart]:
    """Held-out rows of every source with a validation split: at most `tokens` targets in all (None: all rows), at least a row each.

    Each source gives its share of the tokens, or all that it has. Warns of sources without a validation split.
    """
    chosen = [source for source in sources.parts if source.dataset.split("validation").num_tokens]
    for source in sources.parts:
        if chosen and source not in chosen:
            _log.warning("%s has no validation split, so the validation loss leaves it out", source.dataset.folder)
    total = sum(source.weight for source in chosen)
    parts = []
    for source in chosen:
        split = source.dataset.split("validation")
        rows = plan(split, seq_len, packing)
        wanted = None if tokens is None else tokens * source.weight // total
        held_out = choose_held_out(
            rows, tokenizer, adds_bos=sources.tokenizer.adds_bos, tokens=wanted, text_bytes=split.utf8_bytes
        )
        parts.append(HeldOutPart(source, source.weight / total, held_out))
    return parts


def combine(shares: Sequence[float], results: Sequence[LossResult]) -> LossResult:
    """The result for text that is mixed by the sources' shares, as the training text is.

    Loss: the mean of the losses, weighted by share. Bits per byte: the mean bits of a token over its mean bytes. Both are
    what held-out text of the mixture would give, no matter how many tokens each source was measured on.
    """
    if len(results) == 1:
        return results[0]
    loss = math.fsum(share * result.loss for share, result in zip(shares, results, strict=True))
    bytes_per_token = math.fsum(
        share * result.num_bytes / result.num_tokens for share, result in zip(shares, results, strict=True)
    )
    return LossResult(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=loss / math.log(2) / bytes_per_token if bytes_per_token else math.nan,
        num_tokens=sum(result.num_tokens for result in results),
        num_bytes=sum(result.num_bytes for result in results),
    )
