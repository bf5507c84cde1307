"""A signal before a command has anything to save: exit code 3 and one sentence, also in the middle of an import."""

import subprocess
import sys

import pytest

HIT = """
import os, signal, sys
from packtrain import __main__ as entry

sys.argv = ["packtrain", *sys.argv[2:]]
sys.path.insert(0, {folder!r})
hit = lambda *_: os.kill(os.getpid(), getattr(signal, {name!r}))
entry.answer_signals()
if {importing}:
    try:
        import hit_by_a_signal
    except BaseException as error:
        print("an import may do this:", repr(error))
else:
    from unittest import mock
    with mock.patch("packtrain.config.load.load_run_config", hit), mock.patch("packtrain.config.load.load_recipe", hit):
        entry.main()
"""


def run(tmp_path, name, importing, *words):
    (tmp_path / "hit_by_a_signal.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    script = HIT.format(folder=str(tmp_path), name=name, importing=importing)
    command = [sys.executable, "-c", script, "packtrain", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(("name", "importing"), [("SIGTERM", True), ("SIGINT", False)])
@pytest.mark.slow
def test_training_that_has_not_begun_says_so(tmp_path, name, importing):
    done = run(tmp_path, name, importing, "train", "demo", "--run", str(tmp_path / "run"))
    assert done.returncode == 3, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line]
    assert told.startswith(f"stopped by {name} before the first step: nothing was trained yet, and what is there stays")


@pytest.mark.parametrize("importing", [True, False])
def test_other_commands_say_that_they_can_be_run_again(tmp_path, importing):
    done = run(tmp_path, "SIGTERM", importing, "prepare", "stdlib", "--out", str(tmp_path / "out"))
    assert done.returncode == 3, done.stderr
    assert done.stderr.strip() == "stopped by SIGTERM; finished work stays, and the same command can be run again"


def test_a_signal_after_the_work_does_not_change_how_it_ended():
    script = (
        "import atexit, os, signal, sys\nfrom packtrain import __main__ as entry\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.argv = ['packtrain', '--version']\nentry.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("packtrain ")
