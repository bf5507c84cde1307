"""Splits as their owner made them, for each kind of source: who is on which side, what leaves, and what is refused."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tests.corpora import files_of, recipe, sentences, texts_of, write_jsonl
from tests.prepare.test_run import stop_when

from packtrain.config.recipe import Recipe
from packtrain.data.format.account import find_imbalance
from packtrain.data.format.manifest import Manifest
from packtrain.errors import DatasetError, SourceError
from packtrain.prepare.copies.equal import normalise
from packtrain.prepare.estimate import estimate
from packtrain.prepare.run import prepare
from packtrain.prepare.steps.job import record_recipe
from packtrain.prepare.verify import verify

HELD = [*sentences(9, seed=1), sentences(9, seed=1)[0].upper()]
# Four of these are also held out, two of them twice in training; one is there twice and nowhere else.
TRAIN = [*sentences(25), *HELD[:4], HELD[0].lower(), HELD[1] + " ", sentences(25)[7]]


def in_training(keeps_copies: bool = False) -> list[str]:
    """What is left of TRAIN: nothing that HELD has, and unless copies are kept the first of each document."""
    held = {normalise(text) for text in HELD}
    left = [text for text in TRAIN if normalise(text) not in held]
    return left if keeps_copies else left[:-1]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """A file of records in the format that its name ends in."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    else:
        path.write_text("\n===\n".join(row["text"] for row in rows))
    return path


def as_rows(texts: Iterable[str], **more: Any) -> list[dict[str, Any]]:
    return [{"text": text.strip(), **more} for text in texts]


def make(made: Recipe, out: Path) -> Manifest:
    """Prepare, and check what holds for every split: the ledger, the promise of no leak, and the source gives it again."""
    manifest = prepare(made, out).manifest
    assert find_imbalance(manifest.ledger) is None
    checked = verify(out, rebuild=100)
    assert len(checked.rebuilt) >= 1
    if not made.split.keep_leaks:
        sides = [{normalise(text) for text in texts_of(out, [name])} for name in ("train", "validation")]
        assert not sides[0] & sides[1]
        assert checked.leaked_documents == 0
    return manifest


def check_sides(out: Path, manifest: Manifest, *, keeps_copies: bool = False) -> None:
    assert [t.strip() for t in texts_of(out, ["train"])] == [t.strip() for t in in_training(keeps_copies)]
    held = HELD if keeps_copies else HELD[:-1]
    assert [t.strip() for t in texts_of(out, ["validation"])] == held
    assert manifest.ledger["documents"]["in_validation"] == 6
    assert manifest.ledger["documents"]["duplicates"] == (0 if keeps_copies else 2)
    assert manifest.ledger["leaked_documents"] == 0


# split.by=files


