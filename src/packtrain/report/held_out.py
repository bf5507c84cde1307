"""Decides which held-out text a figure of a run was measured on, and so which figures of several runs compare."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from packtrain.report import figures
from packtrain.report.collect import RunRecord
from packtrain.report.numbers import number

_PARTIAL = re.compile(r"Measured on [\d,]+ of ")


@dataclass(frozen=True)
class HeldOutText:
    """What a held-out figure was measured on. Two figures compare if their `identity` is the same and known."""

    identity: str | None
    is_whole: bool | None
    """Whether it is the whole validation split; None if no file tells."""
    words: str
    """The same for a reader."""


def validated_on(record: RunRecord) -> HeldOutText:
    """The text of the validations between steps: rows of the validation split, up to evaluate.tokens, the same each time."""
    text, splits = _identify_text(record.manifest.get("dataset")), _validation_tokens(record)
    limit, split_tokens = number(record.setting("evaluate.tokens")), sum(tokens for _, tokens in splits)
    if not limit > 0 or not split_tokens > 0:
        return HeldOutText(None, None, "an unknown part of the held-out text")
    if all(limit * share >= tokens for share, tokens in splits):
        return HeldOutText(text and f"{text} whole", True, f"all {figures.exact(split_tokens)} held-out tokens")
    # Which rows these are depends on how the split is packed.
    choice = [limit, record.setting("data.seq_len"), record.setting("data.packing"), _tokenizer_hash(record)]
    words = f"about {figures.exact(limit)} of {figures.exact(split_tokens)} held-out tokens, the same each time"
    return HeldOutText(text and f"{text} {json.dumps(choice, default=str)}", False, words)


def evaluated_on(record: RunRecord) -> HeldOutText:
    """The text of `packtrain evaluate`: the validation split, or part of it, of the run's dataset or of another.

    The same text scored in rows and by document gives different figures, so these two do not compare.
    """
    named, trained_on = record.evaluation.get("dataset"), record.manifest.get("dataset")
    found = named.get("hash") if isinstance(named, dict) else None
    is_own = found is None or not isinstance(trained_on, dict) or found == trained_on.get("hash")
    text = _identify_text(trained_on) if is_own else str(found)
    model, coverage = record.evaluation.get("model"), str(record.evaluation.get("coverage", ""))
    num_tokens = number(model.get("num_tokens")) if isinstance(model, dict) else number(None)
    is_whole = None if not coverage else _PARTIAL.search(coverage) is None
    protocol = record.evaluation.get("protocol")
    is_by_document = isinstance(protocol, dict) and protocol.get("name") == "documents"
    manner = " by document" if is_by_document else ""
    of = "" if is_own else " of another dataset than it was trained on"
    tokens = f"{figures.exact(num_tokens)} held-out tokens{of}" if num_tokens > 0 else f"held-out text{of}"
    tokens += ", each document by itself" if is_by_document else ""
    if is_whole:
        return HeldOutText(text and f"{text} whole{manner}", True, f"all {tokens}")
    size = number(model.get("num_bytes")) if isinstance(model, dict) else number(None)
    known = text and coverage and f"{text} {coverage} {size}{manner}"
    return HeldOutText(known or None, is_whole, tokens)


def group_by_text(texts: Sequence[HeldOutText]) -> list[str]:
    """A letter for each: the same letter for figures that compare. A text that is not known has a letter of its own."""
    letters: dict[str, str] = {}
    given = []
    for place, text in enumerate(texts):
        key = text.identity or f"unknown {place}"
        letters.setdefault(key, chr(ord("A") + len(letters)) if len(letters) < 26 else f"A{len(letters)}")
        given.append(letters[key])
    return given


def has_same_tokens(records: Sequence[RunRecord]) -> bool:
    """Whether a loss per token means the same in each run: they have the same tokenizer."""
    hashes = {_tokenizer_hash(record) for record in records}
    return len(hashes) == 1 and None not in hashes


def _tokenizer_hash(record: RunRecord) -> str | None:
    tokenizer = _inner(record.manifest, "dataset", "tokenizer")
    return str(tokenizer["hash"]) if tokenizer.get("hash") else None


def _validation_tokens(record: RunRecord) -> list[tuple[float, float]]:
    """The share of each source in the validation, and the tokens of its validation split. A single dataset has all."""
    dataset = _inner(record.manifest, "dataset")
    sources = dataset.get("sources")
    parts = [part for part in sources if isinstance(part, dict)] if isinstance(sources, list) else [dataset]
    splits = [
        (number(part.get("weight", 1)), number(_inner(part, "ledger", "tokens").get("validation"))) for part in parts
    ]
    total = sum(weight for weight, tokens in splits if tokens) or 1.0
    return [(weight / total, tokens) for weight, tokens in splits]


def _identify_text(dataset: Any) -> str | None:
    """The same for datasets with the same documents, whatever their tokenizer: their recipe but for it, and the ledger's counts."""
    if not isinstance(dataset, dict):
        return None
    sources = dataset.get("sources")
    if isinstance(sources, list):
        parts = [(_identify_text(part), part.get("weight")) for part in sources if isinstance(part, dict)]
        return None if any(text is None for text, _ in parts) else json.dumps(parts, default=str)
    recipe, ledger = _inner(dataset, "recipe"), _inner(dataset, "ledger")
    counts = [ledger.get("documents"), ledger.get("utf8_bytes")]
    if not recipe or None in counts:
        return str(dataset["hash"]) if dataset.get("hash") else None
    text = {key: value for key, value in recipe.items() if key not in ("tokenizer", "prepare")}
    return json.dumps([text, counts], sort_keys=True, default=str)


def _inner(tree: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
