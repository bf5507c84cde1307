"""Who is answered: a page elsewhere never reaches the model, neither from its own origin nor under a name of its own."""

import httpx
import pytest

from packtrain.errors import ConfigError
from packtrain.serve.guard import admit
from packtrain.serve.server import Where
from tests.serve.conftest import Open

ASKED = {"prompt": "The", "max_tokens": 1}


def ask(address: str, body: dict[str, object] | None = None, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{address}v1/completions",
        json=body or ASKED,
        headers={key.replace("_", "-"): value for key, value in headers.items()},
    )


def test_only_its_own_names_are_answered(client: httpx.Client) -> None:
    port = client.base_url.port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
    for host in (f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "x@localhost"):
        answer = client.get("/v1/models", headers={"Host": host})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed"
        assert client.get("/", headers={"Host": host}).status_code == 403


def test_pages_of_other_sites_are_refused(client: httpx.Client) -> None:
    address = str(client.base_url)
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://localhost",
        "https://evil.example:8000",
        "x",
    ):
        answer = ask(address, Origin=origin)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        # Nor does the question before it, which a browser asks.
        asked = httpx.options(f"{address}v1/completions", headers={"Origin": origin})
        assert asked.status_code == 403
    for site in ("cross-site", "same-site"):
        assert client.get("/v1/models", headers={"Sec-Fetch-Site": site}).status_code == 403
        visit = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        assert client.get("/", headers=visit).status_code == 200
        assert client.get("/metrics", headers=visit).status_code == 403
    assert ask(address, Origin=address.rstrip("/")).status_code == 200


def test_an_allowed_site_and_name_are_answered(open_server: Open) -> None:
    server = open_server(Where(port=0, allowed_hosts=("box.example",), allowed_origins=("https://app.example",)))
    answer = ask(server.address, Origin="https://app.example", Host="box.example")
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
    asked = httpx.options(f"{server.address}v1/completions", headers={"Origin": "https://app.example"})
    assert asked.status_code == 204 and "authorization" in asked.headers["access-control-allow-headers"]
    assert ask(server.address, Origin="https://app.example.evil").status_code == 403


def test_a_token_is_needed_for_everything_that_tells_something(open_server: Open) -> None:
    address = open_server(Where(port=0, token="a secret")).address
    for value in ("", "Bearer", "Bearer a", "Bearer a secret2", "Basic a secret", "Bearer \xe9"):
        answer = (
            ask(address, Authorization=value.encode("latin-1").decode("latin-1")) if value.isascii() else ask(address)
        )
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    right = {"Authorization": "Bearer a secret"}
    for path in ("v1/models", "metrics", "page/curves"):
        assert httpx.get(address + path).status_code == 401
    assert httpx.get(f"{address}v1/models", headers=right).status_code == 200
    assert ask(address, **right).status_code == 200
    # The page says nothing of the model, and a probe needs to know only that the server lives.
    assert httpx.get(address).status_code == httpx.get(f"{address}healthz").status_code == 200
    assert "tiny" not in httpx.get(address).text


def test_what_would_be_open_to_everybody_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.example"):
        with pytest.raises(ConfigError, match="--token"):
            admit(host)
        assert admit(host, token="secret").token == "secret"
    assert admit("127.0.0.2").token is admit("::1").token is None


def test_names_origins_and_tokens_that_cannot_be_are_refused() -> None:
    for origin in ("*", "app.example", "https://app.example/", "ftp://x", "null"):
        with pytest.raises(ConfigError, match="--allow-origin"):
            admit("127.0.0.1", (), (origin,))
    for name in ("box:80", "https://box", "a b", ""):
        with pytest.raises(ConfigError, match="--allow-host"):
            admit("127.0.0.1", (name,))
    for token in ("", " a", "a\nb", "é"):
        with pytest.raises(ConfigError, match="token"):
            admit("127.0.0.1", token=token)


def test_every_answer_has_the_headers_that_protect_it(client: httpx.Client) -> None:
    for path in ("/", "/v1/models", "/nothing", "/healthz"):
        headers = client.get(path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and "unsafe" not in headers["content-security-policy"]
        )
        assert (
            headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
        )
        assert "access-control-allow-origin" not in headers
