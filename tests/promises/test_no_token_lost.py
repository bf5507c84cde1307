"""No token lost. Every token of every kept document is a training target exactly once per epoch. A ledger accounts
for every document and token, and gives the reason for each one left out."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.corpora import texts_of

from packtrain.data.feed.loader import read_rows, step_rows
from packtrain.data.format.manifest import read_manifest
from packtrain.data.format.shards import open_dataset
from packtrain.data.rows.pack import plan

SEQ_LEN = 32


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_token_is_a_target_once_per_epoch(prepared: Path, tmp_path: Path, packing: str, epoch: int) -> None:
    # A copy, since `bestfit` keeps its plans in the dataset's folder.
    split = open_dataset(Path(shutil.copytree(prepared, tmp_path / "copy"))).split("train")
    layout = plan(split, SEQ_LEN, packing)
    ends = split.document_ends
    starts = np.concatenate([[0], ends[:-1]])
    seen: Counter[tuple[int, int]] = Counter()
    rows = step_rows(layout, 7, epoch * layout.num_rows, layout.num_rows)
    for row, targets in zip(rows.tolist(), read_rows(layout, rows).targets_BT.tolist(), strict=True):
        pieces = layout.sources(row)
        assert sum(target >= 0 for target in targets) == sum(piece.length for piece in pieces)
        for piece in pieces:
            start = int(starts[piece.document]) + piece.start
            expected = split.read(start, start + piece.length).tolist()
            assert targets[piece.offset : piece.offset + piece.length] == expected
            seen.update((piece.document, piece.start + i) for i in range(piece.length))
    lengths = (ends - starts).tolist()
    assert seen == Counter((document, i) for document, length in enumerate(lengths) for i in range(length))


def test_the_ledger_accounts_for_every_document_and_token(prepared: Path) -> None:
    ledger = read_manifest(prepared).ledger
    documents, tokens = ledger["documents"], ledger["tokens"]
    assert documents["in"] == 200
    assert (documents["duplicates"], documents["dropped"]) == (20, {"empty": 2})
    assert documents["train"] + documents["validation"] == len(texts_of(prepared)) == 178
    for side in ("train", "validation"):
        assert tokens[side] == open_dataset(prepared).split(side).num_tokens
    assert tokens["in"] == tokens["train"] + tokens["validation"]
