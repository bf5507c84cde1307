"""What a request may ask for: every field that does not fit is named in an answer of 4xx, in the shape of OpenAI's errors."""

import json
from typing import Any

import httpx
import pytest

from packtrain.serve.orders import write_prompt
from packtrain.serve.refusal import Refusal
from packtrain.serve.wanted import ChatWanted, CompletionWanted, read_wanted
from tests.serve.conftest import CONTEXT

BAD_BODIES = {
    "not JSON": b"{",
    "not an object": b"[]",
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "half a character": b'{"prompt": "\\ud800"}',
    "nothing": b"",
    "far too deep": b"[" * 100_000,
    "a number of a million digits": b'{"prompt": "a", "n": ' + b"9" * 900_000 + b"}",
}
BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({}, "prompt"),
    "a null prompt": ({"prompt": None}, "prompt"),
    "no prompts": ({"prompt": []}, "prompt"),
    "a number": ({"prompt": 5}, "prompt"),
    "an object": ({"prompt": {"text": "a"}}, "prompt"),
    "mixed": ({"prompt": ["a", 5]}, "prompt"),
    "an empty list of ids": ({"prompt": [[]]}, "prompt"),
    "negative ids": ({"prompt": [-1]}, "prompt"),
    "ids out of range": ({"prompt": [5, 400]}, "prompt"),
    "a huge id": ({"prompt": [10**30]}, "prompt"),
    "too many prompts": ({"prompt": ["a"] * 129}, "prompt"),
    "longer than the context": ({"prompt": "word " * CONTEXT}, "prompt"),
    "ids longer than the context": ({"prompt": [5] * CONTEXT}, "prompt"),
    "a model that is not there": ({"prompt": "a", "model": "gpt-4"}, "model"),
    "temperature of NaN": ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    "temperature of infinity": ({"prompt": "a", "temperature": float("inf")}, "temperature"),
    "negative temperature": ({"prompt": "a", "temperature": -1}, "temperature"),
    "temperature as text": ({"prompt": "a", "temperature": "hot"}, "temperature"),
    "top_p of 0": ({"prompt": "a", "top_p": 0}, "top_p"),
    "huge n": ({"prompt": "a", "n": 10**6}, "n"),
    "n of 0": ({"prompt": "a", "n": 0}, "n"),
    "n as truth": ({"prompt": "a", "n": True}, "n"),
    "n times prompts": ({"prompt": ["a"] * 64, "n": 64}, "n"),
    "negative max_tokens": ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    "no tokens at all": ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    "many stop strings": ({"prompt": "a", "stop": [str(i) for i in range(10_000)]}, "stop"),
    "an empty stop string": ({"prompt": "a", "stop": [""]}, "stop.0"),
    "a long stop string": ({"prompt": "a", "stop": "x" * 5000}, "stop.0"),
    "logprobs of 1000": ({"prompt": "a", "logprobs": 1000}, "logprobs"),
    "a bias of 1000": ({"prompt": "a", "logit_bias": {"5": 1000}}, "logit_bias.5"),
    "a bias for a word": ({"prompt": "a", "logit_bias": {"the": 5}}, "logit_bias"),
    "a bias out of range": ({"prompt": "a", "logit_bias": {"400": 5}}, "logit_bias"),
    "a negative seed": ({"prompt": "a", "seed": -5}, "seed"),
    "an unknown field": ({"prompt": "a", "temprature": 1}, "temprature"),
    "a suffix": ({"prompt": "a", "suffix": "b"}, "suffix"),
    "best_of": ({"prompt": "a", "best_of": 5}, "best_of"),
    "options of no stream": ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
}
BAD_CHATS: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({}, "messages"),
    "an empty list": ({"messages": []}, "messages"),
    "a text": ({"messages": "hello"}, "messages"),
    "another role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    "tools": ({"messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}, "tools"),
    "JSON": (
        {"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}},
        "response_format",
    ),
    "alternatives alone": ({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "top_logprobs"),
    "too long": ({"messages": [{"role": "user", "content": "word " * CONTEXT}]}, "messages"),
}


def check_refused(answer: httpx.Response, param: str | None = None) -> None:
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    if param is not None:
        assert (error["param"] or "").startswith(param)


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_body_that_cannot_be_read_is_refused(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/completions", content=BAD_BODIES[name], headers={"Content-Type": "application/json"})
    check_refused(answer)


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_field_that_does_not_fit_is_named(client: httpx.Client, name: str) -> None:
    body, param = BAD_FIELDS[name]
    answer = client.post("/v1/completions", content=json.dumps(body), headers={"Content-Type": "application/json"})
    check_refused(answer, param)


@pytest.mark.parametrize("name", BAD_CHATS)
def test_a_chat_that_cannot_be_answered_is_refused(client: httpx.Client, name: str) -> None:
    body, param = BAD_CHATS[name]
    check_refused(client.post("/v1/chat/completions", json=body), param)


def test_other_paths_methods_and_types_are_refused(client: httpx.Client) -> None:
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/completions").status_code == 405
    assert client.post("/v1/completions", data={"prompt": "a"}).status_code == 415
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    # And after all of that, the server answers.
    assert client.post("/v1/completions", json={"prompt": "The", "max_tokens": 1}).status_code == 200


def test_what_says_nothing_is_passed_over() -> None:
    body = {"prompt": "a", "user": "me", "metadata": {"a": "b"}, "suffix": None, "n": None, "store": False}
    wanted = read_wanted(json.dumps(body).encode(), CompletionWanted)
    assert (wanted.prompts, wanted.n) == (["a"], 1)


def test_an_error_does_not_repeat_the_request() -> None:
    with pytest.raises(Refusal) as caught:
        read_wanted(b'{"prompt": "a secret" and more', CompletionWanted)
    assert "secret" not in caught.value.message


def test_a_conversation_becomes_plain_text() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ]
    wanted = read_wanted(json.dumps({"messages": messages}).encode(), ChatWanted)
    assert write_prompt(wanted.messages) == "Be brief.\nUser: Hello there\nAssistant: Hi.\nUser: Bye\nAssistant:"
