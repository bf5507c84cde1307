"""The documents of a dataset are shown with the borders of their tokens, and any text in them only as text."""

import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from tests.report.test_page import Page

from packtrain.data.format.manifest import read_manifest
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.report.dataset_page import build_dataset_page
from packtrain.report.examples import draw_tokens, show_documents, split_text


def test_documents_of_both_splits_are_shown_token_by_token(dataset: Path) -> None:
    text = build_dataset_page(dataset, read_manifest(dataset))
    Page(text)
    shown = text[text.index('id="examples"') : text.index('id="lengths"')]
    training, _, validation = shown.partition("<h3>Validation</h3>")
    for part, name in ((training, "train"), (validation, "validation")):
        split = open_dataset(dataset).split("train" if name == "train" else "validation")
        boxes = re.findall(r'<p class="document">(.*?)</p>', part, flags=re.DOTALL)
        assert len(boxes) == 3
        first = split.read(0, int(split.document_ends[0]))
        drawn = re.findall(r"<span[^>]*>(.*?)</span>", boxes[0])
        assert len(drawn) == len(first)
        decoded = load_tokenizer(dataset / "tokenizer").decode(first.tolist(), skip_special=False)
        assert unescape("".join(drawn)).replace("↵", "") == decoded
    assert "text.jsonl row " in shown


def test_pieces_join_to_the_text_whatever_is_in_it(dataset: Path) -> None:
    tokenizer = load_tokenizer(dataset / "tokenizer")
    for text in ("a 🦙 b", "é\n\n  x\ty", "<script>alert(1)</script>", "\x1b[31m\u202e", "", "\ufffd\ufffd", "日本語"):
        ids = tokenizer.encode(text)
        pieces = split_text(tokenizer, ids)
        assert "".join(piece for piece, _ in pieces) == text
        assert sum(count for _, count in pieces) == len(ids)
        markup = draw_tokens(tokenizer, ids)
        assert "<script" not in markup and "\x1b" not in markup and "\u202e" not in markup
    # A character of four bytes, none of which this small vocabulary joins.
    assert [count for piece, count in split_text(tokenizer, tokenizer.encode("🦙")) if "🦙" in piece] == [4]


def test_what_cannot_be_read_is_said_and_the_page_stays(dataset: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    next((copied / "train").glob("*.tok")).unlink()
    page = Page(build_dataset_page(copied, read_manifest(copied)))
    assert "The documents cannot be shown: " in page.text and "every one is accounted for" in page.text


@pytest.mark.parametrize("ending", ["tok", "idx.npy", "src.parquet"])
def test_a_damaged_file_is_told_and_not_shown(dataset, tmp_path, caplog, ending):
    copied = shutil.copytree(dataset, tmp_path / "copied")
    file = next((copied / "train").glob(f"*.{ending}"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with caplog.at_level("WARNING", logger="packtrain"):
        shown = "".join(map(str, show_documents(copied)))
    assert "The documents cannot be shown: " in shown and file.name in shown
    assert f"the documents of {copied} cannot be shown" in caplog.text
