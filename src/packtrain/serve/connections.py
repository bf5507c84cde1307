"""Decides how long a connection may take: one that sends or reads too slowly is closed, so that none is kept for nothing."""

import asyncio
import functools
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from packtrain.serve.limits import ServeLimits
from packtrain.serve.refusal import Refusal


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with limits for the head of a request, for a client that does not read, and for how many there are.

    uvicorn itself waits for ever for the rest of a request's head, and for a client that does not take its answer.
    """

    def __init__(self, *args: Any, limits: ServeLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(Refusal(503, "too many connections are open; try again later", code="too_many_connections"))
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._reading is not None:
            # The head is complete; the application limits the time for the body.
            self._reading.cancel()
            self._reading = None
        elif self._reading is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self._limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  the signature is uvicorn's
        # In the middle of an answer there is no place for another.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and (
            self.cycle is None or self.cycle.response_complete
        ):
            self._refuse(Refusal(400, "this is not an HTTP request", code="invalid_http"))
        else:
            self.transport.abort()

    def _expect_head(self) -> None:
        self._reading = self.loop.call_later(self._limits.read_s, self._give_up)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(Refusal(408, "the request took too long to arrive", code="timeout"))

    def _refuse(self, refusal: Refusal) -> None:
        self._forget()
        body = refusal.body()
        self.transport.write(
            f"HTTP/1.1 {refusal.status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        self.transport.close()

    def _forget(self) -> None:
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        self._reading = self._writing = None


def timed(limits: ServeLimits) -> Any:
    """The protocol for uvicorn's `http`."""
    return functools.partial(TimedProtocol, limits=limits)
