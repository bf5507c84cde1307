"""No leak. Content decides which documents are held out, so no copy of a training document is in validation."""

from pathlib import Path

import pytest
from tests.corpora import sentences, texts_of, write_jsonl
from tests.promises.conftest import prepare


def contents(folder: Path, side: str) -> list[str]:
    """Documents of a side, with the case and spacing in which copies may differ taken away."""
    return ["".join(text.lower().split()) for text in texts_of(folder, [side])]


@pytest.mark.parametrize("keeps_copies", [False, True])
def test_no_copy_of_a_training_document_is_in_validation(corpus: Path, tmp_path: Path, keeps_copies: bool) -> None:
    prepare(corpus, tmp_path / "out", f"dedup.exact={not keeps_copies}".lower(), "split.validation_fraction=0.3")
    train, validation = contents(tmp_path / "out", "train"), contents(tmp_path / "out", "validation")
    assert len(train) + len(validation) == (198 if keeps_copies else 178)
    assert len({*train, *validation}) == 178 and len(set(validation)) > 20
    assert not set(train) & set(validation)


def test_a_document_stays_on_its_side_whatever_else_is_prepared(prepared: Path, tmp_path: Path) -> None:
    """So a dataset that grows, or another one with some of the same texts, leaks nothing either."""
    others = write_jsonl(tmp_path / "others.jsonl", [*sentences(60, seed=5), *sentences(178)])
    prepare(others, tmp_path / "out")
    for side, other_side in (("train", "validation"), ("validation", "train")):
        assert not set(contents(prepared, side)) & set(contents(tmp_path / "out", other_side))
