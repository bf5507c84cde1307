"""Decides what the model reads in a conversation: all of the text so far, which every line and every answer continues."""

from collections.abc import Generator
from dataclasses import fields, replace
from typing import Any, get_type_hints

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ConfigError
from packtrain.generate.batch import Engine
from packtrain.generate.prompt import encode_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.stream import Stream
from packtrain.model.llama import Llama

SETTABLE = tuple(field.name for field in fields(GenerateSettings) if field.name not in ("n", "logprobs", "logit_bias"))


class Talk:
    """A conversation with a model that continues text. `text` is what the model reads next: its own words and the user's."""

    def __init__(
        self, model: Llama, tokenizer: Tokenizer, settings: GenerateSettings, *, add_bos: bool, context_length: int
    ) -> None:
        self._tokenizer, self._add_bos = tokenizer, add_bos
        self._engine = Engine(model, tokenizer, context_length=context_length, reuse=True)
        self.settings = settings
        self.text = ""
        self.stream: Stream | None = None
        """The last answer."""
        self.num_left_out = 0
        """Tokens at the front of the text that the last answer did not read, because the context is shorter."""

    def say(self, words: str) -> Generator[str, None, None]:
        """Adds `words` to the text, on a line of their own, and yields the continuation, which joins the text as it comes.

        Nothing is added if the text becomes too long for the context and the settings refuse that (UserError). If the
        iterator is closed before its end, the text keeps what was yielded.
        """
        separator = "\n" if self.text and words and not self.text.endswith("\n") else ""
        text = self.text + separator + words
        prompt_ids = encode_prompt(self._tokenizer, text, self._add_bos)
        stream = self.stream = self._engine.add(prompt_ids, self.settings)
        self.num_left_out = len(prompt_ids) - len(stream.prompt_ids)
        self.text = text
        try:
            while stream.finish_reason is None:
                text = "".join(token.text for token in self._engine.step())
                self.text += text
                # Also while the text is being read, so that it can be stopped.
                yield text
        finally:
            self._engine.remove(stream)

    def reset(self) -> None:
        """Forgets the text."""
        self.text = ""


def change(settings: GenerateSettings, name: str, value: str) -> GenerateSettings:
    """Settings with one value, given as text, replaced. "none" unsets a seed and removes stop strings.

    Raises ConfigError for an unknown name, and for a value that does not fit.
    """
    name = name.replace("-", "_")
    if name not in SETTABLE:
        raise ConfigError(f"there is no setting '{name}'; write one of {', '.join(SETTABLE)}")
    kind = get_type_hints(GenerateSettings)[name]
    return replace(settings, **{name: _read_value(name, kind, value)})


def _read_value(name: str, kind: Any, value: str) -> Any:
    if name in ("stop", "stop_token_ids"):
        words = (
            ()
            if value == "none"
            else (value.encode().decode("unicode_escape"),)
            if name == "stop"
            else value.split(",")
        )
        try:
            return tuple(words) if name == "stop" else tuple(int(word) for word in words)
        except ValueError:
            raise ConfigError(f"{name} {value} is not a list of ids; write for example 2,13") from None
    if name == "beyond":
        return value
    if name == "seed" and value == "none":
        return None
    try:
        return float(value) if kind is float else int(value)
    except ValueError:
        what = "a number" if kind is float else "a whole number"
        raise ConfigError(f"{name} needs {what}, and '{value}' is not one") from None
