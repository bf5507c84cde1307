"""A run on a mixture resumes exactly, validates each source, reports the end of the data, and works with every command."""

import json
import math

import pytest
from typer.testing import CliRunner

from packtrain.cli.main import app
from packtrain.config.load import load_recipe, load_run_config
from packtrain.errors import ConfigError, DatasetError, Interrupted
from packtrain.prepare.run import prepare
from packtrain.report.page import write_report
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import read_jsonl
from packtrain.train.run import train
from tests.train.conftest import TINY
from tests.train.test_resume import StopAt, final_state


@pytest.fixture(scope="module")
def second(dataset, tmp_path_factory):
    """Another dataset with the same tokenizer but other text."""
    folder = tmp_path_factory.mktemp("second")
    texts = (f"state {number} seed step batch " * (number % 7 + 1) for number in range(120))
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": text, "id": f"s{i}"}) + "\n" for i, text in enumerate(texts))
    )
    settings = ["source.kind=jsonl", f"source.path={folder / 'text.jsonl'}", "prepare.workers=1", "source.id_column=id"]
    settings += [f"tokenizer.name={dataset / 'tokenizer'}", "tokenizer.vocab_size="]
    prepare(load_recipe("stdlib", settings).config, folder / "second")
    return folder / "second"


def mixed(dataset, second, *settings, limit=None, weight=0.3):
    other = {"weight": weight, **({} if limit is None else {"max_epochs": limit})}
    table = json.dumps(
        {str(dataset): {"weight": 0.7, **({} if limit is None else {"max_epochs": limit})}, str(second): other}
    )
    return load_run_config("demo", [*TINY, f"data.dataset={table}", *settings]).config


def test_five_steps_restore_and_five_are_ten(dataset, second, tmp_path):
    config = mixed(dataset, second, "data.packing=bestfit", "data.document_mask=true")
    train(config, tmp_path / "whole", resume=False)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", resume=True, on_step=StopAt(5))
    train(config, tmp_path / "parts", resume=True)
    assert final_state(tmp_path / "whole") == final_state(tmp_path / "parts")


def test_validation_is_of_each_source_and_of_both_by_weight(dataset, second, tmp_path):
    outcome = train(mixed(dataset, second), tmp_path / "run", resume=False)
    lines = [line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "val_loss" in line]
    assert lines[-1]["val_loss"] == outcome["val_loss"]
    for line in lines:
        losses = [line["val_loss/prepared"], line["val_loss/second"]]
        assert line["val_loss"] == pytest.approx(0.7 * losses[0] + 0.3 * losses[1])
        assert line["val_ppl"] == pytest.approx(math.exp(line["val_loss"]))
        bits = [line["val_bpb/prepared"], line["val_bpb/second"]]
        assert min(bits) < line["val_bpb"] < max(bits)


def test_other_weights_are_another_run(dataset, second, tmp_path):
    train(mixed(dataset, second, "train.steps=2"), tmp_path / "run", resume=False)
    for config in (mixed(dataset, second, weight=0.4), mixed(dataset, second, limit=5)):
        with pytest.raises(DatasetError, match="other datasets, weights or max_epochs"):
            train(config, tmp_path / "run", resume=True)
    assert train(mixed(dataset, second), tmp_path / "run", resume=True)["step"] == 10


def test_more_steps_than_the_data_allows_are_refused_before_the_first(dataset, second, tmp_path):
    with pytest.raises(
        ConfigError, match=r"10,000 steps of 8 rows need 80,000 rows.*max_epochs .*write train\.steps=\d+"
    ):
        train(mixed(dataset, second, "train.steps=10000", limit=2), tmp_path / "run", resume=False)
    assert not RunLayout(tmp_path / "run").config.exists()


def test_without_a_number_of_steps_a_limited_mixture_is_trained_on_to_its_end(dataset, second, tmp_path, caplog):
    config = mixed(dataset, second, "train.steps=", "evaluate.every=0", "checkpoint.every=0", limit=0.25)
    outcome = train(config, tmp_path / "run", resume=False)
    assert outcome["step"] == outcome["steps"] > 10
    assert any("do not fill a step" in message for message in caplog.messages)


def test_every_command_names_the_sources(dataset, second, tmp_path):
    table = json.dumps({str(dataset): 0.7, str(second): 0.3})
    run = tmp_path / "run"

    def call(*words):
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = call("plan", "demo", "--full", *TINY, f"data.dataset={table}")
    assert "mixture" in shown and "second" in shown and "70.00%" in shown
    train(mixed(dataset, second), run, resume=False)
    manifest = json.loads((run / "manifest.json").read_text())["dataset"]
    assert [(s["name"], s["weight"]) for s in manifest["sources"]] == [("prepared", 7), ("second", 3)]

    assert "second: 30.00% of the tokens" in call("inspect", run)
    step = json.loads(call("inspect", run, "--step", 3, "--json"))
    assert {row["dataset"] for row in step["rows"]} == {"prepared", "second"}
    some = next(row for row in step["rows"] if row["dataset"] == "second")
    assert json.loads(call("inspect", run, "--row", some["row"], "--json"))["rows"] == [some]
    document = some["stretches"][0]
    found = json.loads(call("inspect", run, "--document", document["source"]["id"], "--json"))["documents"]
    [entry] = [entry for entry in found if entry["dataset"] == "second"]
    assert entry["document"] == document["document"]
    assert any(visit["step"] == 3 and visit["row"] == some["row"] for visit in entry["visits"])

    evaluated = json.loads(call("evaluate", run, "--json"))
    by_source = {source["name"]: source for source in evaluated["sources"]}
    mean = 0.7 * by_source["prepared"]["model"]["loss"] + 0.3 * by_source["second"]["model"]["loss"]
    assert evaluated["model"]["loss"] == pytest.approx(mean)
    assert evaluated["model"]["loss"] == pytest.approx(read_jsonl(run / "metrics.jsonl")[-1]["val_loss"], rel=1e-4)
    names = [y["name"] for y in evaluated["yardsticks"]]
    assert names == [y["name"] for y in by_source["second"]["yardsticks"]]

    page = write_report([run]).read_text()
    assert "second" in page and "70.0%" in page
    exported = json.loads(call("export", run, "--out", tmp_path / "hf", "--json"))
    assert exported["checks"]["text"] == "validation split"
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "source of prepared" in card and "source of second" in card


@pytest.mark.parametrize("is_mixed", [False, True])
def test_a_dataset_that_is_all_validation_is_not_trained_on(dataset, tmp_path, is_mixed):
    (tmp_path / "text.txt").write_text("a set to test on")
    settings = [
        "source.kind=text",
        f"source.path={tmp_path}/text.txt",
        "prepare.workers=1",
        "split.validation_fraction=1",
    ]
    settings += [f"tokenizer.name={dataset / 'tokenizer'}", "tokenizer.vocab_size="]
    prepare(load_recipe("stdlib", settings).config, tmp_path / "held")
    config = load_run_config("demo", [*TINY, f"data.dataset={tmp_path}/held"]).config
    with pytest.raises(
        DatasetError, match=r"held has no text for training, as all of it is validation.*evaluate RUN --dataset"
    ):
        train(mixed(dataset, tmp_path / "held") if is_mixed else config, tmp_path / "run", resume=False)
    for words in (["inspect", tmp_path / "held"], ["inspect", tmp_path / "held", "--document", "text.txt"]):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        assert "held out for validation" in result.output or "This dataset is all validation" in result.output
        assert CliRunner().invoke(app, [*(str(word) for word in words), "--json"]).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(tmp_path / "held")]).exit_code == 0
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "held")]).exit_code == 0
