"""Decides how the server says no: in the shape of OpenAI's errors, so that its clients raise the exceptions they know."""

import json
from typing import Any


class Refusal(Exception):  # noqa: N818  it is an answer
    """An answer with a status of 400 or more. `param` is the field of the request that is at fault, if it is one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def content(self) -> dict[str, Any]:
        """The body, as JSON; in a stream it is one event."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.content()).encode()

    @property
    def kind(self) -> str:
        """The type of the error, as OpenAI calls it."""
        by_status = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return by_status.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


def too_busy(seconds: int) -> Refusal:
    """The queue is full; in `seconds` there may be room."""
    return Refusal(
        429,
        "too many requests are waiting; try again later",
        code="queue_full",
        headers={"Retry-After": str(seconds)},
    )


def shutting_down() -> Refusal:
    return Refusal(503, "the server is shutting down", code="shutting_down")


def out_of_time(seconds: float) -> Refusal:
    # The client would send the same request again, and fill the slots with it.
    return Refusal(
        408,
        f"the request took longer than {seconds:g} s; ask for fewer tokens, or start the server with a larger --max-seconds",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def failed(reason: str) -> Refusal:
    return Refusal(500, reason, code="failed", headers={"x-should-retry": "false"})
