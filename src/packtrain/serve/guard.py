"""Decides which requests are answered at all: those under the server's own name, from its own page or no page, and with the token.

A web page elsewhere can send requests to this machine, and by DNS rebinding even under a name of its own. It cannot choose the
`Host`, `Origin` and `Sec-Fetch-Site` that the browser writes.
"""

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packtrain.errors import ConfigError
from packtrain.serve.refusal import Refusal

# The page has no secrets in itself, and a probe for life has no token.
_OPEN_PATHS = ("/", "/healthz")
_CORS = {
    "Access-Control-Allow-Methods": "GET, POST",
    # What the official clients send.
    "Access-Control-Allow-Headers": "authorization, content-type, openai-organization, openai-project, x-stainless-arch, "
    "x-stainless-async, x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, "
    "x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout",
    "Access-Control-Max-Age": "600",
}


@dataclass(frozen=True)
class Admission:
    """Names under which the server is asked, pages elsewhere that may ask it, and the token, if one is needed."""

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    token: str | None = None

    def check(self, headers: Headers, path: str, method: str) -> str | None:
        """Raises Refusal for what is not answered; else gives the other page's origin, if it is one."""
        name = _host_name(headers.get("host", ""))
        if name is None or not (name in self.hosts or _is_address(name)):
            raise Refusal(
                403,
                "this server is not known under that name; use its address, or start it with --allow-host NAME",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        other = None
        if origin is not None and not _is_same(origin, headers["host"]):
            if origin not in self.origins:
                raise Refusal(
                    403,
                    "pages of other sites may not use this server; start it with --allow-origin ORIGIN to allow one",
                    code="origin_not_allowed",
                )
            other = origin
        is_visit = path == "/" and headers.get("sec-fetch-mode") == "navigate"
        # Without an Origin, as a picture or a script is asked for.
        if origin is None and headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_visit:
            raise Refusal(403, "pages of other sites may not use this server", code="origin_not_allowed")
        if path not in _OPEN_PATHS and method != "OPTIONS":
            self._check_token(headers)
        return other

    def _check_token(self, headers: Headers) -> None:
        if self.token is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        # compare_digest takes the same time wherever they differ.
        is_right = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not is_right:
            raise Refusal(
                401,
                "the token is missing or wrong; send the header `Authorization: Bearer TOKEN` (the client's api_key)",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def admit(
    host: str, allowed_hosts: Sequence[str] = (), allowed_origins: Sequence[str] = (), token: str | None = None
) -> Admission:
    """The admission of a server that is bound to `host`. Raises ConfigError for a name, origin or token that cannot be one."""
    for origin in allowed_origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
            raise ConfigError(f"--allow-origin {origin} is not an origin; write it as https://name or http://name:port")
    for name in allowed_hosts:
        if _host_name(name) != name.lower():
            raise ConfigError(f"--allow-host {name} is not a name; write it as name.example, without a port")
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ConfigError(
            "the token has characters that a header cannot carry; give printable ASCII without spaces around it"
        )
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} lets other machines use the model; add --token TEXT, which their requests must then carry"
        )
    hosts = {"localhost", host.lower(), *(name.lower() for name in allowed_hosts)}
    return Admission(frozenset(hosts), frozenset(allowed_origins), token)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Gatekeeper:
    """An ASGI application that lets through what `Admission` does, and puts the same headers on every answer."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
                headers["Cross-Origin-Resource-Policy"] = "cross-origin" if origin else "same-origin"
                headers["Vary"] = "Origin"
                if origin:
                    headers["Access-Control-Allow-Origin"] = origin
            await send(message)

        try:
            origin = self._admission.check(Headers(scope=scope), scope["path"], scope["method"])
        except Refusal as refusal:
            await answer_refusal(refusal)(scope, receive, send_with_headers)
            return
        if scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=_CORS if origin else {"Allow": "GET, POST"})(
                scope, receive, send_with_headers
            )
            return
        await self._app(scope, receive, send_with_headers)


def answer_refusal(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    return Response(refusal.body(), refusal.status, refusal.headers, "application/json")


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is not one."""
    if not host or any(character in host for character in "/\\@ ?#,"):
        return None
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname


def _is_address(name: str) -> bool:
    """Whether a name is a number. Rebinding needs a name, so no page can be under a number that is ours."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str) -> bool:
    return urlsplit(origin).netloc.lower() == host.lower() if origin != "null" else False
