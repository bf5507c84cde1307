"""`packtrain generate` as a user meets it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from packtrain.cli.generate import generate
from packtrain.errors import CheckpointError, ConfigError, ModelError, RunError, UserError
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


def test_many_prompts_are_answered_in_their_order(run, tmp_path):
    prompts = ["The", "The quick brown fox", "a", "def"]
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n\n" for prompt in prompts[1:]))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts[1:]))
    words = ["--seed", 5, "--max-tokens", 8, "--n", 2, "--json"]
    outcome = json.loads(invoke_well(run, "--prompt", "The", "--prompts", tmp_path / "prompts.txt", *words))
    again = json.loads(invoke_well(run, "--prompt", "The", "--prompts", tmp_path / "prompts.jsonl", *words))
    found = outcome["answers"]
    assert found == again["answers"] and outcome["step"] == 20
    assert outcome["tokens"] == sum(one["tokens"] for one in found)
    assert [(one["prompt"], one["seed"]) for one in found] == [(prompt, seed) for prompt in prompts for seed in (5, 6)]
    alone = json.loads(invoke_well(run, "--prompt", "a", "--seed", 6, "--max-tokens", 8, "--json"))
    assert alone["text"] == found[5]["text"]
    shown = invoke(run, "--prompt", "The", "--prompt", "a", "--seed", 5, "--max-tokens", 8)
    assert shown.stdout == f"The{found[0]['text']}\na{found[4]['text']}\n"


def test_log_probabilities_are_in_the_json(run):
    outcome = json.loads(invoke_well(run, "--prompt", "The", "--logprobs", 2, "--max-tokens", 3, "--json"))
    assert len(outcome["logprobs"]) == outcome["tokens"]
    for token in outcome["logprobs"]:
        assert token["logprob"] <= token["alternatives"][0]["logprob"] < 0
        assert len(token["alternatives"]) == 2


def test_a_longer_prompt_is_cut_if_asked(run):
    outcome = json.loads(invoke_well(run, "--prompt", "a b" * 100, "--beyond", "truncate", "--max-tokens", 3, "--json"))
    assert outcome["tokens"] == 3


def test_narrower_weights_say_what_they_cost(run):
    result = invoke(run, "--prompt", "The", "--weights", "int8", "--max-tokens", 3)
    assert result.exit_code == 0, result.exception
    assert "MB of weights" in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "has no prompt"), ("3\n", "line 1 of"), ('"a"\n{"text": "b"}\n', "line 2 of"), (b"\xff", "not UTF-8")],
)
def test_a_file_without_prompts_is_refused(run, tmp_path, content, says):
    file = tmp_path / "p.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    error = invoke(run, "--prompts", file).exception
    assert isinstance(error, UserError)
    assert says in str(error)


def test_without_a_prompt_and_a_terminal_it_says_what_to_type(run):
    error = invoke(run).exception
    assert isinstance(error, UserError)
    assert f"write packtrain generate {run} --prompt TEXT" in str(error)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--prompt", "a", "--temperature", "-1"], ConfigError),
        (["--prompt", "a", "--stop", ""], ConfigError),
        (["--prompt", "a", "--best", "--step", "20"], ConfigError),
        (["--prompt", "a", "--step", "21"], CheckpointError),
        (["--prompt", "a b" * 100], UserError),
        (["--prompt", "-", "--prompt", "-"], UserError),
        (["--prompts", "nowhere.txt"], UserError),
        (["--prompt", "a", "--logprobs", "2"], ConfigError),
        (["--prompt", "a", "--logit-bias", "x=1"], ConfigError),
        (["--prompt", "a", "--beyond", "ignore"], ConfigError),
        (["--prompt", "a", "--weights", "int3"], ConfigError),
        (["--prompt", "a", "--min-tokens", "300"], ConfigError),
    ],
)
def test_a_mistake_is_refused(run, words, error):
    assert isinstance(invoke(run, *words).exception, error)


def test_a_folder_without_a_run_is_refused(tmp_path):
    assert isinstance(invoke(tmp_path, "--prompt", "a").exception, ModelError)
    assert isinstance(invoke(tmp_path / "nowhere", "--prompt", "a").exception, RunError)