@pytest.mark.parametrize("keeps_copies", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet", "txt"])
def test_files_named_validation_are_held_out(tmp_path: Path, ending: str, keeps_copies: bool) -> None:
    write(tmp_path / "in", f"wiki.train.{ending}", as_rows(TRAIN))
    write(tmp_path / "in", f"wiki.valid.{ending}", as_rows(HELD))
    kind = {"txt": "text"}.get(ending, ending)
    more = {"source__separator": "\n===\n"} if kind == "text" else {}
    made = recipe(kind, tmp_path / "in", split__by="files", dedup__exact=not keeps_copies, **more)
    manifest = make(made, tmp_path / "out")
    check_sides(tmp_path / "out", manifest, keeps_copies=keeps_copies)


@pytest.mark.parametrize(
    ("pattern", "held"),
    [
        ("b*", ["sub/b.jsonl"]),
        ("sub/*", ["sub/b.jsonl", "sub/c.jsonl"]),
        ("*.jsonl", ["a.jsonl", "sub/b.jsonl", "sub/c.jsonl"]),
        ("**/c.jsonl", ["sub/c.jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "sub/b.jsonl"]),
    ],
)
def test_a_pattern_names_the_files_to_hold_out(tmp_path: Path, pattern: str, held: list[str]) -> None:
    texts = {name: sentences(4, seed=n) for n, name in enumerate(("a.jsonl", "sub/b.jsonl", "sub/c.jsonl"))}
    for name, own in texts.items():
        write(tmp_path / "in", name, as_rows(own))
    # A named tokenizer, as there may be nothing to train one on.
    prepare(recipe("jsonl", tmp_path / "in"), tmp_path / "first")
    tokenizer = str(tmp_path / "first" / "tokenizer")
    more = {"split__by": "files", "split__validation_files": pattern, "tokenizer__name": tokenizer}
    make(recipe("jsonl", tmp_path / "in", **more), tmp_path / "out")
    assert texts_of(tmp_path / "out", ["validation"]) == [text for name in held for text in texts[name]]


def test_blank_lines_move_no_document_to_the_other_side(tmp_path: Path) -> None:
    """Planning counts them as rows, and all files are in one slice here."""
    for name, texts in (("a.jsonl", sentences(5)), ("b.val.jsonl", sentences(5, 1)), ("c.jsonl", sentences(5, 2))):
        path = write(tmp_path / "in", name, as_rows(texts))
        path.write_text("\n\n" + path.read_text().replace("\n", "\n\n"))
    make(recipe("jsonl", tmp_path / "in", split__by="files"), tmp_path / "out")
    assert texts_of(tmp_path / "out", ["validation"]) == sentences(5, 1)


def test_leaks_stay_if_they_are_wanted(tmp_path: Path) -> None:
    write(tmp_path / "in", "train.jsonl", as_rows(TRAIN))
    write(tmp_path / "in", "val.jsonl", as_rows(HELD))
    manifest = make(recipe("jsonl", tmp_path / "in", split__by="files", split__keep_leaks=True), tmp_path / "out")
    assert texts_of(tmp_path / "out", ["validation"]) == HELD[:-1]
    assert texts_of(tmp_path / "out", ["train"]) == [*sentences(25), *HELD[:4]]
    assert "in_validation" not in manifest.ledger["documents"]
    assert manifest.ledger["leaked_documents"] == 4
    every = recipe("jsonl", tmp_path / "in", split__by="files", split__keep_leaks=True, dedup__exact=False)
    assert make(every, tmp_path / "every").ledger["leaked_documents"] == 5
    assert len(texts_of(tmp_path / "every")) == len(TRAIN) + len(HELD)


def test_near_copies_of_validation_leave_the_training_side_too(tmp_path: Path) -> None:
    pytest.importorskip("packtrain.prepare.copies.signatures")
    words = [f"word{n}" for n in range(90)]
    held = [" ".join(words), " ".join(f"other{n}" for n in range(90))]
    near = [" ".join([*words[:-1], end]) for end in ("one", "two")]
    own = [" ".join(f"own{n}" for n in range(90)), " ".join([*(f"own{n}" for n in range(89)), "last"])]
    # Validation comes last, so that the first in source order would be a training document.
    write(tmp_path / "in", "a.train.jsonl", as_rows([near[0], *own, *sentences(20)]))
    write(tmp_path / "in", "b.test.jsonl", as_rows([*held, near[1]]))
    made = recipe("jsonl", tmp_path / "in", split__by="files", dedup__near=True)
    counts = make(made, tmp_path / "out").ledger["documents"]
    assert texts_of(tmp_path / "out", ["validation"]) == held
    assert texts_of(tmp_path / "out", ["train"]) == [own[0], *sentences(20)]
    assert (counts["in_validation"], counts["near_duplicates"]) == (1, 2)
    keeps = recipe("jsonl", tmp_path / "in", split__by="files", dedup__near=True, split__keep_leaks=True)
    make(keeps, tmp_path / "keeps")
    assert texts_of(tmp_path / "keeps", ["train"]) == [near[0], own[0], *sentences(20)]
    assert texts_of(tmp_path / "keeps", ["validation"]) == held


@pytest.mark.parametrize("pattern", [None, "*.dev"])
def test_files_of_which_none_is_held_out_are_refused(tmp_path: Path, pattern: str | None) -> None:
    write(tmp_path / "in", "a.jsonl", as_rows(TRAIN))
    write(tmp_path / "in", "b.jsonl", as_rows(HELD))
    with pytest.raises(SourceError, match=r"its files are a\.jsonl, b\.jsonl: write split\.validation_files=GLOB"):
        prepare(recipe("jsonl", tmp_path / "in", split__by="files", split__validation_files=pattern), tmp_path / "out")


# split.by=column


def write_values(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Recipe:
    """A recipe of that kind over these rows, which have a key `part`."""
    if kind == "function":
        write(folder, "rows.jsonl", rows)
        code = "import json, pathlib\ndef documents():\n"
        code += (
            "    yield from map(json.loads, (pathlib.Path(__file__).parent / 'rows.jsonl').read_text().splitlines())\n"
        )
        (folder / "mine.py").write_text(code)
        return recipe("function", source__function=f"{folder}/mine.py:documents")
    return recipe(kind, write(folder, f"rows.{'parquet' if kind == 'hf' else kind}", rows))


def by_column(made: Recipe, **settings: Any) -> Recipe:
    return made.model_copy(
        update={
            "split": made.split.model_validate({"by": "column", "column": "part", **settings}),
            "source": made.source,
        }
    )


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "hf", "function"])
def test_a_column_says_the_side(tmp_path: Path, kind: str) -> None:
    rows = [*as_rows(TRAIN, part="Train"), *as_rows(HELD[:5], part="TEST"), *as_rows(HELD[5:], part="valid")]
    made = by_column(write_values(tmp_path, kind, rows))
    check_sides(tmp_path / "out", make(made, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_column_of_ids_is_another_one(tmp_path: Path, kind: str) -> None:
    sides = ["train", "train", "dev"]
    rows = [{"text": t, "part": sides[n % 3], "id": f"n{n}"} for n, t in enumerate(sentences(30))]
    made = write_values(tmp_path, kind, rows)
    made = by_column(made.model_copy(update={"source": made.source.model_copy(update={"id_column": "id"})}))
    make(made, tmp_path / "out")
    for name, wanted in (("train", {"train"}), ("validation", {"dev"})):
        (path,) = (tmp_path / "out" / name).glob("*.src.parquet")
        table = pq.read_table(path)
        assert {rows[row]["part"] for row in table["row"].to_pylist()} == wanted
        assert table["id"].to_pylist() == [f"n{row}" for row in table["row"].to_pylist()]


@pytest.mark.parametrize(("value", "values"), [(True, ["true"]), (7, ["7", "8"]), ("Held Out", ["held out"])])
def test_other_values_can_mean_validation(tmp_path: Path, value: Any, values: list[str]) -> None:
    rows = [*as_rows(sentences(20), part="something"), *as_rows(sentences(5, seed=1), part=value)]
    make(by_column(write_values(tmp_path, "jsonl", rows), validation_values=values), tmp_path / "out")
    assert texts_of(tmp_path / "out", ["validation"]) == sentences(5, seed=1)


@pytest.mark.parametrize(
    ("value", "settings", "says"),
    [
        (
            "unsupervised",
            {},
            r"row 3 has 'unsupervised' in split\.column=part.*\(values seen so far: train, unsupervised\)",
        ),
        (None, {}, r"row 3 has no value in split\.column=part"),
        ("", {"validation_values": ["x"]}, r"row 3 has no value in split\.column=part"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "function"])
def test_a_value_that_says_no_side_is_refused(
    tmp_path: Path, kind: str, value: Any, settings: dict[str, Any], says: str
) -> None:
    rows = as_rows(sentences(6), part="train")
    rows[3]["part"] = value
    with pytest.raises(SourceError, match=says):
        prepare(by_column(write_values(tmp_path, kind, rows), **settings), tmp_path / "out")


def test_rows_that_a_filter_drops_need_no_side(tmp_path: Path) -> None:
    rows = [
        *as_rows(sentences(20), part="train"),
        *as_rows(sentences(5, 1), part="test"),
        {"text": "x", "part": "unsup"},
    ]
    made = by_column(write_values(tmp_path, "parquet", rows))
    source = made.source.model_copy(update={"filter": "part != 'unsup'"})
    make(made.model_copy(update={"source": source}), tmp_path / "out")
    assert texts_of(tmp_path / "out", ["validation"]) == sentences(5, 1)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_named_by_the_setting(tmp_path: Path, kind: str) -> None:
    made = by_column(write_values(tmp_path, kind, as_rows(TRAIN, part="train")), column="prat")
    with pytest.raises(SourceError, match=r"no column 'prat' \(split\.column\).*did you mean 'part'"):
        prepare(made, tmp_path / "out")


def test_a_column_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    made = by_column(write_values(tmp_path, "jsonl", as_rows(TRAIN, part="train")))
    with pytest.raises(
        SourceError, match=r"validation side of the split is empty, as split\.by=column.*check split\.column"
    ):
        prepare(made, tmp_path / "out")


# split.by=hub


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        (("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"), {}),
        (("data/train-0.parquet", "data/test-0.parquet"), {}),
        (("train/0.parquet", "valid/0.parquet"), {}),
        (
            ("data/train-00000-of-00001.parquet", "data/heldout-00000-of-00001.parquet"),
            {"split__validation_split": "heldout"},
        ),
    ],
)
def test_a_hub_dataset_keeps_its_splits(tmp_path: Path, layout: tuple[str, str], settings: dict[str, str]) -> None:
    write(tmp_path / "in", layout[0], as_rows(TRAIN))
    write(tmp_path / "in", layout[1], as_rows(HELD))
    manifest = make(recipe("hf", tmp_path / "in", split__by="hub", **settings), tmp_path / "out")
    check_sides(tmp_path / "out", manifest)
    files = {f for name in ("train", "validation") for f in files_named(tmp_path / "out", name)}
    assert len(files) == 2


def files_named(out: Path, side: str) -> set[str]:
    return {f for path in (out / side).glob("*.src.parquet") for f in pq.read_table(path)["file"].to_pylist()}


def test_validation_is_preferred_to_test_and_equal_names_get_that_of_their_split(tmp_path: Path) -> None:
    for number, name in enumerate(("train", "test", "validation")):
        write(tmp_path / "in", f"{name}/0.parquet", as_rows(sentences(12, seed=number)))
    make(recipe("hf", tmp_path / "in", split__by="hub"), tmp_path / "out")
    assert texts_of(tmp_path / "out", ["validation"]) == sentences(12, seed=2)
    assert files_named(tmp_path / "out", "train") == {"train/0.parquet"}
    assert files_named(tmp_path / "out", "validation") == {"validation/0.parquet"}


@pytest.mark.parametrize("names", [("0.parquet", "1.parquet"), ("train-0.parquet", "train-1.parquet")])
def test_a_hub_dataset_without_a_validation_split_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    for number, name in enumerate(names):
        write(tmp_path / "in", name, as_rows(sentences(12, seed=number)))
    with pytest.raises(
        SourceError, match=r"split\.by=hub finds no validation split.*validation or valid or val or dev or test"
    ):
        prepare(recipe("hf", tmp_path / "in", split__by="hub"), tmp_path / "out")


def test_which_files_are_of_which_split_changes_the_hash_of_the_inputs(tmp_path: Path) -> None:
    """Even if names and contents of all files stay."""
    hashes = set()
    for last in ("a", "b"):
        folder = tmp_path / last
        for number, name in enumerate("abc"):
            write(folder, f"{name}.parquet", as_rows(sentences(12, seed=number)))
        paths = {"train": ["a.parquet", "b.parquet"][: " ab".index(last)]}
        paths["validation"] = [f"{name}.parquet" for name in "abc" if f"{name}.parquet" not in paths["train"]]
        entries = "".join(f"  - split: {split}\n    path: {json.dumps(own)}\n" for split, own in paths.items())
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{entries}---\n")
        hashes.add(make(recipe("hf", folder, split__by="hub"), tmp_path / f"out-{last}").inputs_hash)
    assert len(hashes) == 2


# split.by=tail

PLAY = "\n".join(f"Line {n}: " + "to be or not to be " * (n % 5) + "é" * (n % 3) for n in range(400)).replace(
    " \n", "\n"
)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.001, 0.999])
def test_one_file_is_split_by_its_tail(tmp_path: Path, fraction: float) -> None:
    (tmp_path / "input.txt").write_text(PLAY)
    made = recipe("text", tmp_path / "input.txt", split__by="tail", split__validation_fraction=fraction)
    ledger = make(made, tmp_path / "out").ledger
    (train,), (held,) = (texts_of(tmp_path / "out", [name]) for name in ("train", "validation"))
    assert train + held == PLAY.rstrip()
    # A line break is no further away than half of the shorter part.
    assert train.endswith("\n") or fraction in (0.001, 0.999)
    exact = len(PLAY.encode()) * fraction
    assert abs(len(held.encode()) - exact) < 120
    sizes = {"train": len(train.encode()), "validation": len(held.encode())}
    assert ledger["cut_document"] == {"file": "input.txt", "row": 0, "at": len(train), "utf8_bytes": sizes}
    assert ledger["documents"] == {
        "in": 1,
        "train": 1,
        "validation": 1,
        "duplicates": 0,
        "near_duplicates": 0,
        "dropped": {},
    }
    assert ledger["utf8_bytes"]["in"] == len(PLAY.rstrip().encode())
    tokens = [verify(tmp_path / "out").tokens, sum(ledger["tokens"][name] for name in sizes)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("slices", [3, 7, 1000])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_the_tail_of_many_documents_is_the_same_for_any_slices_and_workers(
    tmp_path: Path, slices: int, workers: int
) -> None:
    texts = sentences(40)
    path = write_jsonl(tmp_path / "a.jsonl", [*texts, *texts[:5]])
    more = {"prepare__slice_documents": slices, "prepare__workers": workers}
    made = recipe("jsonl", path, split__by="tail", split__validation_fraction=0.25, **more)
    ledger = make(made, tmp_path / "out").ledger
    train, held = (texts_of(tmp_path / "out", [name]) for name in ("train", "validation"))
    # The copies at the end are no part of the text.
    assert "".join([*train, *held]) == "".join(texts)
    assert [*train[:-1], train[-1] + held[0], *held[1:]] == texts
    total = sum(len(text.encode()) for text in texts)
    assert abs(sum(len(text.encode()) for text in held) - total / 4) < 100
    assert ledger["cut_document"]["row"] == len(train) - 1


@pytest.mark.slow
def test_the_tail_survives_a_stop_at_any_time(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(100))
    made = recipe("jsonl", path, split__by="tail", prepare__slice_documents=10)
    prepare(made, tmp_path / "clean")
    for number, (kind, count) in enumerate((("scan/*.scan", 4), ("tokens/*.json", 1), ("tokens/*.json", 8))):
        out = tmp_path / str(number)
        stop_when(made, out, lambda work, kind=kind, count=count: len(list(work.glob(kind))) >= count)
        # A choice that was not complete is made again, with its cut.
        for counts in out.glob(".work/keep-*/counts.json"):
            counts.unlink()
        prepare(made, out)
        assert files_of(out) == files_of(tmp_path / "clean")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two three four five six seven eight nine ten", ("one two three four five ", "six seven eight nine ten")),
        ("a" * 100, ("a" * 50, "a" * 50)),
        ("é" * 101, ("é" * 50, "é" * 51)),
        ("😀日本" * 30, ("😀日本" * 15, "😀日本" * 15)),
        ("head\n" + "x" * 60 + "\ntail is here and it is as long as the head", ("head\n" + "x" * 60 + "\n", None)),
    ],
)
def test_a_document_is_cut_at_a_line_break_else_a_space_else_a_character(
    tmp_path: Path, text: str, parts: tuple[str, str | None]
) -> None:
    (tmp_path / "one.txt").write_text(text)
    more = {"split__by": "tail", "split__validation_fraction": 0.5, "split__keep_leaks": True}
    make(recipe("text", tmp_path / "one.txt", **more), tmp_path / "out")
    (train,), (held,) = (texts_of(tmp_path / "out", [name]) for name in ("train", "validation"))
    assert (train, held) == (parts[0], parts[1] or text[len(parts[0]) :])


