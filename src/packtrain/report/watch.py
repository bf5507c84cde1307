"""Decides how a report follows runs that still train: a page on loopback that reads only new lines, and costs the runs next to nothing.

It takes no lock, writes nothing into a run, works at the lowest priority, does nothing while no page is open, and rests
between two pages for many times as long as it worked on one.
"""

import contextlib
import functools
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from packtrain.errors import ConfigError, PacktrainError
from packtrain.report.collect import RunRecord, collect
from packtrain.report.page import build_page
from packtrain.report.tail import LogReader
from packtrain.runs.layout import RunLayout, find_run

_log = logging.getLogger("packtrain")
_HOST = "127.0.0.1"
# A page may take this share of one core at most.
_MOST_SHARE = 0.02
_LEAST_REST_S = 1.0
_LOWEST_PRIORITY = 19
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class LivePage:
    """The page of runs as their files are now. It is built again only when a file has changed, and not too often.

    `build` makes a page, or a part of one, from what the files say.
    """

    def __init__(self, folders: Sequence[Path], build: Callable[[list[RunRecord]], str] | None = None) -> None:
        self._folders = list(folders)
        self._build = build or functools.partial(build_page, live=True)
        self._readers = [LogReader() for _ in folders]
        self._lock = threading.Lock()
        self._seen: tuple[object, ...] = ()
        self._rested_at = 0.0
        self.content = b""
        self.version = ""

    def refresh(self) -> None:
        """Builds the page again if a file has changed since, and if the last time is long enough ago."""
        with self._lock:
            if self.content and time.monotonic() < self._rested_at:
                return
            seen = tuple(_look(folder) for folder in self._folders)
            if self.content and seen == self._seen:
                return
            began = time.thread_time()
            records = [collect(f, reader) for f, reader in zip(self._folders, self._readers, strict=True)]
            self.content = self._build(records).encode()
            self.version = hashlib.blake2b(self.content, digest_size=8).hexdigest()
            self._seen = seen
            self._rested_at = time.monotonic() + max(_LEAST_REST_S, (time.thread_time() - began) / _MOST_SHARE)


def open_server(folders: Sequence[Path], port: int = 0) -> ThreadingHTTPServer:
    """A server of the live page on loopback; `serve_forever` of it answers. Port 0 takes a free one.

    Raises RunError if a folder is not a run, ConfigError if the port cannot be had.
    """
    for folder in folders:
        find_run(folder)
    page = LivePage(folders)

    class Handler(_PageHandler):
        live = page

    try:
        return _Server((_HOST, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "it is not a port"
        raise ConfigError(f"--port {port} cannot be used ({reason}); leave --port out to take a free one") from None


def lower_priority() -> None:
    """Lets everything else on this machine go first."""
    with contextlib.suppress(OSError):
        os.nice(_LOWEST_PRIORITY)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away in the middle of an answer is not worth a word."""


class _PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of `/`, for this machine only."""

    live: LivePage
    server_version, sys_version = "packtrain", ""
    timeout = 30

    def do_GET(self) -> None:
        # A page of another site cannot read this one under a name of its own (DNS rebinding).
        if not self._is_for_us():
            self._refuse(HTTPStatus.FORBIDDEN, "This page is served to this machine only, at 127.0.0.1 or localhost.")
            return
        if self.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "There is only one page, at /.")
            return
        try:
            self.live.refresh()
        except PacktrainError as error:
            # The folder may have been moved away. The page that is open stays as it is.
            _log.warning("%s", error)
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}.")
            return
        if self.headers.get("If-None-Match") == f'"{self.live.version}"':
            self._answer(HTTPStatus.NOT_MODIFIED, b"")
        else:
            self._answer(HTTPStatus.OK, self.live.content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a line for each request would hide what matters."""

    def _is_for_us(self) -> bool:
        port = self.connection.getsockname()[1]
        return self.headers.get("Host") in {f"{name}:{port}" for name in (_HOST, "localhost")}

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._answer(status, sentence.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str | None = None) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, kind if kind and name == "Content-Type" else value)
        self.send_header("ETag", f'"{self.live.version}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            self.wfile.write(content)


def _look(folder: Path) -> tuple[object, ...]:
    """What changes when a run writes: sizes and times of its files, and the names of its samples and checkpoints."""
    layout = RunLayout(folder)
    files = (layout.config, layout.manifest, layout.metrics, layout.events, layout.evaluation)
    seen: list[object] = []
    for path in (*files, layout.samples, layout.checkpoints, *sorted(layout.evaluations.glob("step-*/*.json"))):
        try:
            status = path.stat()
            seen.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            seen.append(None)
    return tuple(seen)
