"""The command line as a user meets it: help, exit codes, one sentence for each mistake."""

import json
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
from tests import command_line
from tests.train.conftest import TINY

from packtrain.cli.first_screen import VERBS
from packtrain.cli.verbs import load_verb
from packtrain.config.shipped import shipped


def packtrain(*words, code=0):
    done = command_line.packtrain(*words)
    assert done.code == code, done.err
    return done


def sentence(done):
    """Standard error as one line, whatever width it was wrapped to."""
    assert "Traceback" not in done.err
    return " ".join(done.err.split())


def helped(*words, columns=80):
    with mock.patch.dict(os.environ, {"COLUMNS": str(columns)}):
        return packtrain(*words, "--help").out


def test_the_first_screen_has_each_verb_on_a_line_and_all_presets_and_recipes():
    lines = [" ".join(line.split()) for line in helped().splitlines()]
    for verb, about in VERBS.items():
        assert load_verb(verb).callback.__doc__.partition("\n")[0] == about
        assert f"{verb} {about}" in lines
    words = set(" ".join(lines).replace(",", " ").split())
    assert words >= {*shipped("presets"), *shipped("recipes"), "docs/"}
    assert {"First steps:", "Data:", "Training:", "Using a model:", "Machine:"} <= set(lines)
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}):
        assert packtrain(code=2).err == helped()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_no_line_of_help_is_cut_off(verb, columns):
    shown = helped(*filter(None, [verb]), columns=columns)
    assert shown.startswith(f"Usage: packtrain {verb or 'VERB'} ")
    assert max(map(len, shown.splitlines())) <= 80
    for dots in re.finditer(r"\.\.\.", shown.replace("[KEY=VALUE]...", "").replace("RUN...", "")):
        assert dots.end() == shown.index("\n"), "only the usage line may end so"


def test_help_imports_next_to_nothing():
    script = (
        "import sys; from packtrain.__main__ import main; sys.argv[1:] = ['--help']; main(); "
        "print('', *{m.partition('.')[0] for m in sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(helped())
    assert not {"typer", "torch", "numpy", "pyarrow", "transformers", "pydantic", "rich"} & set(shown.split())


def test_the_version_is_the_packages():
    import packtrain as package

    assert packtrain("--version").out.strip() == f"packtrain {package.__version__}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "error: packtrain has no verb 'trian'; did you mean train? see `packtrain --help`"),
        (["--vers"], "error: `packtrain` has no option --vers; did you mean --version?"),
        (["train"], "error: `packtrain train` needs PRESET (a preset, or a TOML file); write `packtrain train PRESET`"),
        (
            ["generate", "x"],
            "error: there is no terminal to talk in and no prompt; write packtrain generate x --prompt TEXT",
        ),
        (["train", "demo", "--runn", "x"], "error: `packtrain train` has no option --runn; did you mean --run?"),
        (["train", "demo", "--zzz"], "error: `packtrain train` has no option --zzz; see `packtrain train --help`"),
        (["plan", "demo", "--gpus", "0"], "error: --gpus 0 does not fit: input should be greater than or equal to 1;"),
        (["plan", "demo", "--gpus"], "error: option '--gpus' requires an argument; see `packtrain"),
        (["diff", "a", "b", "c"], "error: got unexpected extra argument(s) (c); see `packtrain diff --help`"),
        (["train", "demo"], "write --run runs/NAME"),
        (["train", "dmo", "--run", "x"], "did you mean demo?"),
        (["train", "demo", "--run", "x"], "write data.dataset=FOLDER"),
        (["train", "demo", "optim.lrr=3", "--run", "x"], "did you mean optim.lr"),
        (["prepare", "stdlibb", "--out", "x"], "did you mean stdlib?"),
        (["prepare", "jsonl", "--out", "x"], "source.path"),
        (["prepare", "jsonl", "source.path=nowhere.jsonl", "--out", "x"], "nowhere.jsonl"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere does not exist"),
        (["export", "nowhere", "--format", "hf", "--out", "x"], "nowhere does not exist"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["inspect", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere is not a prepared dataset"),
        (["plan", "demoo"], "did you mean demo?"),
        (["config", "demo", "model.hidden_size=abc"], "model.hidden_size=abc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_two_and_one_sentence(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = sentence(packtrain(*words, code=2))
    assert told.startswith("error: ") and expected in told
    assert list(tmp_path.iterdir()) == []


def test_config_shows_values_with_their_origins():
    shown = packtrain("config", "demo", "optim.lr=0.5").out
    assert ["optim.lr", "0.5", "the", "command", "line"] in [line.split() for line in shown.splitlines()]
    parsed = json.loads(packtrain("config", "demo", "--json").out)
    assert parsed["config"]["model"]["hidden_size"] == 128
    assert parsed["origins"]["model.hidden_size"] == "preset demo"


def test_config_as_toml_can_be_trained_from(tmp_path):
    text = packtrain("config", "demo", "optim.lr=0.5", "--toml").out
    (tmp_path / "mine.toml").write_text(text)
    assert json.loads(packtrain("config", tmp_path / "mine.toml", "--json").out)["config"]["optim"]["lr"] == 0.5


def test_doctor_tells_the_device_and_what_would_fail():
    told = json.loads(packtrain("doctor", "--json").out)
    assert {"device", "cores", "memory", "disk here", "precision auto", "fp8", "libraries"} <= told["facts"].keys()
    assert isinstance(told["problems"], list)


def test_a_run_through_every_verb(dataset, tmp_path):
    run = tmp_path / "run"
    outcome = json.loads(packtrain("train", "demo", *TINY, f"data.dataset={dataset}", "--run", run, "--json").out)
    assert (outcome["step"], outcome["steps"]) == (10, 10)
    assert "already holds a run; add --resume" in sentence(
        packtrain("train", "demo", *TINY, f"data.dataset={dataset}", "--run", run, code=2)
    )
    evaluation = json.loads(packtrain("evaluate", run, "--all", "--json").out)
    assert evaluation["model"]["bits_per_byte"] > 0
    generated = json.loads(packtrain("generate", run, "--prompt", "the ", "--max-tokens", "5", "--json").out)
    again = packtrain("generate", run, "--prompt", "the ", "--max-tokens", "5", "--seed", generated["seed"], "--json")
    assert json.loads(again.out)["text"] == generated["text"]
    packtrain("export", run, "--format", "hf", "--out", tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    packtrain("report", run)
    assert "<svg" in (run / "report.html").read_text()
    packtrain("inspect", run, "--step", "3")
    packtrain("verify", dataset)


def test_the_program_ends_with_the_code_and_the_sentence_of_a_mistake(tmp_path):
    command = [sys.executable, "-m", "packtrain", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: packtrain has no verb 'trian'; did you mean train?")
    assert list(tmp_path.iterdir()) == []


def test_output_that_nobody_reads_ends_quietly():
    shell = f"{sys.executable} -m packtrain config demo --toml | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[model]\n"
    assert done.stderr == ""
