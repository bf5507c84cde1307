"""Decides what the page of a prepared dataset shows: what came in, what became of it, some documents, and how long they are."""

from pathlib import Path
from typing import Any

from packtrain.data.format.account import count_rows
from packtrain.data.format.manifest import Manifest, read_manifest
from packtrain.errors import DatasetError
from packtrain.report import dataset, examples, figures, sections
from packtrain.report.document import contents, document, write_page
from packtrain.report.markup import Child, Markup, el

_CONTENTS = {
    "data": "Ledger",
    "examples": "Documents",
    "lengths": "Lengths",
    "rows": "Rows",
    "shards": "Shards",
    "recipe": "Recipe",
}
_MAX_SHARDS = 200


def write_dataset_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a prepared dataset and gives its path: `out`, or by default report.html in the dataset's folder.

    Reads the manifest and a few documents. Raises DatasetError if there is none, or if `out` cannot be written.
    """
    target = out or folder / "report.html"
    write_page(target, build_dataset_page(folder, read_manifest(folder)), DatasetError)
    return target


def build_dataset_page(folder: Path, manifest: Manifest) -> str:
    """The page as an HTML document."""
    name = folder.resolve().name
    ledger = manifest.ledger
    header = el(
        "header",
        el("p", "Prepared dataset", class_="kicker"),
        el("h1", name),
        _standfirst(ledger),
        el("p", f"Prepared by {manifest.created_by} · dataset hash {manifest.hash[:16]}", class_="byline"),
        _key_figures(manifest),
        contents(_CONTENTS),
    )
    main = el(
        "main",
        sections.section("data", "Ledger", *dataset.account(ledger, manifest.recipe), lead=dataset.LEAD),
        sections.section("examples", "Documents", *examples.show_documents(folder), lead=examples.LEAD),
        sections.section("lengths", "Document lengths", _histogram(manifest)),
        sections.section("rows", "Rows for training", _rows(manifest), lead=_ROWS_LEAD),
        sections.section("shards", "Shards", _shards(manifest)),
        sections.section("recipe", "Recipe and tokenizer", _origin(manifest)),
    )
    return document(f"{name} – packtrain dataset", [header, main], "the dataset")


def _standfirst(ledger: dict[str, Any]) -> Markup:
    documents, tokens = ledger["documents"], ledger["tokens"]
    return el(
        "p",
        el("b", f"{figures.short(tokens['train'])} tokens"),
        f" for training and {figures.short(tokens['validation'])} for validation, from ",
        el("b", f"{figures.short(documents['in'])} documents"),
        f". {ledger['duplicate_rate']:.2%} of those that passed cleaning were duplicates.",
        class_="standfirst",
    )


def _key_figures(manifest: Manifest) -> Markup:
    ledger, tokenizer = manifest.ledger, manifest.tokenizer
    documents, tokens, sizes = ledger["documents"], ledger["tokens"], ledger["utf8_bytes"]
    kept = documents["train"] + documents["validation"]
    text = sizes["train"] + sizes["validation"]
    cells = [
        ("Documents kept", figures.short(kept), figures.exact(kept)),
        ("Tokens", figures.short(tokens["in"]), figures.exact(tokens["in"])),
        ("Text", figures.size(text), f"{figures.exact(text)} bytes of UTF-8"),
        ("Bytes per token", f"{ledger['bytes_per_token']:.2f}", "of text, over all kept documents"),
        ("Vocabulary", figures.exact(tokenizer.vocab_size), f"{tokenizer.kind}, ids stored as {manifest.dtype}"),
        ("Mean length", figures.short(tokens["in"] / max(1, kept)), "tokens per document"),
    ]
    return sections.strip(cells)


def _histogram(manifest: Manifest) -> Markup:
    counts = {int(least): count for least, count in manifest.length_histogram.items()}
    most, total = max(counts.values(), default=1), max(1, sum(counts.values()))
    rows = [
        ((f"{low:,} to {max(0, 2 * low - 1):,}", figures.exact(count), f"{count / total:.2%}"), count / most)
        for low, count in counts.items()
    ]
    return sections.bars(("Tokens", "Documents", "Share"), rows, f"{figures.exact(total)} kept documents by length.")


def _rows(manifest: Manifest) -> Markup:
    ledger = manifest.ledger
    documents, tokens = max(1, sum(manifest.length_histogram.values())), max(1, ledger["tokens"]["in"])
    rows: list[list[Child]] = []
    for seq_len, longer in (ledger.get("longer_than") or {}).items():
        count, last = count_rows(ledger["tokens"]["train"], int(seq_len))
        rows.append(
            [
                f"{int(seq_len):,}",
                figures.exact(longer["documents"]),
                f"{longer['documents'] / documents:.2%}",
                f"{longer['tokens'] / tokens:.2%}",
                figures.exact(count),
                figures.exact(last or int(seq_len)),
            ]
        )
    head = (
        "Sequence length",
        "Longer documents",
        "share",
        "share of tokens",
        "Rows (concat)",
        "Targets in the last row",
    )
    return sections.table(head, rows, numbers=range(1, len(head)))


def _shards(manifest: Manifest) -> Markup:
    rows: list[list[Child]] = []
    total = sum(len(shards) for shards in manifest.splits.values())
    for side, shards in manifest.splits.items():
        for shard in shards:
            size = sum(info.size for info in shard.files.values())
            cells = (shard.documents, shard.tokens, shard.utf8_bytes, shard.max_id)
            rows.append([f"{side}/{shard.name}", *(figures.exact(cell) for cell in cells), figures.size(size)])
    shown = f"The first {_MAX_SHARDS} of {total} shards; the manifest lists them all."
    caption = shown if total > _MAX_SHARDS else f"{total} shards."
    head = ("Shard", "Documents", "Tokens", "Bytes of text", "Largest id", "On disk")
    grid = sections.table(head, rows[:_MAX_SHARDS], caption=caption, numbers=range(1, len(head)))
    return el("details", el("summary", f"{total} shards, {figures.size(_disk(manifest))} on disk"), grid)


def _disk(manifest: Manifest) -> int:
    every = (shard for shards in manifest.splits.values() for shard in shards)
    return sum(info.size for shard in every for info in shard.files.values())


def _origin(manifest: Manifest) -> Markup:
    facts = {
        "dataset_hash": manifest.hash,
        "inputs_hash": manifest.inputs_hash,
        "recipe_hash": manifest.recipe_hash,
        "source_revision": manifest.source_revision,
    }
    parts = (
        el("div", el("h4", "Recipe"), sections.pairs(manifest.recipe)),
        el("div", el("h4", "Tokenizer"), sections.pairs(manifest.tokenizer.model_dump())),
        el("div", el("h4", "Identity"), sections.pairs(facts)),
    )
    return el("div", *parts, class_="columns")


_ROWS_LEAD = (
    "Any packing cuts documents that are longer than a row. The counts of longer documents are over both splits. The rows "
    "are those that packing=concat makes of the training split: the last one takes what is left, and nothing is dropped."
)
