"""A server of a tiny model with random weights, and a client that speaks plain HTTP to it."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from packtrain.config.model import ModelConfig
from packtrain.model.init import build
from packtrain.pretrained.open import OpenModel
from packtrain.serve.limits import ServeLimits
from packtrain.serve.page import PageParts
from packtrain.serve.server import Serving, Where
from tests.generate.conftest import make_byte_level

CONTEXT = 2048
Open = Callable[..., Serving]


def make_model(folder: Path) -> OpenModel:
    """A model of one layer that has learned nothing, over a byte-level vocabulary of 400."""
    tokenizer = make_byte_level(folder / "tokenizer")
    config = ModelConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
    )
    model = build(config, seed=0, device="cpu").eval()
    return OpenModel("tiny", folder, model, tokenizer, True, CONTEXT, 700, None)


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return make_model(tmp_path_factory.mktemp("serve"))


@pytest.fixture
def open_server(opened: OpenModel) -> Iterator[Open]:
    """Opens servers with the limits that are given, and closes them."""
    with contextlib.ExitStack() as stack:

        def start(where: Where | None = None, **limits: Any) -> Serving:
            made = Serving(opened, where or Where(port=0), ServeLimits(**limits), PageParts("", "", None))
            return stack.enter_context(made)

        yield start


@pytest.fixture(scope="module")
def server(opened: OpenModel) -> Iterator[Serving]:
    with Serving(opened, Where(port=0), ServeLimits(slots=4), PageParts("", "", None)) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=30) as made:
        yield made


def long_text(num_tokens: int = CONTEXT, **more: Any) -> dict[str, Any]:
    """A request for a text that does not end by itself before it has that many tokens."""
    return {"prompt": "The", "max_tokens": num_tokens, "logit_bias": {"1": -100}, **more}


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream, without its end."""
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def name_of(server: Serving | str) -> str:
    """Host and port of a server, or of its address."""
    return (server if isinstance(server, str) else server.address).removeprefix("http://").rstrip("/")


def connect(server: Serving | str, data: bytes = b"") -> socket.socket:
    """A connection of its own, on which `data` has been sent."""
    host, port = name_of(server).split(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(data)
    return made


def post(body: bytes, server: Serving | str, path: str = "/v1/completions", length: int | None = None) -> bytes:
    """A request as it is sent; `length` is what it says of its body, if that is not so."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {name_of(server)}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def read_all(made: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := made.recv(65536):
        parts.append(part)
    return b"".join(parts)
