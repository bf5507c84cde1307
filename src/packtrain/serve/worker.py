"""Decides who runs the model: one thread, which keeps as many texts going at once as there are slots, and lets the others wait."""

import asyncio
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from packtrain.errors import PacktrainError
from packtrain.generate.batch import Engine, Stream
from packtrain.pretrained.open import OpenModel
from packtrain.serve.exchange import Exchange, ScoredPrompt, Told
from packtrain.serve.growing import GrowingText, Piece
from packtrain.serve.limits import ServeLimits
from packtrain.serve.orders import Order, Reader
from packtrain.serve.pieces import TokenTable
from packtrain.serve.refusal import Refusal, failed, shutting_down, too_busy
from packtrain.serve.score import score_prompt

_log = logging.getLogger("packtrain")
_LONGEST_RETRY_S = 60


@dataclass(eq=False)
class Ticket:
    """A text of an exchange that waits for a slot, or has one."""

    exchange: Exchange
    index: int
    text: GrowingText
    began: float = 0.0

    @property
    def order(self) -> Order:
        return self.exchange.orders[self.index]


@dataclass
class Served:
    """The model that answers, and how it reads text."""

    opened: OpenModel
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.opened.tokenizer
        rows = min(self.opened.model.config.vocab_rows, tokenizer.vocab_size)
        table = TokenTable(tokenizer)
        self.reader = Reader(tokenizer, table, self.opened.add_bos, self.opened.context_length, rows)


