"""A server of a run: it follows the run's checkpoints, draws its curves, and ends in peace."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

import packtrain as pt
from packtrain.errors import RunError
from packtrain.generate.weights import NarrowLinear
from packtrain.pretrained.open import OpenModel, open_model
from packtrain.serve import reload
from packtrain.serve.limits import ServeLimits
from packtrain.serve.page import PageParts
from packtrain.serve.server import Serving, Where
from tests.api.conftest import TINY
from tests.command_line import packtrain
from tests.serve.conftest import connect, events, long_text, post, read_all
from tests.serve.test_serve_limits import wait_until


@pytest.fixture(scope="session")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps, saved at steps 4 and 8, with a context of 32; not to be changed."""
    folder: Path = tmp_path_factory.mktemp("served") / "mine"
    pt.train("demo", TINY, {"data.dataset": dataset}, run=folder)
    return folder


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_run_is_followed_between_requests(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.setattr(reload, "_EVERY_S", 0.02)
    folder = tmp_path / "mine"
    shutil.copytree(run, folder)
    later, aside = folder / "checkpoints" / "step-00000008", tmp_path / "aside"
    later.rename(aside)
    body = {"prompt": "the row", "max_tokens": 20, "temperature": 0, "logprobs": 1}
    with pt.serve(folder, port=0, reload=True, slots=2, weights=weights) as server:
        url = f"{server.address}v1/completions"
        before = httpx.post(url, json=body).json()
        damaged = shutil.copytree(aside, folder / "checkpoints" / "step-00000006")
        (damaged / "state.json").write_text("{}")
        shutil.move(aside, later)
        wait_until(lambda: server.step == 8)
        after = httpx.post(url, json=body).json()
        assert httpx.get(f"{server.address}v1/models").json()["data"][0]["step"] == 8
        assert isinstance(server.worker.served.opened.model.lm_head, NarrowLinear) is (weights == "int8")
    assert (before["step"], after["step"], after["system_fingerprint"]) == (4, 8, "step-8")
    probabilities = [made["choices"][0]["logprobs"]["token_logprobs"] for made in (before, after)]
    assert probabilities[0] != probabilities[1]


def test_a_checkpoint_waits_for_the_requests_that_have_begun(run: Path) -> None:
    with pt.serve(run, port=0, slots=1, step=4) as server:
        body = {"prompt": "the", "max_tokens": 20, "stream": True, "n": 4, "logit_bias": {"1": -100}}
        with httpx.stream("POST", f"{server.address}v1/completions", json=body) as answer:
            found = events(answer)
            first = next(found)
            server.worker.swap(open_model(run, step=8))
            steps = {event["step"] for event in (first, *found)}
        wait_until(lambda: server.step == 8)
    assert steps == {4}


def test_narrow_weights_answer_as_generate_does_and_say_what_they_cost(run: Path) -> None:
    asked = {"prompt": "the", "max_tokens": 8, "temperature": 0}
    generated = packtrain(
        "generate", run, "--prompt", "the", "--max-tokens", 8, "--temperature", 0, "--weights", "int8", "--json"
    )
    with pt.serve(run, port=0, weights="int8") as server:
        assert server.weights_note is not None and server.weights_note in " ".join(generated.err.split())
        assert re.search(r"int8: .* MB of weights, .*; \d\.\d{4} bits per byte on [\d,]+ tokens", server.weights_note)
        url = f"{server.address}v1/completions"
        assert httpx.post(url, json=asked).json()["choices"][0]["text"] == json.loads(generated.out)["text"]
        parameters = httpx.get(f"{server.address}v1/models").json()["data"][0]["parameters"]
        assert parameters == sum(p.numel() for p in open_model(run).model.parameters())
    assert "is unknown" in packtrain("serve", run, "--weights", "int4").sentence


def test_the_page_has_the_curves_of_the_run(run: Path) -> None:
    with pt.serve(run, port=0) as server:
        answer = httpx.get(f"{server.address}page/curves")
        assert 'id="loss"' in answer.text and "<script>" not in answer.text
        again = httpx.get(f"{server.address}page/curves", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert 'data-curves="yes"' in httpx.get(server.address).text


def test_a_model_from_elsewhere_has_no_step_and_no_curves(opened: OpenModel) -> None:
    model = dataclasses.replace(opened, step=None)
    with Serving(model, Where(port=0), ServeLimits(), PageParts("", "", None)) as server:
        made = httpx.post(f"{server.address}v1/completions", json={"prompt": "the", "max_tokens": 2}).json()
        assert made["step"] is None and made["system_fingerprint"] is None
        assert httpx.get(f"{server.address}page/curves").status_code == 404
        assert 'data-curves="no"' in httpx.get(server.address).text


def test_what_cannot_be_served_is_refused(run: Path, dataset: Path, tmp_path: Path) -> None:
    with pt.serve(run, port=0) as server:
        port = server.address.rstrip("/").rpartition(":")[2]
        assert "cannot be used" in packtrain("serve", run, "--port", port).sentence
    assert "is a dataset" in packtrain("serve", dataset).sentence
    assert "--token" in packtrain("serve", run, "--host", "0.0.0.0").sentence
    assert "not a port" in packtrain("serve", run, "--port", 70_000).sentence
    assert "--slots" in packtrain("serve", run, "--slots", 0).sentence
    assert "--queue" in packtrain("serve", run, "--queue", -1).sentence
    assert "--reload" in packtrain("serve", run, "--reload", "--step", 4).sentence
    assert "keep one" in packtrain("serve", run, "--token", "a", "--token-file", tmp_path / "t").sentence
    (tmp_path / "empty").write_text("\n")
    assert "empty" in packtrain("serve", run, "--token-file", tmp_path / "empty").sentence
    with pytest.raises(RunError, match="does not exist"):
        pt.serve(tmp_path / "nowhere", port=0)


def test_ctrl_c_ends_streams_with_an_error_and_the_program_with_3(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"http://127.0.0.1:{found.getsockname()[1]}/"
    told: list[bytes] = []

    def ask_and_stop() -> None:
        wait_until(lambda: _lives(address))
        # As many texts as make it last, whatever this machine's speed.
        body = json.dumps(long_text(30, n=120, stream=True)).encode()
        with connect(address, post(body, address)) as made:
            told.append(made.recv(100))
            os.kill(os.getpid(), signal.SIGINT)
            told.append(read_all(made))

    thread = threading.Thread(target=ask_and_stop)
    thread.start()
    done = packtrain("serve", run, "--port", address[:-1].rpartition(":")[2], "--slots", 1, "--json")
    thread.join()
    assert b" 200 " in told[0] and b'"shutting_down"' in told[1] and b"[DONE]" not in told[1]
    facts = {"address": address, "api": f"{address}v1", "model": "mine", "step": 8, "average": None}
    assert (done.code, json.loads(done.out)) == (3, facts) and "the server has ended" in done.err
    assert not _lives(address)


def _lives(address: str) -> bool:
    try:
        return httpx.get(f"{address}healthz").status_code == 200
    except httpx.TransportError:
        return False
