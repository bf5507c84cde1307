"""Decides what becomes of text that a tokenizer does not give back: it is counted, and refused unless the recipe allows it."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS
from packtrain.data.tokens.lossless import RoundTrip
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import TokenizerError
from packtrain.prepare.sources.slices import Slice
from packtrain.prepare.steps.keep import KeptDocument
from packtrain.prepare.steps.results import Results
from packtrain.prepare.steps.scan import clean_rows

log = logging.getLogger("packtrain")

# Each part is lost by some tokenizers in use: accents, capitals, other scripts, emoji, quotation marks, runs of spaces.
_AWKWARD = "naïve CAFÉ, 日本 😀 “quoted”\n    two  spaces"
_SAMPLE_DOCUMENTS, _SAMPLE_CHARS = 200, 1 << 18
_EXAMPLES = 3


class LossTally:
    """Counts what a tokenizer loses of the documents of a slice."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._round_trip = _open_round_trip(tokenizer)
        self._documents: Counter[str] = Counter()
        self._utf8_bytes: Counter[str] = Counter()
        self._examples: list[str] = []
        self._is_refused = False

    def add(self, documents: Sequence[KeptDocument], encoded: Sequence[list[int] | memoryview]) -> None:
        """Compare documents with what their ids stand for; costs nothing if the tokenizer is proven to lose nothing."""
        if self._round_trip.is_certain:
            return
        for document, ids in zip(documents, encoded, strict=True):
            listed = ids if isinstance(ids, list) else memoryview(ids).cast("B").cast("I").tolist()
            loss = self._round_trip.find_loss(document.text, listed)
            if loss is None:
                continue
            side = SPLITS[document.side]
            self._documents[side] += 1
            self._utf8_bytes[side] += loss.utf8_bytes
            place = f"{document.row.file} row {document.row.row}: {loss.example}"
            if not loss.is_space_sign and not self._is_refused:
                # The error shows the first example, which must be one that is refused.
                self._is_refused = True
                self._examples.insert(0, place)
            else:
                self._examples.append(place)
            del self._examples[_EXAMPLES:]

    def record(self) -> dict[str, Any]:
        """For the record of the slice: `loss`, if there is any."""
        if not self._documents:
            return {}
        sums = {"documents": dict(self._documents), "utf8_bytes": dict(self._utf8_bytes)}
        return {"loss": {**sums, "examples": self._examples, "is_refused": self._is_refused}}


def refuse_loss(record: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise TokenizerError if the record of a slice has a loss that the recipe does not allow."""
    loss = record.get("loss")
    if loss is None or not loss["is_refused"] or recipe.tokenizer.allow_loss:
        return
    documents = sum(shard["documents"] for shard in record["shards"].values())
    _refuse(recipe, sum(loss["documents"].values()), documents, sum(loss["utf8_bytes"].values()), loss["examples"][0])


def sum_losses(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The losses in the records of slices, by side: `documents`, `utf8_bytes`, and `examples`; empty if there is none."""
    losses = [record["loss"] for record in records if "loss" in record]
    if not losses:
        return {}
    by_side = {
        unit: {side: sum(loss[unit].get(side, 0) for loss in losses) for side in SPLITS}
        for unit in ("documents", "utf8_bytes")
    }
    return {**by_side, "examples": [example for loss in losses for example in loss["examples"]][:_EXAMPLES]}


def try_tokenizer(results: Results, slices: Sequence[Slice], tokenizer: Tokenizer) -> None:
    """Before hours of work: raise TokenizerError if the first documents lose text, warn if awkward text does.

    Reads nothing if it is proven that the tokenizer loses nothing.
    """
    recipe = results.recipe
    round_trip = _open_round_trip(tokenizer)
    if recipe.source.gives_ids or recipe.tokenizer.allow_loss or round_trip.flaw is None:
        return
    texts: list[str] = []
    examples: list[str] = []
    num_bytes = num_chars = 0
    for row in islice((row for piece in slices for row in clean_rows(results, piece)), _SAMPLE_DOCUMENTS):
        if row.reason is None:
            texts.append(row.text)
            num_chars += len(row.text)
            loss = round_trip.find_loss(row.text, tokenizer.encode_batch([row.text])[0])
            if loss is not None:
                examples.append(f"{row.row.file} row {row.row.row}: {loss.example}")
                num_bytes += loss.utf8_bytes
        if num_chars > _SAMPLE_CHARS:
            break
    if examples:
        _refuse(recipe, len(examples), len(texts), num_bytes, examples[0], "the first ")
    loss = round_trip.find_loss(_AWKWARD, tokenizer.encode(_AWKWARD))
    if loss is not None:
        log.warning(
            "the tokenizer %s does not hold every text (%s): %s. Each document is decoded and compared, and the preparation "
            "stops if one is changed",
            recipe.tokenizer.name,
            round_trip.flaw,
            loss.example,
        )


@lru_cache(maxsize=1)
def _open_round_trip(tokenizer: Tokenizer) -> RoundTrip:
    # A proof looks at the whole vocabulary, which is too long for every slice.
    return RoundTrip(tokenizer)


def _refuse(recipe: Recipe, lost: int, documents: int, utf8_bytes: int, example: str, of: str = "") -> None:
    raise TokenizerError(
        f"the tokenizer {recipe.tokenizer.name} does not hold this text (bytes lost: {utf8_bytes:,}; documents that do not come "
        f"back from their ids as they were: {lost:,} of {of}{documents:,}); for example {example}. Name a tokenizer that "
        "holds every text (byte-level, or with byte fallback), train one with tokenizer.name= tokenizer.vocab_size=32000, or "
        "write tokenizer.allow_loss=true to continue and have the loss counted in the ledger"
    )
