"""`packtrain export` writes a folder, prints what it measured, and refuses mistakes."""

import json

import typer
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from packtrain.cli.export import export
from packtrain.errors import ConfigError, ExportError

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(export)


def invoke(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_run_becomes_a_folder_and_the_measurement_is_printed(make_run, tmp_path):
    run = make_run().layout.folder
    result = invoke(run, "--out", tmp_path / "out", "--format", "hf")
    assert result.exception is None
    assert "logits within" in result.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0


def test_json_is_one_object(make_run, tmp_path):
    result = invoke(make_run().layout.folder, "--out", tmp_path / "out", "--dtype", "bfloat16", "--json")
    outcome = json.loads(result.stdout)
    assert outcome["checks"]["max_logit_difference"] <= outcome["checks"]["tolerance"]
    assert outcome["dtype"] == "bfloat16"
    assert outcome["step"] == 20


def test_mistakes_are_refused(make_run, tmp_path):
    run = make_run().layout.folder
    assert isinstance(invoke(run, "--out", tmp_path / "out", "--format", "onnx").exception, ExportError)
    assert isinstance(invoke(run, "--out", run).exception, ExportError)
    assert isinstance(invoke(run, "--out", tmp_path / "out", "--best", "--step", 20).exception, ConfigError)
    assert not (tmp_path / "out").exists()
