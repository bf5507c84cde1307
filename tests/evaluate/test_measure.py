"""Whether `packtrain evaluate` measures a run on the right data, writes what it prints, and refuses what does not fit."""

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from typer.testing import CliRunner

import packtrain as pt
from packtrain.cli.evaluate import evaluate
from packtrain.config.load import load_run_config, to_toml
from packtrain.data.feed.datasets import as_run_datasets
from packtrain.data.format.shards import Dataset
from packtrain.data.rows.pack import plan
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    ModelError,
    NonFiniteError,
    RunError,
    TokenizerError,
)
from packtrain.evaluate.documents import score_documents
from packtrain.evaluate.loss import choose_held_out, evaluate_rows
from packtrain.evaluate.measure import evaluate_run, open_evaluation_data
from packtrain.evaluate.texts import choose_documents
from packtrain.export.huggingface import model_config, tokenizer_config, tokenizer_json
from packtrain.model.init import build
from packtrain.pretrained.open import open_model
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout, write_json
from tests.evaluate.conftest import SEQ_LEN, make_dataset
from tests.runs.saved import save_alone

YARDSTICKS = ["uniform", "unigram", "bigram", "zlib -9", "xz -9", "zstd -19"]


@pytest.fixture
def run(tmp_path: Path, dataset: Dataset, tokenizer: Tokenizer) -> RunLayout:
    """A run with checkpoints at steps 1 (the better one) and 2, as training leaves it."""
    settings = [
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=24",
        f"model.vocab_size={tokenizer.vocab_size}",
        f"data.dataset={dataset.folder}",
        f"data.seq_len={SEQ_LEN}",
        "evaluate.tokens=640",
        "train.device=cpu",
        "train.precision=fp32",
    ]
    config = load_run_config("demo", settings).config
    layout = RunLayout(tmp_path / "run")
    layout.folder.mkdir()
    layout.config.write_text(to_toml(config))
    write_json(layout.manifest, {"dataset": describe(dataset)})
    tokenizer.save(layout.tokenizer)
    for step, loss in ((1, 3.0), (2, 4.0)):
        tensors = dict(build(config.model, seed=step).named_parameters())
        save_alone(layout, tensors, {"step": step, "val_loss": loss})
    return layout


def describe(dataset: Dataset) -> dict[str, Any]:
    info = dataset.manifest.tokenizer
    tokenizer = {"hash": info.hash, "adds_bos": info.adds_bos, "adds_eos": info.adds_eos}
    return {"folder": str(dataset.folder), "hash": dataset.manifest.hash, "tokenizer": tokenizer}


@contextlib.contextmanager
def silent(_name, _unit):
    yield lambda _done, _total: None