def test_a_part_that_equals_what_is_held_out_leaves(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("the same line\n" * 2)
    path = tmp_path / "one.txt"
    halves = {"split__by": "tail", "split__validation_fraction": 0.5}
    with pytest.raises(SourceError, match="the train side of the split is empty"):
        prepare(recipe("text", path, **halves), tmp_path / "out")
    assert make(recipe("text", path, split__keep_leaks=True, **halves), tmp_path / "a").ledger["leaked_documents"] == 1
    # Three documents, of which the last is cut; its end is the first.
    texts = ["an ending of it", "b " * 40, "x" * 85 + "\nan ending of it"]
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", texts), split__by="tail", split__validation_fraction=0.08)
    ledger = make(made, tmp_path / "b").ledger
    assert texts_of(tmp_path / "b", ["validation"]) == ["an ending of it"]
    assert texts_of(tmp_path / "b", ["train"]) == [texts[1].strip(), "x" * 85 + "\n"]
    assert (ledger["documents"]["in"], ledger["documents"]["in_validation"]) == (3, 1)
    # The first part of what is cut is in validation again.
    texts = ["a" * 60, "in the middle\n" + "b" * 60, "in the middle"]
    made = recipe("jsonl", write_jsonl(tmp_path / "c.jsonl", texts), split__by="tail", split__validation_fraction=0.49)
    ledger = make(made, tmp_path / "c").ledger
    assert texts_of(tmp_path / "c", ["train"]) == texts[:1]
    assert texts_of(tmp_path / "c", ["validation"]) == ["b" * 60, "in the middle"]
    assert ledger["utf8_bytes"]["in_validation"] == len("in the middle\n")


def test_copies_in_the_tail_leave_training_if_copies_are_kept(tmp_path: Path) -> None:
    texts = [*sentences(30), *sentences(30)[:3]]
    more = {"dedup__exact": False, "split__by": "tail", "split__validation_fraction": 0.2}
    ledger = make(recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", texts), **more), tmp_path / "out").ledger
    assert texts_of(tmp_path / "out", ["validation"])[-3:] == texts[-3:]
    assert texts_of(tmp_path / "out", ["train"])[0] == texts[3]
    assert ledger["documents"]["in_validation"] == 3


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_nothing_or_everything_can_be_the_tail(tmp_path: Path, tiny_dataset: Path, fraction: float) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(10))
    more = {"split__validation_fraction": fraction, "tokenizer__name": str(tiny_dataset / "tokenizer")}
    ledger = make(recipe("jsonl", path, split__by="tail", **more), tmp_path / "out").ledger
    assert texts_of(tmp_path / "out", ["validation"] if fraction else ["train"]) == sentences(10)
    assert "cut_document" not in ledger


def test_a_single_document_is_offered_the_tail(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(PLAY)
    with pytest.raises(SourceError, match=r"split\.by=tail to hold out the end of the text, even of a single document"):
        prepare(recipe("text", tmp_path / "input.txt"), tmp_path / "out")


# Token ids


def write_ids(tokenizer: Path, path: Path, texts: list[str], eot: int | None) -> Path:
    from packtrain.data.tokens.tokenizer import load_tokenizer

    encoded = load_tokenizer(tokenizer).encode_batch(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array([i for ids in encoded for i in [*ids, *([] if eot is None else [eot])]], "<u2").tofile(path)
    return path


def ids_recipe(tokenizer: Path, path: Path, **more: Any) -> Recipe:
    named = {"tokenizer__name": str(tokenizer), "tokenizer__bos": False, "tokenizer__eos": False}
    return recipe("nanogpt", path, **{**named, **more})


def test_a_stream_of_ids_without_an_end_is_cut_within(tiny_dataset: Path, tmp_path: Path) -> None:
    tokenizer = tiny_dataset / "tokenizer"
    path = write_ids(tokenizer, tmp_path / "all.bin", [PLAY], None)
    ledger = make(ids_recipe(tokenizer, path, split__by="tail"), tmp_path / "out").ledger
    (train,), (held,) = (texts_of(tmp_path / "out", [name]) for name in ("train", "validation"))
    assert train + held == PLAY
    assert len(held) == pytest.approx(len(PLAY) / 10, rel=0.1)
    assert ledger["tokens"]["in"] == path.stat().st_size // 2
    assert ledger["cut_document"]["at"] == ledger["tokens"]["train"]


def test_a_cut_within_ids_adds_the_ends_that_every_document_has(tiny_dataset: Path, tmp_path: Path) -> None:
    from packtrain.data.tokens.tokenizer import load_tokenizer

    opened = load_tokenizer(tiny_dataset / "tokenizer")
    ids = [opened.bos_id, *opened.encode_batch([PLAY])[0], opened.eos_id]
    np.array(ids, "<u2").tofile(tmp_path / "all.bin")
    more = {"split__by": "tail", "tokenizer__bos": True, "tokenizer__eos": True}
    ledger = make(ids_recipe(tiny_dataset / "tokenizer", tmp_path / "all.bin", **more), tmp_path / "out").ledger
    assert ledger["tokens"]["in"] == len(ids) + 2
    assert "".join(texts_of(tmp_path / "out")) == PLAY


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.99])
def test_documents_of_ids_stay_whole(tiny_dataset: Path, tmp_path: Path, fraction: float) -> None:
    tokenizer = tiny_dataset / "tokenizer"
    path = write_ids(tokenizer, tmp_path / "all.bin", sentences(20), 1)
    more = {
        "source__eot": 1,
        "split__by": "tail",
        "split__validation_fraction": fraction,
        "prepare__slice_documents": 6,
    }
    ledger = make(ids_recipe(tokenizer, path, **more), tmp_path / "out").ledger
    train, held = (texts_of(tmp_path / "out", [name]) for name in ("train", "validation"))
    assert [*train, *held] == sentences(20)
    assert train and held and "cut_document" not in ledger


@pytest.mark.parametrize(("pattern", "held"), [(None, "b_val.bin"), ("c*", "c.bin")])
def test_files_of_ids_are_held_out(tiny_dataset: Path, tmp_path: Path, pattern: str | None, held: str) -> None:
    tokenizer = tiny_dataset / "tokenizer"
    for number, name in enumerate(("a.bin", "b_val.bin", "c.bin")):
        write_ids(tokenizer, tmp_path / "in" / name, sentences(5, seed=number), 1)
    more = {"source__eot": 1, "split__by": "files", "split__validation_files": pattern}
    make(ids_recipe(tokenizer, tmp_path / "in", **more), tmp_path / "out")
    assert files_named(tmp_path / "out", "validation") == {held}


# All validation, and what has no meaning


def test_an_owner_without_training_files_makes_a_test_set(
    tmp_path: Path, tiny_dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "in", "test.jsonl", as_rows(HELD))
    with pytest.raises(SourceError, match=r"all validation write tokenizer\.name=FOLDER"):
        prepare(recipe("jsonl", tmp_path / "in", split__by="files"), tmp_path / "out")
    caplog.set_level("WARNING", logger="packtrain")
    named = {"split__by": "files", "tokenizer__name": str(tiny_dataset / "tokenizer")}
    make(recipe("jsonl", tmp_path / "in", **named), tmp_path / "named")
    assert "this dataset is all validation" in caplog.text
    assert texts_of(tmp_path / "named") == HELD[:-1]


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (
            "text",
            {"split__by": "column", "split__column": "x"},
            "no meaning for source.kind=text, only for hf, parquet",
        ),
        ("nanogpt", {"split__by": "hub"}, "no meaning for source.kind=nanogpt, only for hf"),
        ("jsonl", {"split__by": "column"}, "write split.column=NAME"),
        ("jsonl", {"split__column": "x"}, "split.column has no effect with split.by=content"),
        ("jsonl", {"split__keep_leaks": True}, "split.keep_leaks has no effect with split.by=content"),
        ("jsonl", {"split__by": "tail", "split__salt": "x"}, None),
        ("hf", {"split__by": "hub", "split__validation_fraction": 0.5}, "split.validation_fraction has no effect"),
        ("jsonl", {"split__validation_fraction": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_without_effect_are_refused(kind: str, settings: dict[str, Any], says: str | None) -> None:
    more = {"tokenizer__name": "x"} if kind == "nanogpt" else {}
    if says is None:
        assert recipe(kind, Path("x"), **settings, **more).split.salt == "x"
        return
    with pytest.raises(ValidationError, match=says):
        recipe(kind, Path("x"), **settings, **more)


def test_a_function_has_no_files() -> None:
    with pytest.raises(ValidationError, match=r"split\.by=files has no meaning for source\.kind=function"):
        recipe("function", source__function="a.py:f", split__by="files")


def test_recipes_without_the_later_settings_keep_their_hash() -> None:
    assert record_recipe(recipe("jsonl", Path("x")))["split"] == {
        "by": "content",
        "validation_fraction": 0.1,
        "salt": "packtrain",
    }
    assert record_recipe(recipe("jsonl", Path("x"), split__by="tail", split__keep_leaks=True))["split"]["keep_leaks"]


@pytest.mark.parametrize("by", ["files", "column", "tail"])
def test_a_dry_run_gives_the_sides(tmp_path: Path, by: str) -> None:
    rows = [*as_rows(TRAIN, part="train"), *as_rows(HELD, part="test")]
    write(tmp_path / "in", "train.jsonl", rows[: len(TRAIN)])
    write(tmp_path / "in", "val.jsonl", rows[len(TRAIN) :])
    made = recipe("jsonl", tmp_path / "in", split__by=by, **({"split__column": "part"} if by == "column" else {}))
    documents = make(made, tmp_path / "out").ledger["documents"]
    found = estimate(made)
    assert [found["documents"][name] for name in ("train", "validation")] == [
        documents["train"],
        documents["validation"],
    ]
    assert found["documents"]["dropped"].get("in_validation", 0) == documents.get("in_validation", 0)


def test_documents_on_the_wrong_side_are_found(tmp_path: Path) -> None:
    """A manifest that says another pattern than the one that made it, with a checksum that fits."""
    for number, name in enumerate(("a.jsonl", "b.jsonl")):
        write(tmp_path / "in", name, as_rows(sentences(9, seed=number)))
    made = recipe("jsonl", tmp_path / "in", split__by="files", split__validation_files="b*")
    manifest = make(made, tmp_path / "out")
    changed = manifest.model_copy(
        update={"recipe": {**manifest.recipe, "split": {"by": "files", "validation_files": "a*"}}}
    )
    (tmp_path / "out" / "manifest.json").write_bytes(changed.to_bytes())
    with pytest.raises(DatasetError, match="belongs to the other side, by the name of its file"):
        verify(tmp_path / "out")
    changed = manifest.model_copy(update={"ledger": {**manifest.ledger, "leaked_documents": 2}})
    (tmp_path / "out" / "manifest.json").write_bytes(changed.to_bytes())
    with pytest.raises(DatasetError, match="0 validation documents are in training too, but the ledger says 2"):
        verify(tmp_path / "out")
