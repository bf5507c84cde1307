"""A conversation: the text so far is what the model reads, and settings change on the fly."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packtrain.api.models import LoadedModel
from packtrain.cli.conversation import converse
from packtrain.errors import ConfigError, UserError
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.talk import Talk, change
from packtrain.pretrained.conditions import Conditions
from tests.export.conftest import make_tokenizer, write_run

from .models import tiny_model

# What a terminal is told when a line can be typed: to mark what is pasted.
READY = "\x1b[?2004h"


def talk_with(tokenizer, **settings) -> Talk:
    settings = GenerateSettings(**({"temperature": 0.0, "max_tokens": 6} | settings))
    return Talk(tiny_model(tokenizer.vocab_size), tokenizer, settings, add_bos=True, context_length=48)


def test_each_answer_continues_all_of_the_text(byte_level):
    talk = talk_with(byte_level)
    first = "".join(talk.say("The dog"))
    second = "".join(talk.say("and"))
    assert talk.text == f"The dog{first}\nand{second}"
    other = talk_with(byte_level)
    assert "".join(other.say(f"The dog{first}\nand")) == second


def test_a_text_that_was_stopped_is_kept(byte_level):
    talk = talk_with(byte_level)
    pieces = talk.say("The")
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert talk.text == "The" + shown
    assert "".join(talk.say(""))


def test_a_text_that_is_too_long_is_refused_or_cut(byte_level):
    talk = talk_with(byte_level)
    with pytest.raises(UserError, match="holds 48"):
        next(talk.say("a!" * 60))
    assert talk.text == ""
    talk.settings = change(talk.settings, "beyond", "truncate")
    assert "".join(talk.say("a!" * 60)) is not None
    assert talk.num_left_out > 0


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("top-k", "7", 7),
        ("seed", "none", None),
        ("seed", "3", 3),
        ("stop", r"\n\n", ("\n\n",)),
        ("stop_token_ids", "2,13", (2, 13)),
        ("beyond", "slide", "slide"),
    ],
)
def test_a_setting_is_changed_by_its_name(name, text, value):
    assert getattr(change(GenerateSettings(), name, text), name.replace("-", "_")) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("temprature", "1"), ("temperature", "warm"), ("temperature", "-1"), ("top_k", "1.5"), ("stop_token_ids", "x")],
)
def test_a_setting_that_does_not_fit_is_refused(name, text):
    with pytest.raises(ConfigError):
        change(GenerateSettings(), name, text)


def test_what_is_typed_is_obeyed(byte_level, capsys):
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    opened = LoadedModel(Path("runs/mine"), 7, tiny_model(byte_level.vocab_size), Conditions(byte_level, True, 48))
    expected = "".join(opened.stream("The\ndog", max_tokens=4, seed=3))
    typed = [
        "The\\",
        "dog",
        "/set temprature 1",
        "/set max-tokens 2",
        "/settings",
        "/nonsense",
        "/text",
        "/reset",
        "/text",
    ]
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("".join(f"{line}\r" for line in [*typed, "/help", "", "/quit", "never read"]))
        converse(opened, GenerateSettings(max_tokens=4, seed=3))
    shown = capsys.readouterr()
    assert shown.out.startswith(expected + "\n")
    assert "max_tokens          2\n" in shown.out
    assert f"The\ndog{expected}\n\n" in shown.out.replace("\r", "")
    assert "/set NAME VALUE" in shown.out
    for said in (
        "runs/mine, step 7",
        "4 tokens",
        "there is no setting 'temprature'",
        "there is no /nonsense",
        "2 tokens",
    ):
        assert said in shown.err
    assert "never" not in shown.out


@pytest.mark.slow
def test_it_works_in_a_terminal(tmp_path):
    """Through a pseudo-terminal: a line, history, a line break, a command, Ctrl-C in the middle of a text, Ctrl-D."""
    run = write_run(tmp_path / "run", tokenizer=make_tokenizer(tmp_path / "tokenizer")).layout.folder
    ours, theirs = pty.openpty()
    words = ["--max-tokens", "3", "--seed", "1"]
    child = subprocess.Popen(
        [sys.executable, "-m", "packtrain", "generate", str(run), *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )
    os.close(theirs)
    seen = ""

    def expect(text: str) -> str:
        nonlocal seen
        end = time.monotonic() + 120
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 1.0)[0]:
                seen += os.read(ours, 65536).decode(errors="replace")
        before, _, seen = seen.partition(text)
        return before

    def type_keys(keys: str) -> None:
        os.write(ours, keys.encode())

    try:
        expect("/help for more")
        expect(READY)
        type_keys("The quick\r")
        expect("a second, seed 1: max_tokens")
        expect(READY)
        type_keys("/set temperature 0\r")
        expect("temperature         0.0")
        expect(READY)
        # The arrow key brings the command back, and Ctrl-C clears the line.
        type_keys("\x1b[A")
        expect("temperature 0")
        type_keys("\x03")
        expect(READY)
        type_keys("/set max_tokens 100000\r")
        expect("max_tokens          100000")
        expect(READY)
        type_keys("/set beyond slide\r")
        expect("beyond              slide")
        expect(READY)
        type_keys("one \\\rtwo\r")
        expect("two")
        time.sleep(1.0)
        os.killpg(child.pid, signal.SIGINT)
        expect("stopped")
        expect(READY)
        type_keys("/text\r")
        expect("one")
        expect("two")
        expect(READY)
        type_keys("\x04")
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
