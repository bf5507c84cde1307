"""No leak. No copy of a training document is in validation, whether content decides the sides or the owner of the data did."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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


@pytest.mark.parametrize("keeps_copies", [False, True])
@pytest.mark.parametrize("by", ["files", "column", "hub", "tail"])
def test_copies_across_a_split_that_was_given_leave_the_training_side(
    tmp_path: Path, by: str, keeps_copies: bool
) -> None:
    held = sentences(30, seed=2)
    trained = [*sentences(80), *(f" {text.upper()}" for text in held[:7]), held[7], held[7]]
    rows = [{"text": t, "part": "train"} for t in trained] + [{"text": t, "part": "dev"} for t in held]
    settings = [f"split.by={by}", f"dedup.exact={not keeps_copies}".lower()]
    folder = tmp_path / "source"
    folder.mkdir()
    if by == "hub":
        settings += ["source.kind=hf"]
        pq.write_table(pa.Table.from_pylist(rows[: len(trained)]), folder / "train-0.parquet")
        pq.write_table(pa.Table.from_pylist(rows[len(trained) :]), folder / "validation-0.parquet")
    else:
        for name, part in (("a.train", "train"), ("b.val", "dev")):
            lines = [json.dumps(row) for row in rows if row["part"] == part]
            (folder / f"{name}.jsonl").write_text("\n".join(lines))
        settings += ["split.column=part"] if by == "column" else []
    printed = prepare(folder, tmp_path / "out", *settings)
    train, validation = contents(tmp_path / "out", "train"), contents(tmp_path / "out", "validation")
    assert not set(train) & set(validation)
    counts = printed["ledger"]["documents"]
    assert counts["in"] + (by == "tail") == sum(counts[name] for name in counts if name not in ("in", "dropped"))
    if by != "tail":
        assert len(train) == 80 and len(validation) == 30
        assert counts["in_validation"] == 9


def test_a_document_stays_on_its_side_whatever_else_is_prepared(prepared: Path, tmp_path: Path) -> None:
    """So a dataset that grows, or another one with some of the same texts, leaks nothing either."""
    others = write_jsonl(tmp_path / "others.jsonl", [*sentences(60, seed=5), *sentences(178)])
    prepare(others, tmp_path / "out")
    for side, other_side in (("train", "validation"), ("validation", "train")):
        assert not set(contents(prepared, side)) & set(contents(tmp_path / "out", other_side))
