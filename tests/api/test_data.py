"""Decides whether datasets are read in Python as they were written: documents, rows, and the verbs that take a dataset."""

import json
import pickle

import numpy as np
import pytest
import torch
from tests.command_line import packtrain

import packtrain as pt
from packtrain.api.settings import to_words
from packtrain.errors import ConfigError, DatasetError


def test_settings_are_a_dict_or_words():
    given = {"optim.lr": 3e-4, "train.compile": False, "model.head_dim": None, "evaluate.prompts": ["a", 'b "c"']}
    words = to_words(("train.steps=3", given, {"optim.lr": np.float32(0.5), "train": {"seed": 7}}))
    config = pt.load_config("demo", *words)
    assert (config.train.steps, config.optim.lr, config.train.compile, config.model.head_dim) == (3, 0.5, False, None)
    assert config.evaluate.prompts == ("a", 'b "c"')
    assert words[0] == "train.steps=3" and words[1] == "optim.lr=0.0003"
    with pytest.raises(ConfigError, match="is not a setting"):
        pt.load_config("demo", ["train.steps=3"])
    with pytest.raises(ConfigError, match="does not fit: give a text, number"):
        pt.load_config("demo", {"optim.lr": object()})
    with pytest.raises(ConfigError, match="did you mean"):
        pt.load_config("demo", {"optim.learning_rat": 1})


def test_a_mixture_is_a_dict():
    config = pt.load_config("demo", {"data.dataset": {"a": 0.7, "b": {"weight": 0.3, "max_epochs": 2}}})
    assert [(part.folder, part.weight) for part in config.data.dataset] == [("a", 0.7), ("b", 0.3)]


def test_documents_are_those_of_the_source(dataset):
    documents = pt.open_dataset(dataset)
    held_out = pt.open_dataset(dataset, split="validation")
    source = [json.loads(line) for line in (dataset.parent / "text.jsonl").read_text().splitlines()]
    texts = {line["id"]: line["text"] for line in source}
    assert len(documents) + len(held_out) == len(texts) == 400
    for document in [*documents[:5], documents[-1], held_out[0]]:
        assert document.text.strip() == texts[source[document.source.row]["id"]]
        assert document.ids.dtype == np.uint16 and len(document) == len(document.ids)
        assert documents.tokenizer.decode(document.ids.tolist()) == document.text
    assert sum(len(document) for document in documents) == documents.num_tokens
    assert documents[-1].number == len(documents) - 1 and "train/0" in repr(documents[0])
    with pytest.raises(IndexError, match="there is no 400 among the"):
        documents[400]
    with pytest.raises(ConfigError, match="a dataset has no split 'test'"):
        pt.open_dataset(dataset, split="test")  # type: ignore[arg-type]


def test_rows_hold_each_token_once_as_a_target(dataset):
    documents = pt.open_dataset(dataset)
    stream = np.concatenate([document.ids for document in documents])
    for packing in ("concat", "bestfit"):
        rows = documents.rows(32, packing)
        targets = np.concatenate([row["targets"] for row in rows])
        assert sorted(targets[targets != -100]) == sorted(stream)
    masked = documents.rows(32, document_mask=True)[-1]
    assert {name: str(array.dtype) for name, array in masked.items()} == {
        "inputs": "int64",
        "targets": "int64",
        "segments": "int32",
        "positions": "int64",
    }
    batch = next(iter(torch.utils.data.DataLoader(documents.rows(32), batch_size=4)))
    assert batch["inputs"].shape == (4, 32)
    with pytest.raises(ConfigError, match="packing='best' does not fit"):
        documents.rows(32, "best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seq_len=0"):
        documents.rows(0)


def test_a_file_that_was_changed_is_not_read(dataset, tmp_path):
    import shutil

    copy = shutil.copytree(dataset, tmp_path / "copy")
    [shard] = (copy / "train").glob("*.tok")
    ids = np.fromfile(shard, dtype="<u2")
    ids[0] ^= 1
    ids.tofile(shard)
    with pytest.raises(DatasetError, match="train/"):
        pt.open_dataset(copy)[0]


def test_prepare_and_the_verbs_of_a_dataset(tiny_source, tmp_path):
    settings = {"source.kind": "jsonl", "source.path": tiny_source, "prepare.workers": 1}
    made = {"tokenizer.name": train_tokenizer(tiny_source, tmp_path), "tokenizer.vocab_size": None}
    seen = []
    first = pt.prepare("stdlib", settings, made, out=tmp_path / "a", on_progress=lambda done, _all: seen.append(done))
    assert seen and not first.was_finished
    assert pt.prepare("stdlib", settings, made, out=tmp_path / "a").was_finished
    checked = pt.verify(tmp_path / "a", rebuild=1)
    assert checked.documents == 195 and len(checked.rebuilt) == 1
    pt.prepare("stdlib", settings, made, {"dedup.exact": False}, out=tmp_path / "b")
    found = pt.diff(tmp_path / "a", tmp_path / "b")
    assert not found.is_equal and "dedup.exact" in found.settings
    assert pt.report(tmp_path / "a") == tmp_path / "a" / "report.html"
    pt.export(tmp_path / "a", format="nanogpt", out=tmp_path / "gpt")
    again = pt.import_dataset(tmp_path / "gpt", format="nanogpt", tokenizer=made["tokenizer.name"], out=tmp_path / "c")
    assert again.manifest.ledger["tokens"]["train"] > 0
    assert pt.estimate("stdlib", settings, made)["sample"]["is_whole"]


def train_tokenizer(source, tmp_path):
    pt.train_tokenizer(
        "stdlib",
        {"source.kind": "jsonl", "source.path": source, "tokenizer.vocab_size": 300, "prepare.workers": 1},
        out=tmp_path / "tokenizer",
    )
    return tmp_path / "tokenizer"


def test_inspect_is_what_the_command_prints(dataset):
    for options in (["--step", 1], ["--row", 0, "--limit", 1], ["--document", "doc-7"], []):
        printed = json.loads(packtrain("inspect", dataset, "data.seq_len=32", *options, "--json").out)
        given = {str(name).removeprefix("--"): value for name, value in zip(options[::2], options[1::2], strict=True)}
        assert json.loads(json.dumps(pt.inspect(dataset, {"data.seq_len": 32}, **given))) == printed
    with pytest.raises(ConfigError, match="cannot be combined"):
        pt.inspect(dataset, step=1, row=0)


def test_a_verb_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(pt.prepare)) is pt.prepare
