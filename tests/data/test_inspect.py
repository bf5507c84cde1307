"""A row is traced to its documents and a document to its steps, and both agree with the loader's batches."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from tests.data.memory_stream import MemoryStream
from typer.testing import CliRunner, Result

from packtrain.cli.inspect import inspect
from packtrain.config.data import IGNORE_INDEX, DataConfig
from packtrain.config.load import load_recipe, to_toml
from packtrain.config.run import RunConfig
from packtrain.config.train import TrainConfig
from packtrain.data.feed.course import Course
from packtrain.data.feed.loader import Loader
from packtrain.data.feed.mixture import Mixture, Share
from packtrain.data.format.shards import Dataset, open_dataset
from packtrain.data.inspect import describe_rows, find_documents, find_sources, find_visits, summarize
from packtrain.data.rows.pack import Packing, plan
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import ConfigError, DatasetError, RunError
from packtrain.prepare.run import prepare
from packtrain.runs.layout import RunLayout

SEED, ROWS_PER_STEP, SEQ_LEN = 21, 8, 16


def text_of(number: int) -> str:
    return f"Document {number} says: " + " ".join(f"word{number}x{i}" for i in range(number % 9 * 7 + 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "source.jsonl").write_text(
        "".join(json.dumps({"text": text_of(n), "name": f"id-{n}"}) + "\n" for n in range(90))
    )
    recipe = folder / "recipe.toml"
    recipe.write_text("[source]\nkind='jsonl'\nid_column='name'\n[tokenizer]\nvocab_size=300\n")
    settings = [f"source.path={folder}/source.jsonl", "prepare.workers=1", "prepare.slice_documents=25"]
    prepare(load_recipe(str(recipe), [*settings, "split.validation_fraction=0.2"]).config, folder / "dataset")
    return open_dataset(folder / "dataset")


@pytest.fixture
def run(dataset: Dataset, tmp_path: Path) -> Path:
    """A run's folder as far as inspecting needs it."""
    config = RunConfig(
        data=DataConfig(dataset=str(dataset.folder), seq_len=SEQ_LEN, packing="bestfit"),
        train=TrainConfig(global_batch_tokens=ROWS_PER_STEP * SEQ_LEN, steps=40, seed=SEED),
    )
    layout = RunLayout(tmp_path / "run")
    layout.folder.mkdir()
    layout.config.write_text(to_toml(config))
    recorded = {"folder": str(dataset.folder), "hash": dataset.manifest.hash}
    layout.manifest.write_text(json.dumps({"dataset": recorded}))
    return layout.folder


