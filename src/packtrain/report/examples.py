"""Decides which documents of a dataset its page shows, and how the borders of their tokens are drawn."""

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packtrain.data.format.manifest import SPLITS
from packtrain.errors import PacktrainError
from packtrain.report import figures
from packtrain.report.markup import Child, Markup, el, join

if TYPE_CHECKING:
    from packtrain.data.format.shards import Split
    from packtrain.data.tokens.tokenizer import Tokenizer

_log = logging.getLogger("packtrain")
_SHOWN_DOCUMENTS = 3
_SHOWN_TOKENS = 160
# A character has at most four bytes, so at most four tokens.
_MOST_PARTS = 4
LEAD = (
    "Documents from the beginning, the middle and the end of each split, as the model reads them. Each box is a token; "
    "a control token has a frame; ↵ is a line break."
)


def show_documents(folder: Path) -> list[Markup]:
    """Some documents of each split, with token borders; a warning, and a sentence in their place, if they cannot be trusted."""
    from packtrain.data.format.content import check_what_is_read
    from packtrain.data.format.shards import open_dataset

    try:
        dataset = open_dataset(folder)
        check_what_is_read(dataset)
        from packtrain.data.tokens.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(dataset.tokenizer_folder)
        parts: list[Markup] = []
        for name in SPLITS:
            split = dataset.split(name)
            parts.append(el("h3", {"train": "Training", "validation": "Validation"}.get(name, name)))
            if not split.num_documents:
                parts.append(el("p", "This split has no documents.", class_="absent"))
            for number in _choose(split.num_documents):
                parts += _document(split, tokenizer, number)
        return parts
    except (PacktrainError, OSError, ValueError) as error:
        _log.warning("the documents of %s cannot be shown: %s", folder, error)
        return [el("p", f"The documents cannot be shown: {error}.", class_="absent")]


def draw_tokens(tokenizer: "Tokenizer", ids: Sequence[int]) -> Markup:
    """The text of ids, with an element for each token, or for the tokens that are a character only together."""
    control = tokenizer.control_ids
    drawn: list[Child] = []
    for is_control, run in itertools.groupby(ids, key=lambda i: i in control):
        if is_control:
            drawn += [el("span", tokenizer.decode([i], skip_special=False), class_="control") for i in run]
        else:
            drawn += [_box(text, count) for text, count in split_text(tokenizer, list(run))]
    return el("p", *drawn, class_="document")


def split_text(tokenizer: "Tokenizer", ids: Sequence[int]) -> list[tuple[str, int]]:
    """The text of ids in pieces, each with its number of tokens: one or, inside a character, several."""
    pieces: list[tuple[str, int]] = []
    before, waiting = "", 0
    for end in range(1, len(ids) + 1):
        waiting += 1
        text = tokenizer.decode(ids[:end], skip_special=False)
        # Half a character is decoded as a replacement character, until its other half follows.
        if text.endswith("\ufffd") and waiting < _MOST_PARTS and end < len(ids):
            continue
        begins_alike = text.startswith(before)
        own = text[len(before) :] if begins_alike else tokenizer.decode(ids[end - waiting : end], skip_special=False)
        pieces.append((own, waiting))
        before, waiting = text, 0
    return pieces


def _box(text: str, count: int) -> Markup:
    shown = text.replace("\n", "↵\n")
    if count == 1:
        return el("span", shown)
    return el("span", shown, class_="part", title=f"{count} tokens")


def _choose(num_documents: int) -> list[int]:
    """Numbers of documents, spread evenly."""
    count = min(_SHOWN_DOCUMENTS, num_documents)
    return [round(i * (num_documents - 1) / max(1, count - 1)) for i in range(count)]


def _document(split: "Split", tokenizer: "Tokenizer", number: int) -> list[Markup]:
    from packtrain.data.rows.index import DocumentIndex

    start, stop = DocumentIndex(split).span(number)
    ids = [int(i) for i in split.read(start, min(stop, start + _SHOWN_TOKENS))]
    length = f"{figures.exact(stop - start)} tokens"
    if stop - start > len(ids):
        length += f", of which the first {len(ids)} are shown"
    heading = el("p", join(el("b", f"Document {figures.exact(number)}"), f" · {_source(split, number)} · {length}"))
    return [el("div", heading, class_="of-document"), draw_tokens(tokenizer, ids)]


def _source(split: "Split", number: int) -> str:
    """Where a document came from, in words."""
    shard = 0
    while number >= split.shards[shard].documents:
        number -= split.shards[shard].documents
        shard += 1
    row = split.sources_of_shard(shard, ["file", "row", "id"]).slice(number, 1).to_pylist()[0]
    return f"{row['file']} row {figures.exact(row['row'])}" + (f", id {row['id']}" if row["id"] is not None else "")
