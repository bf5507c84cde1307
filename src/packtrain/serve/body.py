"""Decides how much of a request's body is read, and for how long, while it arrives."""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Receive

from packtrain.serve.limits import ServeLimits
from packtrain.serve.refusal import Refusal

# What is too large is read on and thrown away for a while: a client that is cut off does not see why.
_DRAIN_S, _DRAIN_BYTES = 5.0, 256 << 20
_CLOSE = {"Connection": "close"}


class ClientLeft(Exception):  # noqa: N818  it is not an error
    """Nobody waits for an answer any more."""


class BodyReader:
    """Reads bodies within the limits, which all requests share."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._held = 0

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """The body of a request. Raises Refusal if it is not JSON by its header, too large, or too slow; ClientLeft if it ends."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(
                415,
                "the body must be JSON; send it with the header `Content-Type: application/json`",
                code="unsupported_media_type",
                headers=_CLOSE,
            )
        announced = headers.get("content-length", "")
        if announced.isdigit() and (len(announced) > 15 or int(announced) > self._limits.max_body_bytes):
            if "expect" not in headers:
                await _drain(receive)
            raise self._too_large()
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.read_s):
                return await self._read_all(receive, parts)
        except TimeoutError:
            raise Refusal(408, "the request took too long to arrive", code="timeout", headers=_CLOSE) from None
        finally:
            self._held -= sum(map(len, parts))

    async def _read_all(self, receive: Receive, parts: list[bytes]) -> bytes:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > self._limits.max_body_bytes:
                await _drain(receive)
                raise self._too_large()
            if self._held + len(part) > self._limits.held_bytes:
                raise Refusal(
                    429,
                    "too many large requests arrive at once; try again later",
                    code="too_many_bytes",
                    headers={"Retry-After": "1", **_CLOSE},
                )
            self._held += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Refusal:
        return Refusal(
            413, f"the body is larger than {self._limits.max_body_bytes} bytes", code="body_too_large", headers=_CLOSE
        )


async def _drain(receive: Receive) -> None:
    size, more = 0, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            while more and size < _DRAIN_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
