"""Decides how the ledger of a dataset is printed: all documents, bytes and tokens, and the lengths of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packtrain.cli import screen
from packtrain.cli.following import dataset_setting, name_of, new_run, show_next, write_command

if TYPE_CHECKING:
    from packtrain.data.format.manifest import Manifest

_TAIL_SEQ_LENS = (512, 1024, 2048, 4096, 8192)


def show(manifest: Manifest) -> None:
    """Prints what came in, what became of it, the lengths of documents, and the rows that they fill."""
    from packtrain.data.format.account import describe_loss, describe_split

    show_counts(manifest)
    _lengths(manifest)
    _rows(manifest)
    ledger = manifest.ledger
    leak = ledger["random_split"]
    leaked = ledger.get("leaked_documents", 0)
    this_one = f"{leaked:,} of {ledger['documents']['validation']:,}" if leaked else "none"
    screen.console.print(
        f"{ledger['bytes_per_token']:.2f} bytes per token; {ledger['duplicate_rate']:.2%} duplicates; a random "
        f"{leak['fraction']:.0%} split would have had {leak['leaked']:.2%} of its validation documents in training as well, "
        f"this one has {this_one}"
    )
    loss = describe_loss(ledger)
    if loss is not None:
        screen.warn(loss)
    split = describe_split(manifest.recipe, ledger)
    if split is not None:
        screen.console.print(split, markup=False, soft_wrap=True)
    if leaked:
        screen.warn(
            f"{leaked:,} held-out documents are in training too; split.keep_leaks=false leaves those out of training"
        )


def describe_backend(encoded: dict[str, int]) -> str:
    """Which library made the ids of how many documents."""
    if not encoded["fast"]:
        return f"tokenized by tokenizers ({encoded['tokenizers']:,} documents)"
    return (
        f"tokenized by fastokens ({encoded['fast']:,} documents) and tokenizers ({encoded['tokenizers']:,}); both encoded "
        f"{encoded['checked']:,} whole documents, and their ids are the same"
    )


def show_use(manifest: Manifest, out: str) -> None:
    """Prints the command that trains on a dataset on this machine's disk: with the preset that fits it, in a new run."""
    from packtrain.plan.choice import choose_preset

    tokens = manifest.ledger["tokens"]["train"]
    if not tokens:
        screen.console.print(
            "\nThis dataset is all validation; packtrain evaluate RUN --dataset FOLDER measures a run on it.",
            soft_wrap=True,
        )
        show_next(write_command("inspect", out))
        return
    choice = choose_preset(tokens, manifest.tokenizer.vocab_size)
    epochs = f"{choice.epochs:.2g}" if choice.epochs < 10 else f"{choice.epochs:,.0f}"
    screen.console.print(
        f"\n{choice.preset} has {choice.parameters:,} parameters with this vocabulary of {manifest.tokenizer.vocab_size:,}; "
        f"{choice.tokens:,} tokens are {choice.tokens / choice.parameters:.2g} a parameter, and {epochs} passes over "
        "the training text",
        soft_wrap=True,
    )
    run = new_run(name_of(out))
    show_next(write_command("train", choice.preset, dataset_setting(out), *choice.settings, "--run", run))


def show_counts(manifest: Manifest) -> None:
    """Prints what came in and what became of it: documents, bytes and tokens."""
    from packtrain.data.format.account import find_imbalance, list_entries

    ledger = manifest.ledger
    known = [entry for entry in list_entries(ledger) if entry.documents or entry.is_kept or entry.name == "duplicates"]
    title = screen.escape(f"Ledger, imported from {ledger['imported']} files") if "imported" in ledger else "Ledger"
    table = screen.table("", "documents", "bytes of text", "tokens", title=title)
    total = sum(entry.estimated_tokens for entry in known)
    exact = all(entry.documents == 0 or entry.is_kept for entry in known)
    table.add_row(
        "in",
        f"{ledger['documents']['in']:,}",
        f"{ledger['utf8_bytes']['in']:,}",
        f"{total:,}" if exact else f"about {total:,}",
    )
    for entry in known:
        size = "unknown" if entry.utf8_bytes is None else f"{entry.utf8_bytes:,}"
        tokens = f"about {entry.estimated_tokens:,}" if entry.tokens is None and entry.utf8_bytes else "0"
        table.add_row(
            screen.escape(entry.name.replace("_", " ")),
            f"{entry.documents:,}",
            size,
            tokens if entry.tokens is None else f"{entry.tokens:,}",
        )
    screen.console.print(table)
    problem = find_imbalance(ledger)
    if problem is not None:
        screen.warn(f"the ledger does not balance: {problem}; someone has changed the manifest")
    elif not exact:
        screen.note(
            "Documents and bytes are counted, and so are the tokens of train and validation. What was dropped was never "
            "tokenized; its tokens are computed from its bytes, at the bytes per token of what was kept."
        )


def _lengths(manifest: Manifest) -> None:
    lengths = screen.table("tokens", "documents", "share", title="Documents by length")
    total = max(1, sum(manifest.length_histogram.values()))
    for least, count in manifest.length_histogram.items():
        low = int(least)
        lengths.add_row(f"{low:,} to {max(0, 2 * low - 1):,}", f"{count:,}", f"{count / total:.2%}")
    screen.console.print(lengths)


def _rows(manifest: Manifest) -> None:
    """Prints which documents each sequence length cuts, and how full its last row is."""
    from packtrain.data.format.account import count_rows

    ledger = manifest.ledger
    longer = ledger.get("longer_than") or {}
    documents = max(1, sum(manifest.length_histogram.values()))
    table = screen.table("sequence length", "longer", "of tokens", "rows (concat)", "in the last")
    table.title = "By sequence length"
    for seq_len in _TAIL_SEQ_LENS:
        counts = longer.get(str(seq_len))
        rows, last = count_rows(ledger["tokens"]["train"], seq_len)
        shares = ["–", "–"]
        if counts is not None:
            tokens = max(1, ledger["tokens"]["in"])
            shares = [f"{counts['documents'] / documents:.2%}", f"{counts['tokens'] / tokens:.2%}"]
        table.add_row(f"{seq_len:,}", *shares, f"{rows:,}", f"{last or seq_len:,}")
    screen.console.print(table)
