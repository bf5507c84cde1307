"""Decides what passes between a request and the thread of the model: its texts in order, and messages of what becomes of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from packtrain.serve.growing import ChosenToken, Piece
from packtrain.serve.orders import Order
from packtrain.serve.refusal import Refusal


@dataclass(frozen=True)
class ScoredPrompt:
    """The tokens of a prompt that is echoed, with their probabilities."""

    tokens: tuple[ChosenToken, ...]


Told = ScoredPrompt | Piece | Refusal


class Exchange:
    """One request: its texts, and an inbox with what becomes of them, as (place of the text, message)."""

    def __init__(self, orders: Sequence[Order]) -> None:
        self.orders = list(orders)
        self.inbox: asyncio.Queue[tuple[int, Told]] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.step: int | None = None
        """The checkpoint that answers, once it has begun."""
        self.has_begun = False
        self.is_cancelled = False

    async def messages(self) -> AsyncIterator[list[tuple[int, "ScoredPrompt | Piece"]]]:
        """What becomes of the texts, until all have ended: everything that has come since the last time, at once.

        Raises the Refusal that any of them ends with.
        """
        left = len(self.orders)
        while left:
            told = [await self.inbox.get()]
            while not self.inbox.empty():
                told.append(self.inbox.get_nowait())
            good: list[tuple[int, ScoredPrompt | Piece]] = []
            for index, message in told:
                if isinstance(message, Refusal):
                    if good:
                        yield good
                    raise message
                good.append((index, message))
                left -= isinstance(message, Piece) and message.finish is not None
            yield good