def call(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(inspect)
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def call_json(*arguments: str | Path) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_rows_decode_to_the_whole_text_of_their_documents(dataset: Dataset, packing: Packing) -> None:
    split = dataset.split("train")
    layout = plan(split, SEQ_LEN, packing)
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    views = describe_rows(split, layout, tokenizer, list(range(layout.num_rows)))
    ids: dict[int, dict[int, list[int]]] = {}
    for view in views:
        assert view.num_targets + view.num_padded == SEQ_LEN
        assert view.targets.count(IGNORE_INDEX) == view.num_padded
        for stretch in view.stretches:
            part = view.targets[stretch.offset : stretch.offset + stretch.length]
            assert tokenizer.decode(part, skip_special=False) == stretch.text
            ids.setdefault(stretch.document, {})[stretch.start] = part
            assert stretch.source.id is not None
            assert stretch.source.row == int(stretch.source.id.removeprefix("id-"))
    sources = find_sources(split, ids)
    assert len(ids) == split.num_documents
    lengths = np.diff(split.document_ends, prepend=0)
    for document, parts in ids.items():
        joined = [token for start in sorted(parts) for token in parts[start]]
        assert len(joined) == lengths[document]
        assert tokenizer.decode(joined) == text_of(sources[document].row)


def test_a_summary_accounts_for_every_token() -> None:
    summary = summarize(Mixture([Share(plan(MemoryStream([3, 0, 9, 2]), 4, "bestfit"), 1)]))
    assert summary["targets"] == 14 and summary["dropped"] == 0 and summary["padded"] == 2
    assert summary["rows"] == 4 and summary["documents"] == 4 and summary["cut_documents"] == 1


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_a_document_is_where_its_visits_say(dataset: Dataset, packing: Packing) -> None:
    split = dataset.split("train")
    rows = plan(split, SEQ_LEN, packing)
    layout = Mixture([Share(rows, 1)])
    lengths = np.diff(split.document_ends, prepend=0)
    starts = split.document_ends - lengths
    loader = Loader(layout, rows_per_step=ROWS_PER_STEP, seed=SEED)
    with loader:
        for document in range(0, split.num_documents, 7):
            seen = find_visits(layout, document, course=Course(ROWS_PER_STEP), seed=SEED, num_epochs=2)
            assert sum(visit.length for visit in seen) == 2 * lengths[document]
            assert {visit.epoch for visit in seen} == {0, 1}
            assert seen == sorted(seen, key=lambda visit: visit.step)
            for visit in seen:
                targets = (
                    loader._read((visit.step - 1) * ROWS_PER_STEP, 1)[0].rows.targets_BT[visit.row_of_step].tolist()
                )
                first = int(starts[document]) + visit.start
                wanted = split.read(first, first + visit.length).tolist()
                offset = next(f.offset for f in rows.sources(visit.row) if f.document == document)
                assert targets[offset : offset + visit.length] == wanted


def test_documents_are_found_by_id_hash_file_and_row(dataset: Dataset) -> None:
    for name in ("train", "validation"):
        split = dataset.split(name)
        for document in range(0, split.num_documents, 5):
            source = find_sources(split, [document])[document]
            assert source.id is not None
            assert find_documents(split, source.id) == [document]
            assert find_documents(split, source.hash) == [document]
            assert find_documents(split, f"{source.file}:{source.row}") == [document]
        assert len(find_documents(split, source.file)) == split.num_documents
        assert find_documents(split, "id-1000") == []


def test_documents_are_found_whatever_their_ids(tmp_path: Path) -> None:
    """Ids that look like files and rows, are long or missing: statistics must never rule out what is there."""
    names = [
        "source.jsonl",
        "source.jsonl:3",
        None,
        "é" * 3000,
        "x" * 5000,
        "",
        "0" * 32,
        "source.jsonl:1000",
        None,
        None,
    ]
    lines = [{"text": text_of(n), **({} if name is None else {"name": name})} for n, name in enumerate(names)]
    (tmp_path / "source.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"source.path={tmp_path}/source.jsonl", "source.id_column=name", "tokenizer.vocab_size=300"]
    more = ["prepare.workers=1", "prepare.slice_documents=3", "split.validation_fraction=0"]
    prepare(load_recipe("jsonl", [*settings, *more]).config, tmp_path / "dataset")
    split = open_dataset(tmp_path / "dataset").split("train")
    assert len(split.shards) == 4
    for number, name in enumerate(names):
        assert find_documents(split, f"source.jsonl:{number}") == ([1, 3] if number == 3 else [number])
        if name is not None and name not in ("source.jsonl", "source.jsonl:3"):
            assert find_documents(split, name) == [number]
    assert find_documents(split, "source.jsonl") == list(range(10))
    assert find_documents(split, find_sources(split, [7])[7].hash) == [7]
    assert find_documents(split, "source.jsonl:10") == find_documents(split, "y") == []
    path = split.folder / f"{split.shards[1].name}.src.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match="is damaged"):
        find_documents(split, "source.jsonl:4")


def test_a_step_of_a_run_is_what_its_loader_hands_out(dataset: Dataset, run: Path) -> None:
    split = dataset.split("train")
    with Loader(plan(split, SEQ_LEN, "bestfit"), rows_per_step=ROWS_PER_STEP, seed=SEED) as loader:
        for step in range(1, 25):
            batch = next(loader)
            if step in (1, 2, 24):
                shown = call_json(run, "--step", str(step))
                assert [row["targets"] for row in shown["rows"]] == batch.rows.targets_BT.tolist()
                assert [row["inputs"] for row in shown["rows"]] == batch.rows.inputs_BT.tolist()
                assert shown["num_targets"] == batch.num_targets
                assert shown["num_steps"] == 40


def test_a_step_for_people_names_documents_and_sources(run: Path) -> None:
    shown = call_json(run, "--step", "2")
    text = call(run, "--step", "2", "--limit", "2").stdout
    assert f"step 2 of 40: 8 rows, {shown['num_targets']} targets" in text
    for row in shown["rows"][:2]:
        assert f"row {row['row']} of the plan" in text
        for stretch in row["stretches"]:
            assert f"train/{stretch['document']}  tokens {stretch['start']} to" in text
            assert f"id {stretch['source']['id']}" in text
            assert stretch["text"].strip() in text
    assert "6 more rows; --limit 8 shows them all" in text


def test_when_a_document_is_trained_on(dataset: Dataset, run: Path) -> None:
    name = find_sources(dataset.split("train"), [3])[3].id
    assert name is not None
    (found,) = call_json(run, "--document", name)["documents"]
    assert (found["split"], found["document"], found["source"]["id"]) == ("train", 3, name)
    assert sum(v["length"] for v in found["visits"] if v["epoch"] == 0) == found["tokens"]
    first = found["visits"][0]
    assert (
        f"epoch 0  step {first['step']}  row {first['row_of_step']} of the step" in call(run, "--document", name).stdout
    )
    assert call_json(run, "--document", "train/3")["documents"] == [found]


def test_of_many_documents_the_first_are_told(run: Path, dataset: Dataset) -> None:
    total = sum(dataset.split(name).num_documents for name in ("train", "validation"))
    text = call(run, "--document", "source.jsonl").stdout
    assert text.count("source.jsonl:") == 10
    assert f"{total - 10} more documents have this name" in text
    assert call(run, "--document", "source.jsonl", "--limit", "3").stdout.count("source.jsonl:") == 3
    told = call_json(run, "--document", "source.jsonl")
    assert told["num_documents"] == len(told["documents"]) == total


def test_a_held_out_or_unknown_document_is_said_to_be_so(dataset: Dataset, run: Path) -> None:
    name = find_sources(dataset.split("validation"), [0])[0].id
    assert name is not None
    (found,) = call_json(run, "--document", name)["documents"]
    assert (found["split"], found["visits"]) == ("validation", [])
    assert "held out for validation: no step trains on it" in call(run, "--document", name).stdout
    assert call_json(run, "--document", "id-1000")["documents"] == []
    assert "`prepare` dropped it" in call(run, "--document", "id-1000").stdout


def test_a_dataset_is_laid_out_by_settings(dataset: Dataset) -> None:
    settings = ("data.seq_len=32", "train.global_batch_tokens=64", "data.packing=bestfit")
    summary = call_json(dataset.folder, *settings)
    assert summary["plan"]["seq_len"] == 32 and summary["plan"]["packing"] == "bestfit"
    assert summary["rows_per_step"] == 2
    assert summary["plan"]["targets"] == summary["splits"]["train"]["tokens"]
    assert "0 dropped" in call(dataset.folder, *settings).stdout
    (row,) = call_json(dataset.folder, *settings, "--row", "0")["rows"]
    assert row["row"] == 0 and len(row["targets"]) == 32


def test_a_run_is_inspected_from_another_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration may name the dataset relative to where the run was started."""
    layout = RunLayout(run)
    folder = json.loads(layout.manifest.read_text())["dataset"]["folder"]
    relative = os.path.relpath(folder, tmp_path)
    layout.config.write_text(layout.config.read_text().replace(folder, relative))
    monkeypatch.chdir(run)
    assert call_json(run)["dataset"] == folder


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    evil = "\x1b]0;title\x07" + "evil " * 40
    source.write_text("".join(json.dumps({"text": f"{evil}{n}"}) + "\n" for n in range(20)))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[source]\nkind='jsonl'\n[tokenizer]\nvocab_size=300\n[clean]\ncontrol_characters=false\n")
    prepare(
        load_recipe(str(recipe), [f"source.path={source}", "split.validation_fraction=0"]).config, tmp_path / "dataset"
    )
    text = call(tmp_path / "dataset", "--row", "0").stdout
    assert "\\x1b]0;title\\x07" in text
    assert "\x1b" not in text and "\x07" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--step", "0"), "steps count from 1"),
        (("--row", "1000000"), "this plan has rows 0 to"),
        (("--row", "-1"), "this plan has rows 0 to"),
        (("--row", "1", "--step", "1"), "cannot be combined"),
        (("data.seq_len=4",), "settings are fixed"),
    ],
)
def test_questions_without_an_answer_are_refused(run: Path, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        call(run, *arguments)


def test_a_dataset_that_changed_under_its_run_is_refused(run: Path) -> None:
    layout = RunLayout(run)
    recorded = json.loads(layout.manifest.read_text())
    recorded["dataset"]["hash"] = "another"
    layout.manifest.write_text(json.dumps(recorded))
    with pytest.raises(DatasetError, match=r"has changed since .* was trained on it"):
        call(run, "--step", "1")


def test_a_damaged_manifest_of_a_run_is_refused(run: Path) -> None:
    layout = RunLayout(run)
    layout.manifest.write_text(layout.manifest.read_text()[:20])
    with pytest.raises(RunError, match=r"manifest\.json is damaged"):
        call(run, "--step", "1")


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a prepared dataset"):
        call(tmp_path)
