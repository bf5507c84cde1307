"""Decides what a ledger is and how it is read: one entry for each fate of a document, and whether the entries add up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

SIDES = ("train", "validation")

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
_Share = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


def _has_sums(counts: dict[str, Any]) -> dict[str, Any]:
    for name in ("in", *SIDES):
        if not isinstance(counts.get(name), int):
            raise ValueError(f"it has no count for '{name}'")
    return counts


_Counts = Annotated[dict[str, Count | dict[str, Count]], AfterValidator(_has_sums)]


class _Longer(BaseModel):
    documents: Count
    tokens: Count


class _RandomSplit(BaseModel):
    fraction: _Share
    leaked: _Share


class _Ledger(BaseModel):
    """The entries that are read; others are left alone."""

    model_config = ConfigDict(extra="ignore")

    documents: _Counts
    tokens: _Counts
    utf8_bytes: _Counts
    bytes_per_token: _Share
    duplicate_rate: _Share
    random_split: _RandomSplit
    leaked_documents: Count = 0
    imported: str = ""
    longer_than: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$")], _Longer] = {}
    samples: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Entry:
    """The documents that had one fate. Documents that were left out have no tokens, because they were never tokenized."""

    name: str
    documents: int
    utf8_bytes: int | None
    """Of the cleaned text; None if the ledger is too old to say."""
    tokens: int | None
    estimated_tokens: int
    """`tokens`; for what was left out, its bytes over the bytes per token of what was kept."""

    @property
    def is_kept(self) -> bool:
        return self.name in SIDES


def find_fault(ledger: Any) -> str | None:
    """What keeps a value from being a ledger, in words; None if it is one."""
    try:
        _Ledger.model_validate(ledger)
    except ValidationError as error:
        first = error.errors()[0]
        return f"ledger.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return None


def list_entries(ledger: Mapping[str, Any]) -> list[Entry]:
    """Every entry of a ledger, the two sides first. Their documents sum to `documents.in`, plus 1 if a document was cut."""
    documents = _flat(ledger["documents"])
    sizes, tokens = _flat(ledger.get("utf8_bytes", {})), _flat(ledger.get("tokens", {}))
    density = float(ledger.get("bytes_per_token") or 0.0)
    found = []
    for name, count in documents.items():
        size, kept = sizes.get(name), tokens.get(name) if name in SIDES else None
        estimate = kept if kept is not None else round((size or 0) / density) if density else 0
        found.append(Entry(name, count, size, kept, estimate))
    return sorted(found, key=lambda entry: not entry.is_kept)


def find_imbalance(ledger: Mapping[str, Any]) -> str | None:
    """What does not add up in a ledger, in words; None if documents, bytes and tokens all do."""
    known = list_entries(ledger)
    for unit, values in (
        ("documents", [entry.documents for entry in known]),
        ("utf8_bytes", [entry.utf8_bytes for entry in known]),
        ("tokens", [entry.tokens for entry in known if entry.is_kept]),
    ):
        came_in = ledger.get(unit, {}).get("in")
        if unit == "documents" and came_in is not None and "cut_document" in ledger:
            # One document became two.
            came_in += 1
        if None not in values and came_in != sum(v for v in values if v is not None):
            return f"{came_in} {unit} came in, but {sum(v for v in values if v is not None)} are accounted for"
    return None


def describe_loss(ledger: Mapping[str, Any]) -> str | None:
    """What the tokenizer lost of the kept documents, in words; None if every one comes back from its ids."""
    loss = ledger.get("tokenizer_loss")
    try:
        documents, utf8_bytes = (
            (sum(_flat(loss[unit]).values()) for unit in ("documents", "utf8_bytes")) if loss else (0, 0)
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        # Someone has changed the manifest.
        return "the tokenizer lost text, but the ledger does not say how much"
    if not documents:
        return None
    return (
        f"the tokenizer lost {utf8_bytes:,} bytes of text (documents that do not come back from their ids as they were: "
        f"{documents:,})"
    )


def describe_split(recipe: Mapping[str, Any], ledger: Mapping[str, Any]) -> str | None:
    """How a split was made that content does not decide, how much it holds out, and what left because of it; else None."""
    split = recipe.get("split")
    split = split if isinstance(split, Mapping) else {}
    pattern, fraction = split.get("validation_files"), split.get("validation_fraction")
    hows = {
        "files": f"as files named {pattern}" if pattern else "as files named val, validation, dev, eval or test",
        "column": f"as the column {split.get('column')} says",
        "hub": "as the dataset's own splits",
        "tail": f"the last {fraction:.3g} of the text" if isinstance(fraction, float) else "the end of the text",
    }
    how = hows.get(str(split.get("by")))
    if how is None:
        return None
    documents = ledger["documents"]
    parts = [f"validation: {how}, {documents['validation']:,} documents"]
    if leaving := documents.get("in_validation", 0):
        parts.append(f"{leaving:,} training documents that validation also has were left out")
    if leaked := ledger.get("leaked_documents", 0):
        parts.append(f"{leaked:,} validation documents are in training too")
    if cut := ledger.get("cut_document"):
        parts.append(f"{cut['file']} row {cut['row']} was cut in two")
    return "; ".join(parts)


def count_rows(tokens: int, seq_len: int) -> tuple[int, int]:
    """Rows of `seq_len` targets that `concat` makes of `tokens`, and the targets of the last row if it is not full, else 0."""
    return -(-tokens // seq_len), tokens % seq_len


def _flat(counts: Mapping[str, Any]) -> dict[str, int]:
    """Counts by name, without the total. A table of reasons gives one count for each."""
    flat: dict[str, int] = {}
    for name, count in counts.items():
        if isinstance(count, Mapping):
            flat |= {str(reason): int(number) for reason, number in count.items()}
        elif name != "in":
            flat[name] = int(count)
    return flat
