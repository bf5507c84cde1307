"""Whether preparation gives the same bytes each time, keeps the right documents, and does again only what changed."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.corpora import LLAMA2, files_of, is_validation, recipe, sentences, texts_of, write_jsonl

from packtrain.config.load import to_toml
from packtrain.config.recipe import CleanConfig, Recipe
from packtrain.data.format.shards import open_dataset
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import DatasetError, Interrupted, SourceError, TokenizerError
from packtrain.prepare.copies.equal import hash_content
from packtrain.prepare.run import prepare, prepare_tokenizer
from packtrain.prepare.steps.finished import announce
from packtrain.prepare.text.clean import Cleaner
from packtrain.storage.atomic import temporary_name
from packtrain.storage.store import LocalStore


@pytest.mark.parametrize("batch_bytes", [1, 3_000])
def test_the_same_bytes_for_any_size_of_batch(
    tiny_source: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr("packtrain.prepare.steps.encode._BATCH_BYTES", batch_bytes)
    prepare(recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_dataset)


def test_the_same_bytes_when_the_clock_goes_backwards_and_files_are_from_the_future(
    tiny_source: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copy(tiny_source, tmp_path))
    os.utime(copy, (2**32, 2**32))
    ticks = iter(range(2**33, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    made = recipe("jsonl", copy, source__id_column="id", prepare__slice_documents=50)
    stop_when(made, tmp_path / "out", lambda work: len(list(work.glob("tokens/*.json"))) >= 2)
    os.utime(copy, (0, 0))
    assert prepare(made, tmp_path / "out").tokenized < 4
    for name in ("train", "validation", "tokenizer"):
        assert files_of(tmp_path / "out" / name) == files_of(tiny_dataset / name)


def test_nothing_but_the_dataset_is_left(tiny_dataset: Path) -> None:
    """One copy on the disk: no cache, no lock, no work folder."""
    assert sorted(p.name for p in tiny_dataset.iterdir()) == ["manifest.json", "tokenizer", "train", "validation"]
    manifest = open_dataset(tiny_dataset).manifest
    for name in ("train", "validation"):
        expected = {f"{shard.name}.{suffix}" for shard in manifest.splits[name] for suffix in shard.files}
        assert {path.name for path in (tiny_dataset / name).iterdir()} == expected


@pytest.mark.slow
def test_the_same_bytes_when_a_worker_is_killed(tmp_path: Path) -> None:
    import psutil

    made = recipe(
        "jsonl",
        write_jsonl(tmp_path / "a.jsonl", sentences(2000)),
        prepare__slice_documents=200,
        prepare__workers=2,
    )
    prepare(made, tmp_path / "clean")
    process = run_alone(made, tmp_path / "out")
    victims = 0
    while process.poll() is None:
        try:
            for child in psutil.Process(process.pid).children():
                if victims < 1 and "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    victims += 1
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.01)
    assert (process.returncode, victims) == (0, 1)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


def test_wherever_source_and_tokenizer_lie(tiny_source: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(tiny_source, folder)
    made = recipe("jsonl", folder / "tiny.jsonl", source__id_column="id", prepare__slice_documents=50)
    prepared = prepare(made, tmp_path / "out")
    original = open_dataset(tiny_dataset).manifest
    assert prepared.manifest.hash == original.hash
    assert files_of(tmp_path / "out" / "train") == files_of(tiny_dataset / "train")


@pytest.mark.parametrize("slice_documents", [7, 33, 1000])
def test_documents_do_not_depend_on_slices(
    tiny_source: Path, tiny_dataset: Path, tmp_path: Path, slice_documents: int
) -> None:
    prepare(recipe("jsonl", tiny_source, prepare__slice_documents=slice_documents), tmp_path / "out")
    assert texts_of(tmp_path / "out") == texts_of(tiny_dataset)


def test_it_is_what_a_plain_loop_keeps(tmp_path: Path) -> None:
    texts = [
        *sentences(120),
        "",
        " \n",
        *[t.upper() for t in sentences(30)],
        "a  b",
        "A b",
        "x" * 3,
        *sentences(5, seed=9),
    ]
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", texts), clean__min_chars=4, prepare__slice_documents=20)
    prepare(made, tmp_path / "out")
    clean = Cleaner(CleanConfig(min_chars=4))
    seen: set[bytes] = set()
    kept: dict[str, list[str]] = {"train": [], "validation": []}
    for raw in texts:
        text, reason = clean(raw)
        if reason is None and hash_content(text) not in seen:
            seen.add(hash_content(text))
            kept["validation" if is_validation(hash_content(text), made.split) else "train"].append(text)
    assert texts_of(tmp_path / "out", ["train"]) == kept["train"]
    assert texts_of(tmp_path / "out", ["validation"]) == kept["validation"]


def test_copies_stay_where_they_are_wanted_and_never_on_both_sides(tmp_path: Path) -> None:
    texts = sentences(60) * 3
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", texts), dedup__exact=False)
    ledger = prepare(made, tmp_path / "out").manifest.ledger
    assert ledger["documents"]["duplicates"] == 0
    sides = [texts_of(tmp_path / "out", [name]) for name in ("train", "validation")]
    assert len(sides[0]) + len(sides[1]) == 180
    assert not set(sides[0]) & set(sides[1])
    assert ledger["random_split"]["leaked"] == pytest.approx(1 - 0.1**2)


def test_a_literal_control_token_is_text(tmp_path: Path) -> None:
    texts = [f"{t} <|bos|> and <|eos|></s>" for t in sentences(60)]
    prepare(recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", texts)), tmp_path / "out")
    assert sorted(texts_of(tmp_path / "out")) == sorted(texts)
    split = open_dataset(tmp_path / "out").split("train")
    stream = split.read(0, split.num_tokens)
    assert np.isin(stream, [0, 1]).sum() == 2 * split.num_documents


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (False, False)])
def test_bos_and_eos_are_as_asked_for(tmp_path: Path, bos: bool, eos: bool) -> None:
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(60)), tokenizer__bos=bos, tokenizer__eos=eos)
    prepare(made, tmp_path / "out")
    split = open_dataset(tmp_path / "out").split("train")
    stream, ends = split.read(0, split.num_tokens), split.document_ends
    starts = np.concatenate([[0], ends[:-1]])
    assert (stream[starts] == 0).all() == bos
    assert (stream[ends - 1] == 1).all() == eos


@pytest.mark.skipif(not LLAMA2.is_dir(), reason="the Llama-2 tokenizer is not on this machine")
@pytest.mark.slow
def test_ids_are_the_tokenizers_own(tmp_path: Path) -> None:
    texts = [*sentences(60), "naïve 日本語 🤖 </s><s> end"]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    prepare(recipe("jsonl", path, tokenizer__name=str(LLAMA2), split__validation_fraction=0.0), tmp_path / "out")
    split = open_dataset(tmp_path / "out").split("train")
    tokenizer = load_tokenizer(LLAMA2)
    expected = [i for text in texts for i in (1, *tokenizer.encode(text), 2)]
    assert split.read(0, split.num_tokens).tolist() == expected
    assert open_dataset(tmp_path / "out").split("validation").num_documents == 0


def test_a_wide_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(70_000)}
    raw = Tokenizer(models.WordLevel({**words, "<unk>": 70_000}, unk_token="<unk>"))
    raw.save(str(tmp_path / "tokenizer.json"))
    path = write_jsonl(tmp_path / "a.jsonl", ["w69999"] + [f"w{i}" for i in range(40)])
    made = recipe(
        "jsonl",
        path,
        tokenizer__name=str(tmp_path),
        tokenizer__bos=False,
        tokenizer__eos=False,
        split__validation_fraction=0.0,
    )
    manifest = prepare(made, tmp_path / "out").manifest
    assert manifest.dtype == "u4"
    assert open_dataset(tmp_path / "out").split("train").read(0, 2).tolist() == [69_999, 0]


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": t}) for t in [*sentences(100), *sentences(8), "", "ab"]]
    path.write_bytes("\n".join([*good, "{", '{"text": 3}']).encode() + b'\n{"text": "\xff"}\n')
    made = recipe("jsonl", path, source__max_bad_fraction=0.05, clean__min_chars=3, prepare__slice_documents=40)
    manifest = prepare(made, tmp_path / "out").manifest
    documents, tokens = manifest.ledger["documents"], manifest.ledger["tokens"]
    assert documents["in"] == 113
    assert documents["duplicates"] == 8
    assert documents["dropped"] == {"broken_row": 1, "no_text": 1, "not_utf8": 1, "empty": 1, "too_short": 1}
    assert documents["train"] + documents["validation"] == 100
    assert documents["in"] == 100 + 8 + sum(documents["dropped"].values())
    dataset = open_dataset(tmp_path / "out")
    for name in ("train", "validation"):
        assert tokens[name] == dataset.split(name).num_tokens == int(dataset.split(name).document_ends[-1])
        assert documents[name] == dataset.split(name).num_documents
    assert tokens["in"] == tokens["train"] + tokens["validation"]
    assert sum(manifest.length_histogram.values()) == 100
    sizes = manifest.ledger["utf8_bytes"]
    kept = sum(len(t.encode()) for t in texts_of(tmp_path / "out"))
    assert sizes["train"] + sizes["validation"] == kept
    assert sizes["duplicates"] == sum(len(t.encode()) for t in sentences(8))
    assert sizes["dropped"] == {"broken_row": 0, "no_text": 0, "not_utf8": 0, "empty": 0, "too_short": 2}
    assert sizes["in"] == kept + sizes["duplicates"] + 2
    assert manifest.ledger["samples"]["broken_row"][0].startswith("a.jsonl row 110: Expecting property name")
    assert manifest.ledger["duplicate_rate"] == pytest.approx(8 / 108)
    assert manifest.ledger["random_split"]["leaked"] == pytest.approx(16 * 0.9 / 108)


def test_a_finished_dataset_is_left_alone(tiny_source: Path, tiny_dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_dataset.rglob("*") if path.is_file()}
    made = recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50, prepare__workers=2)
    again = prepare(made, tiny_dataset)
    assert again.was_finished
    assert {path: path.stat().st_mtime_ns for path in tiny_dataset.rglob("*") if path.is_file()} == before


def test_a_manifest_whose_writer_was_killed_is_not_left_beside_the_whole_one(
    tiny_source: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    temporary_name(copy / "manifest.json").write_bytes(b"{")
    made = recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50)
    assert prepare(made, copy).was_finished
    assert files_of(copy) == files_of(tiny_dataset)


@pytest.mark.parametrize(
    "change", [{"split__salt": "x"}, {"tokenizer__vocab_size": 301}, {"prepare__slice_documents": 9}]
)
def test_another_recipe_is_refused(tiny_source: Path, tiny_dataset: Path, change: dict[str, Any]) -> None:
    before = files_of(tiny_dataset)
    settings = {"source__id_column": "id", "prepare__slice_documents": 50, **change}
    with pytest.raises(DatasetError, match=r"another recipe or of other source files; choose another --out"):
        prepare(recipe("jsonl", tiny_source, **settings), tiny_dataset)
    assert files_of(tiny_dataset) == before


def test_a_source_that_changed_is_refused_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(60))
    prepare(recipe("jsonl", path), tmp_path / "out")
    write_jsonl(path, sentences(61))
    with pytest.raises(DatasetError, match="other source files"):
        prepare(recipe("jsonl", path), tmp_path / "out")
    path.unlink()
    assert prepare(recipe("jsonl", path), tmp_path / "out").was_finished


def test_finished_slices_are_used_again(tmp_path: Path) -> None:
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(200)), prepare__slice_documents=20)
    out = tmp_path / "out"
    stop_when(made, out, lambda work: len(list(work.glob("tokens/*.json"))) >= 3)
    done = len(list(out.glob(".work/tokens/*.json")))
    assert 3 <= done < 10
    again = prepare(made, out)
    assert (again.scanned, again.tokenized) == (0, 10 - done)


def test_no_clock_and_no_time_stamp_decides_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(200)), prepare__slice_documents=20)
    out = tmp_path / "out"
    stop_when(made, out, lambda work: len(list(work.glob("tokens/*.json"))) >= 3)
    for number, path in enumerate(sorted(out.rglob("*"))):
        os.utime(path, (0, 4e9 * (number % 2)))
    os.utime(tmp_path / "a.jsonl", (4e9, 4e9))
    monkeypatch.setattr(time, "time", lambda: -1e6)
    assert 0 < prepare(made, out).tokenized < 8
    assert prepare(made, out).was_finished
    prepare(made, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")


def test_an_interrupted_publication_is_finished(tiny_dataset: Path, tiny_source: Path, tmp_path: Path) -> None:
    # As a kill between two renames leaves it: some files in their places, the rest still in the work folder.
    out = tmp_path / "out"
    shutil.copytree(tiny_dataset, out)
    names = sorted(name for name in files_of(out) if name != "manifest.json")
    moves = [(f".work/tokens/{number}", name) for number, name in enumerate(names)]
    announce(LocalStore(out), (out / "manifest.json").read_bytes(), moves)
    (out / "manifest.json").unlink()
    (out / ".work" / "tokens").mkdir()
    for old, new in moves[5:]:
        (out / new).rename(out / old)
    made = recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50)
    assert prepare(made, out).was_finished
    assert files_of(out) == files_of(tiny_dataset)


# A run that was stopped and continues with another recipe or source does only what depends on the change again.


def begun(out: Path, texts: list[str]) -> None:
    """Stop with four of ten slices tokenized, at least."""
    made = recipe("jsonl", write_jsonl(out.parent / "a.jsonl", texts), prepare__slice_documents=20)
    stop_when(made, out, lambda work: len(list(work.glob("tokens/*.json"))) >= 4)


@pytest.mark.parametrize(
    "change",
    [{"split__salt": "x"}, {"tokenizer__vocab_size": 301}, {"tokenizer__eos": False}, {"dedup__exact": False}],
    ids=str,
)
def test_scans_serve_another_recipe(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "out"
    begun(out, [*sentences(140), *sentences(60)])
    made = recipe("jsonl", tmp_path / "a.jsonl", prepare__slice_documents=20, **change)
    prepared = prepare(made, out)
    assert (prepared.scanned, prepared.tokenized) == (0, 10)
    prepare(made, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")


def test_other_cleaning_redoes_everything(tmp_path: Path) -> None:
    begun(tmp_path / "out", sentences(200))
    made = recipe("jsonl", tmp_path / "a.jsonl", prepare__slice_documents=20, clean__min_chars=40)
    prepared = prepare(made, tmp_path / "out")
    assert (prepared.scanned, prepared.tokenized) == (10, 10)
    prepare(made, tmp_path / "clean")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


@pytest.mark.parametrize("where", ["a file behind", "a file before", "lines at the end"])
@pytest.mark.slow
def test_more_text_keeps_finished_slices_and_sides(tiny_dataset: Path, tmp_path: Path, where: str) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    texts = sentences(200)
    write_jsonl(source / "m.jsonl", texts)
    named = {"tokenizer__name": str(tiny_dataset / "tokenizer"), "prepare__slice_documents": 20}
    made = recipe("jsonl", source, **named)
    stop_when(made, out, lambda work: len(list(work.glob("tokens/*.json"))) >= 4)
    done = len(list(out.glob(".work/tokens/*.json")))
    more = sentences(50, seed=1)
    if where == "lines at the end":
        write_jsonl(source / "m.jsonl", [*texts, *more])
    else:
        write_jsonl(source / ("z.jsonl" if where == "a file behind" else "a.jsonl"), more)
    prepared = prepare(made, out)
    assert (prepared.scanned, prepared.tokenized) == (3, 13 - done)
    prepare(made, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")
    # No old document changed sides.
    write_jsonl(source / "m.jsonl", texts)
    for name in ("a", "z"):
        (source / f"{name}.jsonl").unlink(missing_ok=True)
    prepare(made, tmp_path / "old")
    for side in ("train", "validation"):
        assert set(texts_of(tmp_path / "old", [side])) <= set(texts_of(out, [side]))


def test_a_scan_of_other_content_is_found_out_and_made_again(tmp_path: Path) -> None:
    # As a source leaves it that changed after it was planned, and changed back.
    out = tmp_path / "out"
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(60)), prepare__slice_documents=20)
    stop_when(made, out, lambda work: len(list(work.glob("scan/*"))) == 3)
    for path in out.glob(".work/scan/*"):
        data = bytearray(path.read_bytes())
        # The hash of the first row's text, behind its content hash.
        data[data.index(b"\n") + 1 + 16] ^= 1
        path.write_bytes(data)
    with pytest.raises(SourceError, match=r"changed while it was prepared; run the same command again"):
        prepare(made, out)
    for _ in range(2):
        with pytest.raises(SourceError, match="changed while"):
            prepare(made, out)
    again = prepare(made, out)
    assert again.scanned == 1
    prepare(made, tmp_path / "clean")
    assert files_of(out) == files_of(tmp_path / "clean")


def test_results_of_another_choice_are_dropped(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun(out, sentences(200))
    before = {path.name for path in out.glob(".work/tokens/*")}
    made = recipe("jsonl", tmp_path / "a.jsonl", prepare__slice_documents=20, split__salt="x")
    stop_when(made, out, lambda work: any(work.glob("tokens/*.json")))
    assert not before & {path.name for path in out.glob(".work/tokens/*")}


def test_a_folder_in_use(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with LocalStore(out).lock():
        with pytest.raises(DatasetError, match="being prepared by another process"):
            prepare(recipe("jsonl", tiny_source), out)


def test_a_folder_with_other_files(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match="contains other files, which are left alone"):
        prepare(recipe("jsonl", tiny_source), tmp_path)
    with pytest.raises(DatasetError, match="is a file"):
        prepare(recipe("jsonl", tiny_source), tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system that nobody can write to")
def test_a_folder_that_cannot_be_written(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("/sys/kernel/packtrain", tmp_path / "file" / "out"):
        with pytest.raises(DatasetError, match=rf"--out {out} cannot be written \(.*\); choose another folder"):
            prepare(recipe("jsonl", tiny_source), out)


def test_a_source_that_cannot_be_read_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        prepare(recipe("jsonl", tmp_path / "none.jsonl"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 90 + "broken\n" * 10)
    with pytest.raises(
        SourceError, match=r"10 of 100 rows cannot be read \(10 broken_row\).*max_bad_fraction=0\.01.*row 90"
    ):
        prepare(recipe("jsonl", path), tmp_path / "out")


def test_a_wrong_text_column_names_the_keys_there(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(20), key="content")
    with pytest.raises(SourceError, match=r"20 of 20 rows .*its keys are content, id.*set source\.text_column"):
        prepare(recipe("jsonl", path), tmp_path / "out")


@pytest.mark.parametrize(("fraction", "side"), [(0.0001, "validation"), (0.999, "train")])
def test_one_side_empty(tmp_path: Path, fraction: float, side: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sentences(3))
    with pytest.raises(SourceError, match=rf"the {side} side of the split is empty, as all 3 documents"):
        prepare(recipe("jsonl", path, split__validation_fraction=fraction), tmp_path / "out")


def test_nothing_left(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["", " "])
    with pytest.raises(SourceError, match="no document is left after cleaning"):
        prepare(recipe("jsonl", path), tmp_path / "out")


def test_a_tokenizer_without_the_control_token_asked_for(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    path = write_jsonl(tmp_path / "a.jsonl", sentences(60))
    with pytest.raises(TokenizerError, match=r"has no BOS token, which tokenizer\.bos=true needs"):
        prepare(recipe("jsonl", path, tokenizer__name=str(tmp_path)), tmp_path / "out")


@pytest.mark.slow
def test_no_room_on_the_disk(tmp_path: Path) -> None:
    # The last slice is far larger than the others, so that those are finished before room runs out.
    path = write_jsonl(tmp_path / "a.jsonl", [*sentences(40), *["many words " * 3_000 + str(i) for i in range(10)]])
    made = recipe("jsonl", path, prepare__slice_documents=20)
    out = tmp_path / "out"
    process = run_alone(made, out, largest_file=6_000)
    error = process.communicate()[1].decode()
    assert process.returncode == 4
    assert re.search(r"no room left on the disk.*finished work is kept", error)
    assert (out / ".work").is_dir()
    assert not list(out.rglob("*.tmp"))
    assert prepare(made, out).manifest.ledger["documents"]["in"] == 50


def test_progress_reaches_its_total(tiny_source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(
        recipe("jsonl", tiny_source, prepare__slice_documents=40),
        tmp_path / "out",
        on_progress=lambda *a: seen.append(a),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (200, 200)


def test_ctrl_c_keeps_what_was_finished(tmp_path: Path) -> None:
    made = recipe("jsonl", write_jsonl(tmp_path / "a.jsonl", sentences(60)), prepare__slice_documents=20)

    def interrupt(done: int, total: int) -> None:
        if done > total // 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="run the same command to continue"):
        prepare(made, tmp_path / "out", on_progress=interrupt)
    prepare(made, tmp_path / "out")
    prepare(made, tmp_path / "clean")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "clean")


def test_it_is_the_one_that_prepare_trains(tiny_source: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    made = recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50)
    trained = prepare_tokenizer(made, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tiny_dataset / "tokenizer")
    assert trained.hash == open_dataset(tiny_dataset).manifest.tokenizer.hash
    with pytest.raises((TokenizerError, DatasetError)):
        prepare_tokenizer(made, tmp_path / "out")


def test_validation_text_has_no_part_in_it(tmp_path: Path) -> None:
    texts = sentences(300)
    held_out = [t for t in texts if is_validation(hash_content(t), recipe("stdlib").split)]
    changed = [t + " qxzqxzqxz" if t in held_out else t for t in texts]
    changed = [
        c
        for c, t in zip(changed, texts, strict=True)
        if t == c or is_validation(hash_content(c), recipe("stdlib").split)
    ]
    trained = []
    for name, chosen in (("a", [t for t in texts if t not in held_out]), ("b", changed)):
        made = recipe("jsonl", write_jsonl(tmp_path / f"{name}.jsonl", chosen), split__validation_fraction=0.1)
        if name == "a":
            made = recipe("jsonl", tmp_path / "a.jsonl", split__validation_fraction=0.0)
        trained.append(prepare_tokenizer(made, tmp_path / name).hash)
    assert trained[0] == trained[1]


def test_a_recipe_that_names_one_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"write tokenizer\.name= and tokenizer\.vocab_size=32000"):
        prepare_tokenizer(recipe("jsonl", tiny_source, tokenizer__name="x/y"), tmp_path / "out")


ALONE = """
import resource
import sys
from pathlib import Path
from packtrain.config.load import from_toml
from packtrain.config.recipe import Recipe
from packtrain.errors import PacktrainError
from packtrain.prepare.run import prepare
made = from_toml(Recipe, Path(sys.argv[1]).read_text(), sys.argv[1])
if limit := int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    prepare(made, Path(sys.argv[2]))
except PacktrainError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run_alone(made: Recipe, out: Path, *, largest_file: int = 0) -> subprocess.Popen[bytes]:
    """Prepare in a process of its own, which can be killed.

    With `largest_file`, in bytes, the kernel refuses to write on beyond, as on a full disk.
    """
    path = out.with_suffix(".toml")
    path.write_text(to_toml(made))
    command = [sys.executable, "-c", ALONE, str(path), str(out), str(largest_file)]
    return subprocess.Popen(command, stderr=subprocess.PIPE if largest_file else None)


def stop_when(made: Recipe, out: Path, condition) -> None:
    """Prepare until a condition on the work folder holds, then stop as Ctrl-C does."""

    def check(done: int, total: int) -> None:  # noqa: ARG001
        if condition(out / ".work"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        prepare(made, out, on_progress=check)
