"""Decides how every document, byte and token of a source is accounted for, from raw text to shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from packtrain.config.recipe import Recipe
from packtrain.data.format.account import find_imbalance
from packtrain.data.format.manifest import SPLITS, SplitName
from packtrain.prepare.copies.equal import expect_random_split_leak
from packtrain.prepare.steps.scan import REASONS, ScanNotes
from packtrain.prepare.steps.sides import Cut
from packtrain.prepare.steps.text_loss import sum_losses

CopyKind = Literal["duplicates", "near_duplicates", "in_validation"]
COPY_KINDS: tuple[CopyKind, ...] = ("duplicates", "near_duplicates", "in_validation")
"""`in_validation`: a document of the training side that a given validation side has too."""
_SAMPLES = 3
SEQ_LENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Sequence lengths for which the share of longer documents is counted."""


@dataclass
class Intake:
    """What the scans found: documents, and the dropped ones by reason."""

    documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, scan: np.ndarray, notes: ScanNotes) -> None:
        """Count a slice; called in source order."""
        self.documents += len(scan)
        sizes = np.bincount(scan["reason"], weights=scan["utf8_bytes"], minlength=1)[1:]
        for reason, count in enumerate(np.bincount(scan["reason"], minlength=1)[1:]):
            if count:
                self.dropped[notes.reasons[reason]] += int(count)
                self.dropped_bytes[notes.reasons[reason]] += int(sizes[reason])
        for name, seen in notes.samples.items():
            self.samples[name] = (self.samples.get(name, []) + seen)[:_SAMPLES]

    def reasons(self) -> list[str]:
        """The reasons of dropped documents: in the order of cleaning, then those of filters by name."""
        usual = [reason for reason in REASONS if self.dropped[reason]]
        return usual + sorted(reason for reason, count in self.dropped.items() if count and reason not in REASONS)


@dataclass
class KeptCounts:
    """Documents and UTF-8 bytes that are kept for each side, according to the scans."""

    documents: Counter[SplitName] = field(default_factory=Counter)
    utf8_bytes: Counter[SplitName] = field(default_factory=Counter)
    leaked: int | None = None
    """Validation documents with an equal one in training; None for a split by content, which rules them out."""

    def add(self, scan: np.ndarray, keep: np.ndarray, sides: np.ndarray) -> None:
        """Count a slice; `sides` as `assign_sides` gives them."""
        for side, name in enumerate(SPLITS):
            chosen = keep & (sides == side)
            self.documents[name] += int(chosen.sum())
            self.utf8_bytes[name] += int(scan["utf8_bytes"][chosen].sum())


@dataclass
class Copies:
    """Clean documents that were dropped as copies of another, and how many groups of equal documents have each size."""

    group_sizes: dict[int, int] = field(default_factory=dict)
    documents: Counter[CopyKind] = field(default_factory=Counter)
    utf8_bytes: Counter[CopyKind] = field(default_factory=Counter)
    near_samples: list[str] = field(default_factory=list)

    def add(self, kind: CopyKind, sizes: np.ndarray) -> None:
        """Count a slice's copies of one kind; `sizes` are their UTF-8 bytes, uint64[copies]."""
        self.documents[kind] += len(sizes)
        self.utf8_bytes[kind] += int(sizes.sum())

    def kinds(self) -> list[CopyKind]:
        """The kinds that a ledger has: those of every split, and the last if there are any."""
        return [kind for kind in COPY_KINDS if kind != "in_validation" or self.documents[kind]]


@dataclass(frozen=True)
class Selection:
    """The counts of a choice of documents; which ones are kept is stored slice by slice, see `scan.read_keep`."""

    intake: Intake
    kept: KeptCounts
    copies: Copies
    cut: Cut | None = None
    """The document that split.by=tail makes two of, if it does."""


class Lengths(NamedTuple):
    """Kept documents by power of two, and for each of SEQ_LENS the documents and tokens of the longer ones."""

    histogram: dict[str, int]
    longer_than: dict[str, dict[str, int]]