class Worker:
    """The thread that runs the model. Everything public may be called from the event loop, and returns at once."""

    def __init__(
        self, opened: OpenModel, limits: ServeLimits, *, on_tokens: Callable[[int], None] = lambda _: None
    ) -> None:
        self.served = Served(opened)
        self._limits, self._on_tokens = limits, on_tokens
        # Here, so that a cache that does not fit into memory is refused at once.
        self._engine: Engine | None = self._open_engine()
        self._running: dict[Stream, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._next: OpenModel | None = None
        self._is_closing = self._has_cancelled = False
        self._seconds_per_text = 1.0
        self._thread = threading.Thread(target=self._run, name="packtrain-worker", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs; nothing should end it before `close`."""
        return self._thread.is_alive()

    def submit(self, exchange: Exchange) -> None:
        """Lets an exchange's texts wait for slots. Raises Refusal if the queue has no place for all of them, or the server is closing."""
        tickets = [self._write_ticket(exchange, index) for index in range(len(exchange.orders))]
        with self._changed:
            if self._is_closing:
                raise shutting_down()
            room = self._limits.queue + self._limits.slots
            if len(tickets) > room:
                raise Refusal(
                    400, f"the request asks for {len(tickets)} texts at once; ask for at most {room}", param="n"
                )
            if len(self._waiting) + len(self._running) + len(tickets) > room:
                raise too_busy(self._retry_after())
            self._waiting.extend(tickets)
            self._changed.notify()

    def cancel(self, exchange: Exchange) -> None:
        """Frees the places and slots of an exchange that nobody waits for any more."""
        with self._changed:
            exchange.is_cancelled = self._has_cancelled = True
            self._changed.notify()

    def swap(self, opened: OpenModel) -> None:
        """Answers with another checkpoint of the same model as soon as the requests that have begun are done."""
        with self._changed:
            self._next = opened
            self._changed.notify()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends every text with an error, and the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _write_ticket(self, exchange: Exchange, index: int) -> Ticket:
        order = exchange.orders[index]
        stops = order.settings.stop if order.settings else ()
        return Ticket(
            exchange, index, GrowingText(self.served.reader.tokenizer, order.prompt_ids, stops, order.max_tokens)
        )

    def _retry_after(self) -> int:
        seconds = (len(self._waiting) + 1) * self._seconds_per_text / self._limits.slots
        return max(1, min(_LONGEST_RETRY_S, math.ceil(seconds)))

    def _run(self) -> None:
        while self._wait():
            try:
                self._take_next()
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:  # noqa: BLE001  the server continues after anything
                self._fail(error)
        self._tell_all(shutting_down())

    def _wait(self) -> bool:
        """Sleeps until there is something to do; false if the server closes. Drops what was cancelled."""
        with self._changed:
            while not (self._is_closing or self._running or self._waiting or self._next):
                self._changed.wait()
            if self._has_cancelled:
                self._has_cancelled = False
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.exchange.is_cancelled)
                for stream, ticket in list(self._running.items()):
                    if ticket.exchange.is_cancelled:
                        self._release(stream)
            return not self._is_closing

    def _take_next(self) -> None:
        with self._changed:
            opened = self._next
            if opened is None or self._running or any(ticket.exchange.has_begun for ticket in self._waiting):
                return
            self._next = None
        # The old cache is freed first; the next text opens another.
        self._engine = None
        self.served = Served(opened)
        _log.info("now answering with step %s", opened.step)

    def _open_engine(self) -> Engine:
        opened = self.served.opened
        return Engine(opened.model, opened.tokenizer, slots=self._limits.slots, context_length=opened.context_length)

    def _admit(self) -> None:
        while len(self._running) < self._limits.slots:
            with self._changed:
                # A checkpoint that waits for its turn gets it: no other request begins.
                if not self._waiting or (self._next is not None and not self._waiting[0].exchange.has_begun):
                    return
                ticket = self._waiting.popleft()
            ticket.exchange.has_begun, ticket.exchange.step = True, self.served.opened.step
            ticket.began = time.monotonic()
            try:
                self._begin(ticket)
            except Exception as error:  # noqa: BLE001  one text fails, and not the others
                self._tell([(ticket, _explain(error))])

    def _begin(self, ticket: Ticket) -> None:
        order = ticket.order
        if order.scores_prompt:
            tokens = score_prompt(self.served.opened.model, self.served.reader, order)
            self._tell([(ticket, ScoredPrompt(tokens))])
        if order.settings is None:
            self._tell([(ticket, Piece("", finish="length"))])
            return
        # The text is put together here, because its tokens are told with their places in it.
        settings = dataclasses.replace(order.settings, stop=())
        if self._engine is None:
            self._engine = self._open_engine()
        self._running[self._engine.add(order.prompt_ids, settings)] = ticket

    def _step(self) -> None:
        told: list[tuple[Ticket, Told]] = []
        num_tokens = 0
        assert self._engine is not None, "a text is running in it"
        for new in self._engine.step():
            ticket = self._running[new.stream]
            num_tokens += 1
            piece = ticket.text.push(new.token_id, new.logprob, tuple(new.alternatives))
            if piece is not None:
                told.append((ticket, piece))
            if ticket.text.is_finished:
                self._release(new.stream)
                spent = time.monotonic() - ticket.began
                self._seconds_per_text += 0.1 * (spent - self._seconds_per_text)
        self._on_tokens(num_tokens)
        self._tell(told)

    def _release(self, stream: Stream) -> None:
        del self._running[stream]
        if self._engine is not None:
            self._engine.remove(stream)

    def _fail(self, error: Exception) -> None:
        """A pass failed: every text that was in it ends with an error, and the next ones begin in an empty cache."""
        tickets = list(self._running.values())
        self._running.clear()
        self._tell([(ticket, _explain(error)) for ticket in tickets])
        self._engine = None

    def _tell_all(self, message: Refusal) -> None:
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        self._tell([(ticket, message) for ticket in [*self._running.values(), *waiting]])
        self._running.clear()

    @staticmethod
    def _tell(told: Sequence[tuple[Ticket, Told]]) -> None:
        """Puts messages into the inboxes, in the event loop of each: one call for all that a pass gave."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Told]]] = {}
        for ticket, message in told:
            by_loop.setdefault(ticket.exchange.loop, []).append((ticket, message))
        for loop, some in by_loop.items():
            # A loop that has ended has no inboxes.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver, some)


def _deliver(told: Sequence[tuple[Ticket, Told]]) -> None:
    for ticket, message in told:
        ticket.exchange.inbox.put_nowait((ticket.index, message))


def _explain(error: Exception) -> Refusal:
    """What a client is told of a failure: our own sentences, and nothing else that could hold a part of a prompt."""
    if isinstance(error, torch.OutOfMemoryError):
        return failed("the device ran out of memory; try again, or start the server with fewer --slots")
    if isinstance(error, PacktrainError):
        return failed(str(error))
    _log.error("a text failed: %s", type(error).__name__, exc_info=error)
    return failed("the server failed at this request; its log says more")
