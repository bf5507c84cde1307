"""Decides what is answered under which path, and how an answer follows the model: whole or as a stream, or not at all."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from packtrain.generate.weights import count_weights
from packtrain.serve.answers import ChatReply, CompletionReply, Fields, Reply
from packtrain.serve.body import BodyReader, ClientLeft
from packtrain.serve.exchange import Exchange
from packtrain.serve.guard import Admission, Gatekeeper, answer_refusal
from packtrain.serve.limits import ServeLimits
from packtrain.serve.metrics import CONTENT_TYPE, ServeMetrics
from packtrain.serve.orders import Order, Reader, order_chat, order_completion
from packtrain.serve.page import Page
from packtrain.serve.refusal import Refusal, failed, out_of_time
from packtrain.serve.wanted import ChatWanted, CompletionWanted, Wanted, read_wanted
from packtrain.serve.worker import Worker

_LEFT = 499
"""The status that is counted for a client that left; nobody sees it."""
_SMALL_BYTES = 4096
"""Read within a millisecond."""
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # Or a proxy would keep the pieces until it has many.
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True)
class ServedParts:
    """What the paths share."""

    name: str
    created: int
    worker: Worker
    limits: ServeLimits
    metrics: ServeMetrics
    bodies: BodyReader
    page: Page


class TextPath:
    """A path that makes text: what it reads, what it orders and how it answers."""

    def __init__(
        self,
        parts: ServedParts,
        wanted: type[Wanted],
        order: Callable[[Any, Reader], list[Order]],
        answer: type[Reply],
    ) -> None:
        self._parts, self._wanted, self._order, self._answer = parts, wanted, order, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        loop, parts = asyncio.get_running_loop(), self._parts
        try:
            body = await parts.bodies.read(Headers(scope=scope), receive)
            if len(body) <= _SMALL_BYTES:
                wanted, orders = self._read(body)
            else:
                # A long prompt takes a while to encode.
                wanted, orders = await asyncio.to_thread(self._read, body)
            exchange = Exchange(orders)
            parts.worker.submit(exchange)
        except Refusal as refusal:
            await answer_refusal(refusal)(scope, receive, send)
            return
        except ClientLeft:
            parts.metrics.cancelled.inc()
            return
        limit = parts.limits.max_seconds
        timer = loop.call_later(limit, exchange.inbox.put_nowait, (0, out_of_time(limit)))
        watch = loop.create_task(_watch_client(receive, exchange))
        answer = self._answer(exchange, parts.name, parts.worker.served.reader.table, texts_per_prompt=wanted.n)
        parts.metrics.prompt_tokens.inc(answer.usage()["prompt_tokens"])
        try:
            if wanted.stream:
                await self._stream(exchange, answer, wanted, send, began)
            else:
                response = await self._wait(exchange, answer, began)
                await response(scope, receive, send)
        except Refusal as refusal:
            if refusal.status == _LEFT:
                parts.metrics.cancelled.inc()
            else:
                await answer_refusal(refusal)(scope, receive, send)
        finally:
            timer.cancel()
            watch.cancel()
            parts.worker.cancel(exchange)

    def _read(self, body: bytes) -> tuple[Wanted, list[Order]]:
        wanted = read_wanted(body, self._wanted)
        if wanted.model not in (None, self._parts.name):
            raise _no_model(wanted.model)
        if wanted.stream_options is not None and not wanted.stream:
            raise Refusal(400, "stream_options needs stream; set stream to true", param="stream_options")
        return wanted, self._order(wanted, self._parts.worker.served.reader)

    async def _wait(self, exchange: Exchange, answer: Reply, began: float) -> Response:
        is_first = True
        async for told in exchange.messages():
            if is_first:
                self._parts.metrics.first_token_seconds.observe(time.perf_counter() - began)
                is_first = False
            for index, message in told:
                answer.add(index, message)
        return JSONResponse(answer.whole())

    async def _stream(self, exchange: Exchange, answer: Reply, wanted: Wanted, send: Send, began: float) -> None:
        """Sends what has come, as often as something has. What is refused before the first piece has a status of its own."""
        has_begun = False
        try:
            async for told in exchange.messages():
                events: list[Fields] = []
                for index, message in told:
                    answer.add(index, message)
                    events += answer.chunks(index, message, has_usage=wanted.includes_usage)
                if not has_begun:
                    self._parts.metrics.first_token_seconds.observe(time.perf_counter() - began)
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                    has_begun = True
                await _send_events(send, events)
        except Refusal as refusal:
            if not has_begun or refusal.status == _LEFT:
                raise
            await _send_events(send, [refusal.content()])
            await send({"type": "http.response.body"})
            return
        if wanted.includes_usage:
            await _send_events(send, [answer.last_chunk()])
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


class Counted:
    """Counts and times what the application answers, by its known paths."""

    def __init__(self, app: ASGIApp, metrics: ServeMetrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), _LEFT

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_look)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - began)


def build_app(parts: ServedParts, admission: Admission) -> ASGIApp:
    """The whole application, guarded and measured."""
    routes = [
        Route("/", parts.page.show, methods=["GET"]),
        Route("/page/curves", parts.page.show_curves, methods=["GET"]),
        Route("/healthz", _Health(parts), methods=["GET"]),
        Route("/metrics", _Metrics(parts), methods=["GET"]),
        Route("/v1/models", _Models(parts), methods=["GET"]),
        Route("/v1/models/{name:path}", _Models(parts), methods=["GET"]),
        Route(
            "/v1/completions", TextPath(parts, CompletionWanted, order_completion, CompletionReply), methods=["POST"]
        ),
        Route("/v1/chat/completions", TextPath(parts, ChatWanted, order_chat, ChatReply), methods=["POST"]),
    ]
    handlers = {HTTPException: _explain_path, Refusal: _explain_refusal, Exception: _explain_fault}
    app = Starlette(routes=routes, exception_handlers=handlers)
    paths = frozenset(route.path for route in routes)
    return Counted(Gatekeeper(app, admission), parts.metrics, paths)


class _Metrics:
    def __init__(self, parts: ServedParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = self._parts.metrics.write()
        await Response(content, headers={"Content-Type": CONTENT_TYPE})(scope, receive, send)


class _Models:
    """The list of models, which is one, and that one by its name."""

    def __init__(self, parts: ServedParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"].get("name")
        if name is not None and name != self._parts.name:
            raise _no_model(name)
        opened = self._parts.worker.served.opened
        model = {
            "id": self._parts.name,
            "object": "model",
            "created": self._parts.created,
            "owned_by": "packtrain",
            "step": opened.step,
            "context_length": opened.context_length,
            "parameters": count_weights(opened.model),
        }
        content = model if name is not None else {"object": "list", "data": [model]}
        await JSONResponse(content)(scope, receive, send)


class _Health:
    def __init__(self, parts: ServedParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_well = self._parts.worker.is_alive
        response = PlainTextResponse("ok\n" if is_well else "the model's thread has ended\n", 200 if is_well else 503)
        await response(scope, receive, send)


async def _explain_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {
        404: "there is nothing under this path; the API is under /v1",
        405: f"this path does not take {request.method}",
    }
    refusal = Refusal(
        error.status_code, sentence.get(error.status_code, str(error.detail)), headers=dict(error.headers or {})
    )
    return answer_refusal(refusal)


async def _explain_refusal(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, Refusal)
    return answer_refusal(error)


async def _explain_fault(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """A bug of ours, whose traceback goes to the log."""
    return answer_refusal(failed("the server failed at this request; its log says more"))


async def _watch_client(receive: Receive, exchange: Exchange) -> None:
    """Ends the exchange when its client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.inbox.put_nowait((0, Refusal(_LEFT, "the client left")))


async def _send_events(send: Send, events: list[Fields]) -> None:
    body = "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events)
    await send({"type": "http.response.body", "body": body.encode(), "more_body": True})


def _no_model(name: str | None) -> Refusal:
    shown = json.dumps(str(name)[:100])
    return Refusal(
        404, f"there is no model {shown}; GET /v1/models names the one there is", param="model", code="model_not_found"
    )
