"""The official `openai` client works against the server as it is, for everything that the server offers."""

import json
import math
from collections.abc import Iterator

import httpx
import openai
import pytest
import torch

from packtrain.pretrained.open import OpenModel
from packtrain.serve.server import Serving
from tests.serve.conftest import CONTEXT


@pytest.fixture(scope="module")
def api(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}v1", api_key="any", max_retries=0) as made:
        yield made


def test_models(api: openai.OpenAI) -> None:
    (model,) = api.models.list().data
    assert (model.id, model.owned_by, model.step) == ("tiny", "packtrain", 700)  # type: ignore[attr-defined]
    assert api.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model"):
        api.models.retrieve("other")


def test_a_completion_and_its_stream_are_the_same_text(api: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The dog", "max_tokens": 30, "seed": 3, "logit_bias": {"1": -100}}
    whole = api.completions.create(**asked)  # type: ignore[call-overload]
    assert whole.choices[0].finish_reason == "length" and whole.step == 700
    assert whole.usage.completion_tokens == 30
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 30
    chunks = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1]) and len({chunk.id for chunk in chunks}) == 1


def test_the_seed_decides_the_text_whoever_else_asks(api: openai.OpenAI) -> None:
    def ask(prompt: str | list[str], n: int = 1) -> list[str]:
        made = api.completions.create(model="tiny", prompt=prompt, max_tokens=12, seed=5, n=n)
        return [choice.text for choice in made.choices]

    first, second = ask("The", n=2)
    assert first != second and ask("The") == [first]
    # Of several prompts, each text has its own place and the seed of its place.
    assert ask(["The", "A"], n=2)[:2] == [first, second] and len(ask(["The", "A"], n=2)) == 4


def test_logprobs_are_those_of_the_model(api: openai.OpenAI, opened: OpenModel) -> None:
    ids = opened.tokenizer.encode("The dog sleeps.")
    made = api.completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=3)
    told = made.choices[0].logprobs
    with torch.no_grad():
        logits_TV = opened.model(torch.tensor([ids]))[0, :, : opened.tokenizer.vocab_size]
    logprobs_TV = logits_TV.log_softmax(-1)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    for place, (token_id, found) in enumerate(zip(ids[1:], told.token_logprobs[1:], strict=True)):
        assert math.isclose(found, float(logprobs_TV[place, token_id]), abs_tol=1e-4)
        best = logprobs_TV[place].max()
        assert math.isclose(max(told.top_logprobs[place + 1].values()), float(best), abs_tol=1e-4)
    assert made.choices[0].text == "The dog sleeps." == "".join(told.tokens)
    assert told.text_offset == [sum(map(len, told.tokens[:i])) for i in range(len(ids))]
    assert (made.usage.completion_tokens, made.choices[0].finish_reason) == (0, "length")


def test_generated_tokens_have_their_place_after_an_echo(api: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The dog", "max_tokens": 9, "seed": 1, "echo": True, "logprobs": 2}
    made = api.completions.create(**asked).choices[0]  # type: ignore[call-overload]
    assert made.text.startswith("The dog") and made.logprobs.text_offset[0] == 0
    assert len(made.logprobs.tokens) > 9 and None not in made.logprobs.token_logprobs
    assert sorted(made.logprobs.text_offset) == made.logprobs.text_offset
    streamed = list(api.completions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in streamed) == made.text
    tokens = [token for chunk in streamed for token in chunk.choices[0].logprobs.tokens]
    assert tokens == made.logprobs.tokens


def test_a_chat_and_its_stream(api: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "seed": 2}
    whole = api.chat.completions.create(**asked, logprobs=True, top_logprobs=2, n=2)  # type: ignore[call-overload]
    message = whole.choices[0].message
    assert message.role == "assistant" and message.content == message.content.lstrip()
    told = whole.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told)
    spelled = b"".join(bytes(token.bytes) for token in told).decode(errors="replace").lstrip()
    assert spelled.startswith(message.content) or message.content.startswith(spelled[:3])
    chunks = list(api.chat.completions.create(**asked, n=2, stream=True))  # type: ignore[call-overload]
    for index, choice in enumerate(whole.choices):
        deltas = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert deltas[0].delta.role == "assistant" and deltas[-1].finish_reason in ("stop", "length")
        assert "".join(delta.delta.content or "" for delta in deltas) == choice.message.content


def test_stop_strings_end_the_text_before_them(api: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The", "max_tokens": 60, "seed": 4, "logit_bias": {"1": -100}}
    text = api.completions.create(**asked).choices[0].text  # type: ignore[call-overload]
    stop = text[20:23]
    made = api.completions.create(**asked, stop=[stop, "never seen"], logprobs=0).choices[0]  # type: ignore[call-overload]
    assert made.finish_reason == "stop" and made.text == text[: text.index(stop)]
    assert all(offset < len(made.text) for offset in made.logprobs.text_offset)


def test_bias_and_penalties_have_effect(api: openai.OpenAI) -> None:
    asked = {"model": "tiny", "prompt": "The", "max_tokens": 8, "temperature": 0, "logit_bias": {"70": 100}}
    told = api.completions.create(**asked, logprobs=1).choices[0].logprobs.tokens  # type: ignore[call-overload]
    assert len(set(told)) == 1
    varied = api.completions.create(
        model="tiny", prompt="The", max_tokens=8, temperature=0, presence_penalty=2, logprobs=1
    )
    assert len(set(varied.choices[0].logprobs.tokens)) == 8
    more = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.5}
    assert api.completions.create(model="tiny", prompt="The", extra_body=more).usage.prompt_tokens == 2


def test_errors_are_the_clients_own(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        api.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.BadRequestError, match="context holds") as caught:
        api.completions.create(model="tiny", prompt="a b " * CONTEXT)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError, match="did you mean"):
        api.completions.create(model="tiny", prompt="a", extra_body={"top_pp": 1})


def test_a_text_ends_with_the_context(client: httpx.Client) -> None:
    ids = [5] * (CONTEXT - 3)
    asked = {"prompt": ids, "max_tokens": 50, "logit_bias": {"1": -100}}
    made = client.post("/v1/completions", json=asked).json()
    assert made["choices"][0]["finish_reason"] == "length" and made["usage"]["completion_tokens"] == 3


def test_a_stream_is_made_of_events(client: httpx.Client) -> None:
    asked = {"prompt": "The", "max_tokens": 3, "stream": True}
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        *lines, last, _ = answer.read().decode().split("\n\n")
    assert last == "data: [DONE]" and lines
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines)
