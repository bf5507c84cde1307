"""`packtrain generate` as a user meets it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from packtrain.cli.generate import generate
from packtrain.errors import CheckpointError, ConfigError, RunError, UserError
from tests.export.conftest import make_tokenizer, write_run

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(generate)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    return write_run(folder / "run", tokenizer=make_tokenizer(folder / "tokenizer")).layout.folder


def invoke(*words: object, text: str | bytes | None = None):
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


def invoke_well(*words: object, text: str | bytes | None = None) -> str:
    result = invoke(*words, text=text)
    assert result.exception is None, result.exception
    return result.stdout


def test_the_prompt_and_its_continuation_are_printed_and_the_figures_go_elsewhere(run):
    result = invoke(run, "--prompt", "The quick", "--max-tokens", 12, "--seed", 3)
    assert result.exit_code == 0
    assert result.stdout.startswith("The quick")
    assert "seed 3" in result.stderr
    assert "seed" not in result.stdout


def test_json_is_one_object_that_can_be_repeated(run):
    first = json.loads(invoke_well(run, "--prompt", "The", "--max-tokens", 9, "--json"))
    assert first["prompt"] == "The"
    assert first["finish_reason"] in ("length", "eos")
    assert first["tokens"] <= 9
    assert first["step"] == 20
    again = json.loads(invoke_well(run, "--prompt", "The", "--max-tokens", 9, "--seed", first["seed"], "--json"))
    assert again["text"] == first["text"]


def test_a_prompt_comes_from_standard_input_without_its_line_end(run):
    outcome = json.loads(invoke_well(run, "--prompt", "-", "--max-tokens", 2, "--json", text="Zürich\n"))
    assert outcome["prompt"] == "Zürich"
    assert isinstance(invoke(run, "--prompt", "-", text=b"\xff\xfe").exception, UserError)


def test_stop_strings_may_be_given_again(run):
    words = [run, "--prompt", "The", "--temperature", 0, "--json"]
    text = json.loads(invoke_well(*words))["text"]
    stopped = json.loads(invoke_well(*words, "--stop", "never there", "--stop", text[3:5]))
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == text[: text.index(text[3:5])]


def test_the_context_ends_the_text_and_that_is_said(run):
    result = invoke(run, "--prompt", "", "--max-tokens", 500, "--temperature", 0)
    assert "context is full" in result.stderr


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--prompt", "a", "--temperature", "-1"], ConfigError),
        (["--prompt", "a", "--stop", ""], ConfigError),
        (["--prompt", "a", "--best", "--step", "20"], ConfigError),
        (["--prompt", "a", "--step", "21"], CheckpointError),
        (["--prompt", "a b" * 100], UserError),
    ],
)
def test_a_mistake_is_refused(run, words, error):
    assert isinstance(invoke(run, *words).exception, error)


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert isinstance(invoke(tmp_path, "--prompt", "a").exception, RunError)
