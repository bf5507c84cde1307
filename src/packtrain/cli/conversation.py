"""Decides how a conversation in the terminal looks: what is typed, what is shown, and which commands there are."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from packtrain.cli import screen
from packtrain.data.tokens.visible import printable
from packtrain.errors import Interrupted, UserError
from packtrain.generate.settings import GenerateSettings

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from packtrain.api.models import LoadedModel
    from packtrain.generate.talk import Talk

_HELP = """\
The model continues text. What you type joins the text so far, on a line of its own, and the model continues all of it.

Enter              send; on an empty line, the model continues
Alt-Enter          a line break; so does \\ at the end of a line
arrow keys         what you typed before
Ctrl-C             stop the text, or clear the line
Ctrl-D             leave

/set NAME VALUE    change a setting, for example /set temperature 0.5
/settings          show the settings
/text              show the text so far
/reset             forget the text
/help              show this
/quit              leave"""


def converse(opened: "LoadedModel", settings: GenerateSettings) -> None:
    """Talks until Ctrl-D or /quit. Ctrl-C stops the text that is being generated, and not the program."""
    from packtrain.generate.talk import Talk

    talk = Talk(
        opened.model,
        opened.tokenizer,
        settings,
        add_bos=opened.conditions.add_bos,
        context_length=opened.context_length,
    )
    which = "" if opened.step is None else f", step {opened.step}"
    screen.note(
        f"{opened.folder}{which}, context of {opened.context_length} tokens. It continues what you write. /help for more"
    )
    session = _open_session()
    with _stop_on_interrupt() as stop:
        while (line := _read_line(session)) is not None:
            stop.clear()
            try:
                if not line.startswith("/"):
                    _answer(talk, line, stop)
                elif not _obey(talk, line):
                    return
            except UserError as error:
                screen.error(str(error))


def _open_session() -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    return PromptSession(multiline=True, key_bindings=keys, prompt_continuation="  ")


def _read_line(session: "PromptSession[str]") -> str | None:
    """What was typed; None for Ctrl-D. Ctrl-C clears the line."""
    while True:
        try:
            return session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return None


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """During the block, Ctrl-C outside of a line sets the event and does nothing else. SIGTERM ends the program."""
    stop = threading.Event()

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    def on_terminate(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(Interrupted.exit_code)

    before = signal.signal(signal.SIGINT, on_interrupt), signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def _answer(talk: "Talk", words: str, stop: threading.Event) -> None:
    start = time.perf_counter()
    pieces = talk.say(words)
    for piece in pieces:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()
        if stop.is_set():
            pieces.close()
            break
    sys.stdout.write("\n")
    sys.stdout.flush()
    assert talk.stream is not None
    num_tokens = len(talk.stream.token_ids)
    rate = num_tokens / (time.perf_counter() - start)
    ends = {
        "eos": "it ended the text",
        "stop": "a stop string",
        "length": "max_tokens",
        "context": "the context is full",
    }
    end = ends.get(str(talk.stream.finish_reason), "stopped")
    left_out = f"; the first {talk.num_left_out} tokens of the text were not read" if talk.num_left_out else ""
    screen.note(f"{num_tokens} tokens, {rate:.0f} a second, seed {talk.stream.seed}: {end}{left_out}")


def _obey(talk: "Talk", line: str) -> bool:
    """Does what a line that begins with / says; false for /quit."""
    name, _, rest = line[1:].strip().partition(" ")
    if name in ("quit", "exit"):
        return False
    if name not in _COMMANDS:
        raise UserError(f"there is no /{name}; write one of {', '.join(f'/{known}' for known in [*_COMMANDS, 'quit'])}")
    _COMMANDS[name](talk, rest.strip())
    return True


def _set(talk: "Talk", rest: str) -> None:
    from packtrain.generate.talk import change

    name, _, value = rest.partition(" ")
    if not value.strip():
        raise UserError("/set needs a name and a value; write for example /set temperature 0.5")
    talk.settings = change(talk.settings, name, value.strip())
    _settings(talk, name.replace("-", "_"))


def _settings(talk: "Talk", only: str) -> None:
    from packtrain.generate.talk import SETTABLE

    for name in SETTABLE:
        if only in ("", name):
            print(f"{name:<20}{getattr(talk.settings, name)}")


def _show_text(talk: "Talk", _rest: str) -> None:
    print(printable(talk.text))


def _reset(talk: "Talk", _rest: str) -> None:
    talk.reset()
    screen.note("the text is empty again")


def _show_help(_talk: "Talk", _rest: str) -> None:
    print(_HELP)


_COMMANDS: dict[str, Callable[["Talk", str], None]] = {
    "help": _show_help,
    "set": _set,
    "settings": _settings,
    "text": _show_text,
    "reset": _reset,
}
