"""Decides how a server starts and ends: a socket, the thread of the model, the thread of the event loop, and their order."""

import socket
import threading
import time
from dataclasses import dataclass

import uvicorn

from packtrain.errors import ConfigError
from packtrain.pretrained.open import OpenModel
from packtrain.runs.checkpoint import AverageKind
from packtrain.serve.app import ServedParts, build_app
from packtrain.serve.body import BodyReader
from packtrain.serve.connections import timed
from packtrain.serve.guard import admit
from packtrain.serve.limits import ServeLimits
from packtrain.serve.metrics import ServeMetrics
from packtrain.serve.page import Page, PageParts
from packtrain.serve.reload import Follow, Follower
from packtrain.serve.worker import Worker

_BACKLOG = 1024
_CLOSE_S = 10
_KEEP_ALIVE_S = 15


@dataclass(frozen=True)
class Where:
    """Where a server listens, and who may ask it."""

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


class Serving:
    """A server that answers until `close`; also a context. Its threads are its own, so that the caller's is free."""

    def __init__(
        self,
        opened: OpenModel,
        where: Where,
        limits: ServeLimits,
        page: PageParts,
        follow: Follow | None = None,
    ) -> None:
        """`follow` answers with newer checkpoints of the run. Raises ConfigError for a host, port or name that cannot be had."""
        admission = admit(where.host, where.allowed_hosts, where.allowed_origins, where.token)
        self._socket = _listen(where.host, where.port)
        self.name = opened.name
        self.weights_note: str | None = None
        """What narrower weights save and cost, if the model has them."""
        host, port = self._socket.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{port}/"
        metrics = ServeMetrics()
        self.worker = Worker(opened, limits, on_tokens=metrics.tokens.inc)
        metrics.watch(self.worker, limits.slots)
        parts = ServedParts(
            name=opened.name,
            created=int(time.time()),
            worker=self.worker,
            limits=limits,
            metrics=metrics,
            bodies=BodyReader(limits),
            page=Page(page),
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                build_app(parts, admission),
                http=timed(limits),
                ws="none",
                lifespan="off",
                loop="asyncio",
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_CLOSE_S,
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="packtrain-serve", daemon=True
        )
        self._thread.start()
        device = str(opened.model.model.norm.weight.device)
        self._follower = None if follow is None else Follower(self.worker, follow, device)

    @property
    def step(self) -> int | None:
        """The training step of the model that answers now; None if it is not from a run."""
        return self.worker.served.opened.step

    @property
    def average(self) -> AverageKind | None:
        """Of what kind the weights that answer now are an average over steps; None: they are those of one step."""
        return self.worker.served.opened.average

    def wait(self) -> None:
        """Until `close`; a signal gets the caller out."""
        # Not by joining a thread: Python 3.11 takes a thread for ended when a signal interrupts that.
        while not self._ended.wait(timeout=60.0):
            pass

    def close(self) -> None:
        """Ends every answer with an error, then the connections and the threads."""
        if self._follower is not None:
            self._follower.close()
        self.worker.close()
        self._server.should_exit = True
        self._thread.join(timeout=_CLOSE_S + 5.0)
        self._socket.close()
        self._ended.set()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        # The system would take the rest of it after division.
        raise ConfigError(f"--port {port} is not a port; give a number from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or "the system refuses it"
        instead = "leave --port out or give another" if port else "give another --host"
        raise ConfigError(f"--host {host} --port {port} cannot be used ({reason}); {instead}") from None
