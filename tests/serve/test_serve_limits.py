"""What one client can do to the others: nothing that is too large, too slow or too much stops the server, and none is dropped."""

import concurrent.futures
import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from packtrain.pretrained.open import OpenModel
from packtrain.serve.server import Serving
from tests.serve.conftest import Open, connect, events, long_text, name_of, post, read_all

SHORT = {"prompt": "The", "max_tokens": 2}


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_idle(server: Serving) -> bool:
    return server.worker.num_running == server.worker.num_waiting == 0


def answers(server: Serving) -> bool:
    return httpx.post(f"{server.address}v1/completions", json=SHORT, timeout=30).status_code == 200


def test_a_body_that_is_far_too_large_is_refused_while_it_arrives(open_server: Open) -> None:
    server = open_server()
    body = b'{"prompt": "' + b"a" * 20_000_000 + b'"}'
    answer = httpx.post(
        f"{server.address}v1/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def pieces() -> object:
        for _ in range(30):
            yield b"a" * 100_000

    # Without a length that could be looked at.
    answer = httpx.post(
        f"{server.address}v1/completions", content=pieces(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    # A client that asks first is answered before it sends anything.
    head = post(b"", server, length=10**12).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with connect(server, head) as made:
        assert b" 413 " in read_all(made).partition(b"\r\n")[0] + b" "
    assert answers(server)


def test_many_large_bodies_at_once_are_bounded_together(open_server: Open) -> None:
    server = open_server(held_bytes=100_000)
    begun = [connect(server, post(b'{"prompt": "' + b"a" * 60_000, server, length=90_000)) for _ in range(3)]
    begun[2].settimeout(30)
    told = [b" 429 " in made.recv(65536) for made in begun[2:]]
    for made in begun:
        made.close()
    assert told == [True] and answers(server)


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body"])
def test_a_slow_client_is_given_up(open_server: Open, sent: str) -> None:
    server = open_server(read_s=0.2)
    body = json.dumps(SHORT).encode()
    data = {"nothing": b"", "half a head": b"POST /v1/comp", "half a body": post(body, server)[:-5]}[sent]
    with connect(server, data) as made:
        told = read_all(made)
    assert (
        b" 408 " in told.partition(b"\r\n")[0]
        and json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"
    )
    assert answers(server)


def test_a_client_that_does_not_read_is_given_up(open_server: Open) -> None:
    server = open_server(write_s=0.2, slots=1)
    # Small buffers in the system, on both sides, are full after a few tokens.
    server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = json.dumps(long_text(stream=True, logprobs=20)).encode()
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = name_of(server).split(":")
    made.connect((host, int(port)))
    made.sendall(post(body, server))
    wait_until(lambda: server.worker.num_running == 1)
    wait_until(lambda: is_idle(server))
    made.close()
    assert "packtrain_cancelled_requests_total 1.0" in httpx.get(f"{server.address}metrics").text
    assert answers(server)


def test_what_is_not_http_is_told_so(open_server: Open) -> None:
    server = open_server()
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"HELLO\r\n\r\n", b"GET /" + b"a" * 40_000):
        with connect(server, data) as made:
            told = read_all(made)
        assert b" 400 " in told.partition(b"\r\n")[0] and json.loads(told.partition(b"\r\n\r\n")[2])["error"]["code"]
    assert answers(server)


def test_500_connections_at_once_are_all_answered(open_server: Open) -> None:
    server = open_server(slots=4, queue=100)
    body = json.dumps(SHORT).encode()
    made = [
        connect(server, post(body, server).replace(b"\r\nHost", b"\r\nConnection: close\r\nHost")) for _ in range(500)
    ]
    told = [read_all(each) for each in made]
    for each in made:
        each.close()
    codes = [int(one.split(b" ", 2)[1]) for one in told]
    assert set(codes) <= {200, 429} and codes.count(200) >= 100
    assert all(b"retry-after: " in one.lower() for one, code in zip(told, codes, strict=True) if code == 429)
    assert answers(server) and is_idle(server)


def test_more_connections_than_there_may_be_are_told_so(open_server: Open) -> None:
    server = open_server(max_connections=3)
    idle = [connect(server) for _ in range(3)]
    with connect(server) as made:
        assert b" 503 " in read_all(made).partition(b"\r\n")[0]
    for each in idle:
        each.close()
    wait_until(lambda: not server._server.server_state.connections)
    assert answers(server)


def test_a_full_queue_says_when_to_come_again(open_server: Open) -> None:
    server = open_server(slots=1, queue=1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        url = f"{server.address}v1/completions"
        begun = [pool.submit(httpx.post, url, json=long_text(400), timeout=60) for _ in range(2)]
        wait_until(lambda: server.worker.num_running + server.worker.num_waiting == 2)
        refused = httpx.post(url, json=SHORT)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"] == {
            "message": "too many requests are waiting; try again later",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        # What can never fit is not worth another try.
        assert httpx.post(url, json={**SHORT, "n": 3}).status_code == 400
        assert [each.result().json()["usage"]["completion_tokens"] for each in begun] == [400, 400]
    assert answers(server)


def test_more_texts_than_slots_take_turns(open_server: Open) -> None:
    server = open_server(slots=2)
    made = httpx.post(f"{server.address}v1/completions", json=long_text(20, n=9, seed=1), timeout=60).json()
    alone = httpx.post(f"{server.address}v1/completions", json=long_text(20, seed=9), timeout=60).json()
    assert len(made["choices"]) == 9 and made["choices"][8]["text"] == alone["choices"][0]["text"]
    assert made["usage"]["completion_tokens"] == 180


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_frees_its_slot(open_server: Open, streams: bool) -> None:
    server = open_server(slots=1)
    made = connect(server, post(json.dumps(long_text(stream=streams)).encode(), server))
    waits = connect(server, post(json.dumps(long_text()).encode(), server))
    wait_until(lambda: server.worker.num_running == 1 and server.worker.num_waiting == 1)
    waits.close()
    wait_until(lambda: server.worker.num_waiting == 0)
    made.close()
    wait_until(lambda: is_idle(server))
    assert "packtrain_cancelled_requests_total 2.0" in httpx.get(f"{server.address}metrics").text
    assert answers(server)


def test_a_request_that_takes_too_long_is_ended(open_server: Open) -> None:
    server = open_server(max_seconds=0.05, slots=1)
    url = f"{server.address}v1/completions"
    answer = httpx.post(url, json=long_text())
    assert answer.status_code == 408 and answer.headers["x-should-retry"] == "false"
    with httpx.stream("POST", url, json=long_text(stream=True)) as streamed:
        *_, last = events(streamed)
    assert streamed.status_code == 200 and last["error"]["code"] == "timeout"
    wait_until(lambda: is_idle(server))


def test_closing_ends_streams_with_an_error_and_refuses_the_rest(open_server: Open) -> None:
    server = open_server(slots=1)
    with httpx.stream("POST", f"{server.address}v1/completions", json=long_text(stream=True)) as answer:
        found = events(answer)
        assert next(found)["choices"]
        server.close()
        *_, last = found
    assert last["error"]["code"] == "shutting_down" and last["error"]["type"] == "server_error"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.address)


def test_a_model_that_fails_fails_its_texts_and_the_next_are_answered(open_server: Open, opened: OpenModel) -> None:
    server = open_server(slots=2)
    weight = opened.model.model.norm.weight.data
    kept = weight.clone()
    try:
        weight.fill_(float("nan"))
        answer = httpx.post(f"{server.address}v1/completions", json=SHORT)
        with httpx.stream("POST", f"{server.address}v1/completions", json={**SHORT, "stream": True}) as streamed:
            streamed.read()
    finally:
        weight.copy_(kept)
    assert answer.status_code == streamed.status_code == 500 and "not finite" in answer.json()["error"]["message"]
    assert answers(server) and is_idle(server)


def test_metrics_count_what_was_answered(open_server: Open) -> None:
    server = open_server(slots=3)
    assert answers(server) and httpx.get(f"{server.address}nothing").status_code == 404
    text = httpx.get(f"{server.address}metrics").text
    for line in (
        'packtrain_requests_total{path="/v1/completions",status="200"} 1.0',
        'packtrain_requests_total{path="other",status="404"} 1.0',
        "packtrain_generated_tokens_total 2.0",
        "packtrain_prompt_tokens_total 2.0",
        "packtrain_slots 3.0",
        "packtrain_slots_used 0.0",
        "packtrain_queue_length 0.0",
        "packtrain_step 700.0",
        "packtrain_first_token_seconds_count 1.0",
    ):
        assert line in text
    assert httpx.get(f"{server.address}healthz").text == "ok\n"