def balance(selection: Selection, records: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, Any]:
    """The ledger of a finished dataset, whose slices have these records. Scans and shards must agree on every count."""
    intake, kept, copies = selection.intake, selection.kept, selection.copies
    held = {name: _sum_shards(name, records) for name in SPLITS}
    lengths = merge_lengths(records)
    tokens = {name: held[name]["tokens"] for name in SPLITS}
    clean = sum(size * groups for size, groups in copies.group_sizes.items())
    kept_bytes = sum(kept.utf8_bytes.values())
    fraction = recipe.split.validation_fraction or 0.1
    loss = sum_losses(records)
    for name in SPLITS:
        assert kept.documents[name] == held[name]["documents"], f"a document of {name} is unaccounted for"
        assert kept.utf8_bytes[name] == held[name]["utf8_bytes"], f"text of {name} is unaccounted for"
    counted = sum(lengths.histogram.values())
    assert counted == sum(kept.documents.values()), "the length histogram does not count every document"
    ledger: dict[str, Any] = {
        "documents": {
            "in": intake.documents,
            **{name: kept.documents[name] for name in SPLITS},
            **{kind: copies.documents[kind] for kind in copies.kinds()},
            "dropped": {reason: intake.dropped[reason] for reason in intake.reasons()},
        },
        "tokens": {"in": sum(tokens.values()), **tokens},
        "utf8_bytes": {
            "in": kept_bytes + sum(copies.utf8_bytes.values()) + sum(intake.dropped_bytes.values()),
            **{name: kept.utf8_bytes[name] for name in SPLITS},
            **{kind: copies.utf8_bytes[kind] for kind in copies.kinds()},
            "dropped": {reason: intake.dropped_bytes[reason] for reason in intake.reasons()},
        },
        "bytes_per_token": kept_bytes / max(1, sum(tokens.values())),
        "duplicate_rate": copies.documents["duplicates"] / max(1, clean),
        "random_split": {"fraction": fraction, "leaked": expect_random_split_leak(copies.group_sizes, fraction)},
        **({} if kept.leaked is None else {"leaked_documents": kept.leaked}),
        **({"cut_document": _describe_cut(selection.cut)} if selection.cut is not None else {}),
        **({"imported": recipe.source.kind} if recipe.source.gives_ids else {}),
        **({"tokenizer_loss": {unit: loss[unit] for unit in ("documents", "utf8_bytes")}} if loss else {}),
        "longer_than": lengths.longer_than,
        "samples": {
            **{reason: intake.samples[reason] for reason in intake.reasons()},
            **({"near_duplicates": copies.near_samples} if copies.near_samples else {}),
            **({"tokenizer_loss": loss["examples"]} if loss else {}),
        },
    }
    problem = find_imbalance(ledger)
    assert problem is None, problem
    return ledger


def count_lengths(lengths: np.ndarray) -> dict[str, int]:
    """Documents by length in tokens, int64[documents], in bins that begin at powers of two (0 is a bin by itself)."""
    exponents = np.frexp(lengths.astype(np.float64))[1]  # frexp(n)[1] - 1 is the floor of log2(n)
    bins = zip(*np.unique(exponents, return_counts=True), strict=True)
    return {str(0 if exponent == 0 else 1 << (int(exponent) - 1)): int(count) for exponent, count in bins}


def count_longer(lengths: np.ndarray) -> dict[str, list[int]]:
    """For each of SEQ_LENS, how many documents are longer, and how many tokens those have: [documents, tokens]."""
    longer = {seq_len: lengths[lengths > seq_len] for seq_len in SEQ_LENS}
    return {str(seq_len): [len(part), int(part.sum())] for seq_len, part in longer.items()}


def merge_lengths(records: Iterable[Mapping[str, Any]]) -> Lengths:
    """The sum over slices of `lengths` and `longer` in their records."""
    histogram: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for record in records:
        histogram.update(record["lengths"])
        for seq_len, (longer, their_tokens) in record["longer"].items():
            documents[seq_len] += longer
            tokens[seq_len] += their_tokens
    longer_than = {str(s): {"documents": documents[str(s)], "tokens": tokens[str(s)]} for s in SEQ_LENS}
    return Lengths({least: histogram[least] for least in sorted(histogram, key=int)}, longer_than)


def sum_backends(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many documents each library encoded, and how many both, from the records of all slices."""
    total = Counter({"fast": 0, "tokenizers": 0, "checked": 0})
    for record in records:
        counts = record["backend"]
        if "fast" in counts:
            total.update(counts)
        else:
            total["tokenizers"] += sum(shard["documents"] for shard in record["shards"].values())
    return dict(total)


def _describe_cut(cut: Cut) -> dict[str, Any]:
    sizes = dict(zip(SPLITS, cut.utf8_bytes, strict=True))
    return {"file": cut.file, "row": cut.source_row, "at": cut.at, "utf8_bytes": sizes}


def _sum_shards(name: SplitName, records: Sequence[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for record in records:
        shard = record["shards"].get(name, {})
        total.update({unit: shard[unit] for unit in ("documents", "tokens", "utf8_bytes") if shard})
    return total