def invoke(*words: str) -> str:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_command_writes_what_it_prints(run: RunLayout, dataset: Dataset, tokenizer: Tokenizer) -> None:
    printed = json.loads(invoke(str(run.folder), "--json"))
    assert printed == json.loads(run.evaluation.read_text())
    assert printed["step"] == 2
    assert printed["dataset"]["hash"] == dataset.manifest.hash

    opened = checkpoint.open_run(run.folder)
    rows = plan(dataset.split("validation"), SEQ_LEN, "concat")
    held_out = choose_held_out(rows, tokenizer, adds_bos=True, tokens=640)
    nats = evaluate_rows(opened.model, held_out, micro_batch_size=4)
    assert nats is not None
    expected = held_out.result(nats)
    assert printed["model"]["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert printed["model"]["perplexity"] == pytest.approx(math.exp(expected.loss), rel=1e-6)
    assert printed["model"]["bits_per_byte"] == pytest.approx(expected.bits_per_byte, rel=1e-6)
    assert (printed["model"]["num_tokens"], printed["model"]["num_bytes"]) == (640, expected.num_bytes)
    assert [y["name"] for y in printed["yardsticks"]] == YARDSTICKS


def test_which_checkpoint_and_how_much(run: RunLayout, dataset: Dataset) -> None:
    assert json.loads(invoke(str(run.folder), "--best", "--json"))["step"] == 1
    everything = json.loads(invoke(str(run.folder), "--step", "1", "--all", "--json"))
    assert everything["step"] == 1
    assert everything["model"]["num_tokens"] == dataset.split("validation").num_tokens
    assert everything["model"]["num_bytes"] == dataset.split("validation").utf8_bytes


def test_people_get_a_table(run: RunLayout) -> None:
    printed = invoke(str(run.folder))
    figures = json.loads(run.evaluation.read_text())
    for name, row in [("this model", figures["model"]), *((y["name"], y) for y in figures["yardsticks"])]:
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert f"{row['bits_per_byte']:.4f}" in line


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["--all", "--tokens", "64"], ConfigError, "keep one"),
        (["--best", "--step", "1"], ConfigError, "keep one"),
        (["--tokens", "5"], ConfigError, "--tokens 32"),
        (["--step", "7"], CheckpointError, "it has 1, 2"),
        (["--dataset", "nowhere"], DatasetError, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused(run: RunLayout, words: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        invoke(str(run.folder), *words)
    assert not run.evaluation.exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a run nor a model"):
        invoke(str(tmp_path))


def test_a_dataset_of_another_tokenizer_is_refused(run: RunLayout, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", "tokenizer.vocab_size=380")
    with pytest.raises(TokenizerError, match="another tokenizer"):
        evaluate_run(checkpoint.open_run(run.folder), as_run_datasets(other), tokens=None, progress=silent)


def test_a_dataset_of_the_same_tokenizer_is_welcome(run: RunLayout, tmp_path: Path) -> None:
    same = [f"tokenizer.name={run.tokenizer}", "tokenizer.vocab_size="]
    other = make_dataset(tmp_path / "other", *same, "split.salt=other")
    found = evaluate_run(checkpoint.open_run(run.folder), as_run_datasets(other), tokens=None, progress=silent)
    assert found["dataset"]["hash"] == other.manifest.hash
    assert found["model"]["num_bytes"] == other.split("validation").utf8_bytes
    nothing_held_out = make_dataset(tmp_path / "nothing", *same, "split.validation_fraction=0.0")
    with pytest.raises(DatasetError, match="has no validation split"):
        evaluate_run(checkpoint.open_run(run.folder), as_run_datasets(nothing_held_out), tokens=None, progress=silent)


def test_a_dataset_that_is_all_validation_is_measured(run: RunLayout, tmp_path: Path) -> None:
    same = [f"tokenizer.name={run.tokenizer}", "tokenizer.vocab_size=", "split.validation_fraction=1"]
    other = make_dataset(tmp_path / "other", *same)
    found = evaluate_run(checkpoint.open_run(run.folder), as_run_datasets(other), tokens=None, progress=silent)
    assert other.split("train").num_documents == 0
    assert (
        found["model"]["num_bytes"] == other.split("validation").utf8_bytes == other.manifest.ledger["utf8_bytes"]["in"]
    )
    # There is no training text to count tokens of.
    assert [yardstick["name"] for yardstick in found["yardsticks"]] == [YARDSTICKS[0], *YARDSTICKS[3:]]


def test_the_training_dataset_is_found_from_any_folder(
    run: RunLayout, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run.config.write_text(run.config.read_text().replace(str(dataset.folder), "data/relative"))
    monkeypatch.chdir(tmp_path)
    [source] = open_evaluation_data(checkpoint.open_run(run.folder)).parts
    assert source.dataset.folder == dataset.folder


def test_a_changed_training_dataset_is_warned_of(
    run: RunLayout, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(run.manifest, {"dataset": describe(dataset) | {"hash": "another"}})
    caplog.set_level("WARNING", logger="packtrain")
    open_evaluation_data(checkpoint.open_run(run.folder))
    assert "may have been trained on" in caplog.text


def test_documents_are_scored_beside_the_rows(run: RunLayout, dataset: Dataset) -> None:
    rows = json.loads(invoke(str(run.folder), "--all", "--json"))
    documents = json.loads(invoke(str(run.folder), "--all", "--protocol", "documents", "--overlap", "5", "--json"))
    assert rows["protocol"] == {"name": "rows", "window": SEQ_LEN, "packing": "concat"}
    assert documents["protocol"] == {"name": "documents", "window": SEQ_LEN, "overlap": 5}
    split = dataset.split("validation")
    assert documents["model"]["num_bytes"] == rows["model"]["num_bytes"] == split.utf8_bytes
    # BOS is what a document starts from, and no target.
    assert documents["model"]["num_tokens"] == split.num_tokens - split.num_documents
    for found in (rows, documents):
        low, high = found["model"]["interval"]["bits_per_byte"]
        assert low < found["model"]["bits_per_byte"] < high
        assert found["model"]["num_documents"] == split.num_documents
        for key in ("by_length", "by_position"):
            assert sum(row["tokens"] for row in found[key]) == found["model"]["num_tokens"]
            total = sum(row["loss"] * row["tokens"] for row in found[key])
            assert total == pytest.approx(found["model"]["loss"] * found["model"]["num_tokens"])
    # Bytes by token add up too, however the text is cut into rows.
    assert sum(row["tokens"] * row["loss"] / row["bits_per_byte"] for row in rows["by_length"]) == pytest.approx(
        split.utf8_bytes * math.log(2)
    )

    kept = {path.name: json.loads(path.read_text()) for path in (run.evaluations / "step-00000002").iterdir()}
    name = dataset.manifest.hash[:12]
    assert kept == {f"rows-{name}.json": rows, f"documents-{name}.json": documents}
    assert json.loads(run.evaluation.read_text()) == documents


def test_the_loss_of_documents_is_that_of_the_model(run: RunLayout, dataset: Dataset) -> None:
    found = json.loads(invoke(str(run.folder), "--tokens", "300", "--protocol", "documents", "--json"))
    opened = checkpoint.open_run(run.folder)
    text = choose_documents(
        dataset, load_tokenizer(run.tokenizer), load_tokenizer(run.tokenizer), add_bos=True, tokens=300
    )
    pieces = score_documents(opened.model, text.documents, seq_len=SEQ_LEN, overlap=SEQ_LEN // 2)
    nats = sum(piece.nats.sum() for piece in pieces)
    assert found["model"]["loss"] == pytest.approx(nats / text.num_tokens)
    assert f"{len(text.documents)} of {dataset.split('validation').num_documents} held-out" in found["coverage"]


def test_a_dataset_of_another_tokenizer_is_encoded_again(
    run: RunLayout, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_dataset(tmp_path / "other", "tokenizer.vocab_size=380")
    with caplog.at_level("WARNING", logger="packtrain"):
        found = pt.evaluate(run.folder, dataset=other.folder, everything=True)
    assert "compare bits per byte" in caplog.text
    own = pt.evaluate(run.folder, dataset=dataset.folder, everything=True, protocol="documents")
    # Both splits are by content, so the documents are the same, and so are their ids in the model's tokenizer.
    assert found["model"]["loss"] == pytest.approx(own["model"]["loss"], rel=1e-6)
    assert [y["name"] for y in found["yardsticks"]] == YARDSTICKS
    with pytest.raises(TokenizerError, match="leave out --protocol rows"):
        pt.evaluate(run.folder, dataset=other.folder, protocol="rows")


def test_a_file_gives_the_same_for_a_run_its_checkpoint_and_its_export(run: RunLayout, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the model reads a byte – été " * 9)
    of_run = json.loads(invoke(str(run.folder), "--text", str(text), "--json"))
    assert of_run["model"]["num_bytes"] == len(text.read_bytes())
    assert of_run["model"]["interval"] is None
    assert not run.evaluation.exists()
    opened = open_model(run.folder)
    folder = tmp_path / "exported"
    folder.mkdir()
    weights = {name: p.detach().contiguous() for name, p in opened.model.named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model_config(opened.model.config, opened.tokenizer, SEQ_LEN, "float32"))
    write_json(folder / "tokenizer.json", tokenizer_json(opened.tokenizer, True))
    write_json(folder / "tokenizer_config.json", tokenizer_config(opened.tokenizer, True, SEQ_LEN))
    for other in (run.checkpoint(2), folder):
        found = pt.evaluate(other, text=text)
        assert found["model"]["loss"] == pytest.approx(of_run["model"]["loss"], rel=1e-6)
    assert [y["name"] for y in found["yardsticks"]] == [YARDSTICKS[0], *YARDSTICKS[3:]]
    with pytest.raises(DatasetError, match="does not say what it was trained on, so it has no validation split"):
        pt.evaluate(folder)
    printed = invoke(str(folder), "--text", str(text))
    assert "Evaluation" in printed and "next:" not in printed


@pytest.fixture
def exported(run: RunLayout, tmp_path: Path) -> Path:
    pt.export(run.folder, out=tmp_path / "exported")
    return tmp_path / "exported"


def test_an_export_is_evaluated_on_the_split_of_its_run(run: RunLayout, exported: Path, tmp_path: Path) -> None:
    expected = pt.evaluate(run.folder, protocol="documents", everything=True)
    again = tmp_path / "again"
    pt.export(exported, out=again, format="llama2c")
    for target in (exported, again, again / "model.bin"):
        found = json.loads(invoke(str(target), "--all", "--json"))
        assert found["dataset"] == expected["dataset"]
        assert found["model"]["num_bytes"] == expected["model"]["num_bytes"]
        # llama2c's tokens have other ids, so its text is encoded again; the ids are the same tokens.
        assert found["model"]["bits_per_byte"] == pytest.approx(expected["model"]["bits_per_byte"], rel=1e-5)
        assert found["model"]["sees"].endswith("trained on the training split")


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_the_cost_of_narrow_weights_is_measured_on_held_out_text(run: RunLayout, exported: Path, weights: str) -> None:
    """2,048 tokens are not all of the split, so the figures are not those of a whole evaluation; before and after they are close."""
    found = {}
    for target in (run.folder, exported):
        loaded = pt.load(target, device="cpu")
        count = repr(loaded).partition("parameters")[0].split()[-1]
        made = loaded.narrow(weights)
        assert made is not None and made.not_measured is None and 1000 < made.num_tokens <= 2048
        assert made.bits_per_byte_before != made.bits_per_byte_after
        assert made.bits_per_byte_after == pytest.approx(made.bits_per_byte_before, rel=0.02)
        assert made.bytes_after < made.bytes_before * {"int8": 0.4, "bfloat16": 0.6}[weights]
        assert repr(loaded).partition("parameters")[0].split()[-1] == count
        found[target] = made
    # Documents of their own are a little harder than rows, which know the document before.
    assert found[exported].bits_per_byte_before == pytest.approx(found[run.folder].bits_per_byte_before, rel=0.05)


def test_an_export_whose_dataset_is_not_what_it_was_says_so(
    run: RunLayout, exported: Path, dataset: Dataset, tmp_path: Path
) -> None:
    seal = json.loads((exported / "packtrain.json").read_text())
    assert seal["datasets"] == [
        {"folder": str(dataset.folder), "hash": dataset.manifest.hash, "weight": 1.0, "source": {}}
    ]

    def say(part: dict[str, Any] | None) -> None:
        parts = [] if part is None else [seal["datasets"][0] | part]
        write_json(exported / "packtrain.json", seal | {"datasets": parts})

    changed = make_dataset(tmp_path / "changed", "clean.whitespace=true")
    for part, says in (
        ({"folder": str(tmp_path / "nowhere")}, "nowhere, which is not there any more; give --dataset FOLDER"),
        ({"folder": str(changed.folder)}, "has changed since"),
        ({"folder": None}, f"with the hash {dataset.manifest.hash[:12]}, and does not say where that is"),
        ({"weight": "many"}, "does not say what it was trained on"),
        (None, "does not say what it was trained on"),
    ):
        say(part)
        with pytest.raises(DatasetError, match=says) as caught:
            pt.evaluate(exported)
        assert "\n" not in str(caught.value)
    moved = tmp_path / "moved"
    shutil.copytree(dataset.folder, moved)
    say({"folder": None})
    assert pt.evaluate(exported, dataset=moved)["model"]["sees"].endswith("trained on the training split")
    # The same words for a run that is exported from where its dataset is now.
    pt.export(run.folder, out=tmp_path / "later", dataset=moved)
    assert json.loads((tmp_path / "later" / "packtrain.json").read_text())["datasets"][0]["folder"] == str(moved)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text", "a", "--dataset", "b"], "keep one"),
        (["--separator", "x"], "--text"),
        (["--protocol", "pages"], "rows or documents"),
        (["--protocol", "rows", "--window", "8"], "--protocol documents"),
        (["--limit", "3"], "--tasks NAME"),
        (["--window", "64"], "the model's context of 32"),
        (["--overlap", "32"], "from 0 to 31"),
    ],
)
def test_options_that_do_not_fit_are_refused(run: RunLayout, words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        invoke(str(run.folder), *words)
    assert not run.evaluation.exists()


def test_a_dataset_is_not_a_model(dataset: Dataset) -> None:
    with pytest.raises(RunError, match="is a dataset"):
        invoke(str(dataset.folder))


def test_damaged_weights_are_told_and_nothing_is_written(run: RunLayout) -> None:
    config = checkpoint.open_run(run.folder).config
    tensors = dict(build(config.model, seed=3).named_parameters())
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], math.nan)
    save_alone(run, tensors, {"step": 3})
    for protocol in ("rows", "documents"):
        with pytest.raises(NonFiniteError, match="earlier checkpoint"):
            invoke(str(run.folder), "--protocol", protocol)
    assert not run.evaluation.exists()


def test_figures_that_cannot_be_saved_are_still_given(run: RunLayout, caplog: pytest.LogCaptureFixture) -> None:
    run.evaluations.write_text("a file is in the way")
    with caplog.at_level("WARNING", logger="packtrain"):
        assert pt.evaluate(run.folder)["model"]["loss"] > 0
    assert "could not be saved" in caplog.text
