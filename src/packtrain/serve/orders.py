"""Decides what a request means for this model: the ids of its prompts, and how each text is to be made."""

from dataclasses import dataclass

from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ConfigError, UserError
from packtrain.generate.decode import encode_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.serve.growing import locate
from packtrain.serve.pieces import TokenTable
from packtrain.serve.refusal import Refusal
from packtrain.serve.wanted import ChatWanted, CompletionWanted, Message, Wanted

DEFAULT_TOKENS = 16
"""Of a completion, as in OpenAI's API; a chat may fill the context."""
MAX_ORDERS = 128
USER, ASSISTANT = "User:", "Assistant:"
END_OF_TURN = f"\n{USER}"


@dataclass(frozen=True)
class Reader:
    """How a model reads text."""

    tokenizer: Tokenizer
    table: TokenTable
    add_bos: bool
    context_length: int
    vocab_rows: int
    """Ids that the model has a row for; a little more than the tokenizer's."""


@dataclass(frozen=True)
class Order:
    """One text to make. `settings` is None if only the prompt is wanted, with the probabilities of its tokens."""

    prompt_ids: list[int]
    settings: GenerateSettings | None
    max_tokens: int
    num_alternatives: int | None
    """How many alternatives each token has; None if no probabilities are wanted."""
    scores_prompt: bool = False
    echo: str | None = None
    """The prompt, if the answer begins with it."""
    echo_from: int = 0
    """The first id of the prompt that is part of `echo`: a begin-of-text token is not."""


def order_completion(wanted: CompletionWanted, reader: Reader) -> list[Order]:
    """The texts of a completion: of each prompt, `n`. Raises Refusal for what does not fit the model."""
    if wanted.best_of is not None and wanted.best_of != wanted.n:
        raise Refusal(400, "this model does not support best_of; leave it out", param="best_of", code="unsupported")
    asked = DEFAULT_TOKENS if wanted.max_tokens is None else wanted.max_tokens
    if asked == 0 and not wanted.echo:
        raise Refusal(400, "max_tokens of 0 needs echo; give max_tokens of at least 1", param="max_tokens")
    prompts = wanted.prompts
    if len(prompts) * wanted.n > MAX_ORDERS:
        raise Refusal(
            400, f"{len(prompts)} prompts times n are too many texts; ask for at most {MAX_ORDERS}", param="n"
        )
    orders: list[Order] = []
    for prompt in prompts:
        ids, first = read_prompt(prompt, reader, leaves_room=asked > 0)
        echo = None
        if wanted.echo:
            echo = prompt if isinstance(prompt, str) else locate(reader.tokenizer, ids)[0]
        for _ in range(wanted.n):
            orders.append(
                Order(
                    ids,
                    _settings(wanted, reader, len(orders), asked, wanted.logprobs, wanted.stop) if asked else None,
                    min(asked, reader.context_length - len(ids)),
                    wanted.logprobs,
                    scores_prompt=wanted.echo and wanted.logprobs is not None,
                    echo=echo,
                    echo_from=first,
                )
            )
    return orders


def order_chat(wanted: ChatWanted, reader: Reader) -> list[Order]:
    """The texts of a chat: `n`, each an answer to the conversation. Raises Refusal for what does not fit the model."""
    if wanted.top_logprobs is not None and not wanted.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs; set logprobs to true", param="top_logprobs")
    ids, _ = read_prompt(write_prompt(wanted.messages), reader, leaves_room=True, param="messages")
    room = reader.context_length - len(ids)
    asked = wanted.max_completion_tokens or wanted.max_tokens
    if wanted.max_tokens == 0:
        raise Refusal(400, "max_tokens is 0; give at least 1", param="max_tokens")
    num_alternatives = (wanted.top_logprobs or 0) if wanted.logprobs else None
    stops = [*wanted.stop, END_OF_TURN]
    return [
        Order(
            ids,
            _settings(wanted, reader, i, asked or room, num_alternatives, stops),
            min(asked or room, room),
            num_alternatives,
        )
        for i in range(wanted.n)
    ]


def write_prompt(messages: list[Message]) -> str:
    """A conversation as plain text, for a model that was trained on text alone: who speaks, what they say, and whose turn it is.

    System messages stand by themselves. The answer ends before the next "User:".
    """
    names = {"user": f"{USER} ", "assistant": f"{ASSISTANT} "}
    lines = [names.get(message.role, "") + message.text.strip() + "\n" for message in messages]
    return "".join(lines) + ASSISTANT


def read_prompt(
    prompt: str | list[int], reader: Reader, *, leaves_room: bool, param: str = "prompt"
) -> tuple[list[int], int]:
    """Ids of a prompt, and the place of the first that is the user's own. Ids that are given are taken as they are."""
    most = reader.context_length - (1 if leaves_room else 0)
    if isinstance(prompt, str):
        # Without encoding it: a megabyte of text takes seconds.
        least = len(prompt.encode()) // reader.table.longest
        if least > most:
            raise _too_long(f"at least {least}", reader, param)
        try:
            ids = encode_prompt(reader.tokenizer, prompt, reader.add_bos)
        except UserError as error:
            raise Refusal(400, str(error), param=param) from None
        first = 1 if reader.add_bos else 0
    else:
        ids, first = prompt, 0
        if max(ids) >= reader.vocab_rows:
            raise Refusal(400, f"there is no token {max(ids)}; give ids from 0 to {reader.vocab_rows - 1}", param=param)
    if len(ids) > most:
        raise _too_long(str(len(ids)), reader, param)
    return ids, first


def _settings(
    wanted: Wanted,
    reader: Reader,
    index: int,
    max_tokens: int,
    num_alternatives: int | None,
    stops: list[str],
) -> GenerateSettings:
    seed = None if wanted.seed is None else (wanted.seed + index) % 2**63
    try:
        return GenerateSettings(
            max_tokens=max_tokens,
            temperature=wanted.temperature,
            top_k=wanted.top_k,
            top_p=wanted.top_p,
            min_p=wanted.min_p,
            repetition_penalty=wanted.repetition_penalty,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            logit_bias=_read_bias(wanted.logit_bias, reader),
            logprobs=num_alternatives,
            seed=seed,
            stop=tuple(stops),
        )
    except ConfigError as error:
        raise Refusal(400, str(error)) from None


def _read_bias(bias: dict[str, float], reader: Reader) -> dict[int, float]:
    """A bias by token id; JSON has texts for keys. Raises Refusal for an id that the model does not have."""
    found = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < reader.vocab_rows):
            raise Refusal(
                400,
                f"logit_bias has the key {key[:20]!r}; its keys are token ids from 0 to {reader.vocab_rows - 1}, in quotes",
                param="logit_bias",
            )
        found[int(key)] = value
    return found


def _too_long(length: str, reader: Reader, param: str) -> Refusal:
    return Refusal(
        400,
        f"the prompt is {length} tokens long, but the model's context holds {reader.context_length}; give a shorter one",
        param=param,
        code="context_length_exceeded",
    )
