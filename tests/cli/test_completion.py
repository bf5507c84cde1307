"""What the shell offers after TAB: verbs, presets, recipes, settings and their values, without importing anything heavy."""

import os
import shutil
import subprocess
import sys

import pytest
from tests.command_line import packtrain


def offered(words, cursor, monkeypatch):
    monkeypatch.setenv("_PACKTRAIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["packtrain", *words]))
    monkeypatch.setenv("COMP_CWORD", str(cursor))
    return packtrain().out.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["resu"], ["resume"]),
        (["train", "de"], ["demo"]),
        (["prepare", "tinyst"], ["tinystories"]),
        (["config", "std"], ["stdlib"]),
        (["train", "demo", "train.see"], ["train.seed="]),
        (["prepare", "jsonl", "source.text"], ["source.text_column="]),
        (["resume", "run", "--change", "optim.ep"], ["optim.eps="]),
        (["train", "demo", "optim.name=mu"], ["optim.name=muon"]),
        # As bash takes them apart.
        (["train", "demo", "optim.name", "=", "mu"], ["muon"]),
        (["train", "demo", "track.wandb", "="], ["true", "false"]),
    ],
)
def test_what_fits_is_offered(words, found, monkeypatch):
    assert offered(words, len(words), monkeypatch) == found


def test_the_scripts_are_typers_with_a_value_after_a_setting():
    for shell in ("bash", "zsh", "fish"):
        done = packtrain("completion", shell)
        assert done.code == 0 and "_PACKTRAIN_COMPLETE" in done.out
    assert packtrain("completion", "tcsh").code == 2
    script = packtrain("completion", "bash").out + "\ncomplete -p packtrain"
    assert "compopt -o nospace" in script
    assert "_packtrain_completion" in subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout


def test_it_imports_nothing_heavy():
    script = (
        "import sys; from packtrain.cli.main import main; sys.argv[1:] = []\ntry: main()\n"
        "except SystemExit: print('', *{m.partition('.')[0] for m in sys.modules})"
    )
    asked = {"_PACKTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "packtrain train demo train.see", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | asked
    )
    loaded = done.stdout.split()
    assert loaded[0] == "train.seed="
    assert not {"torch", "numpy", "pyarrow", "transformers"} & set(loaded)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not on this machine")
@pytest.mark.parametrize(("offered", "suffix"), [("train.seed=", ["-S", ""]), ("resume", [])])
def test_in_zsh_a_value_may_follow_the_name_of_a_setting(offered, suffix, tmp_path):
    """Without the space that zsh puts after a word: `compadd`, which adds words to the line, is asked for no suffix."""
    answer = f"""_arguments '*: :(("{offered}"))'"""
    (tmp_path / "packtrain").write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    (tmp_path / "packtrain").chmod(0o755)
    script = packtrain("completion", "zsh").out.replace("builtin compadd", "told")
    shell = f"""
    compdef() {{ }}; compadd() {{ told "$@" }}; told() {{ print -l -- "$@" }}; _arguments() {{ compadd a-word }}
    {script}
    words=(packtrain x); CURRENT=2; _packtrain_completion
    """
    done = subprocess.run(["zsh", "-f", "-c", shell], capture_output=True, text=True, env={"PATH": f"{tmp_path}:/bin"})
    assert done.stdout.split("\n")[:-1] == [*suffix, "a-word"], done.stderr
