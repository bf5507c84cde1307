"""Decides how a run is spread over processes."""

from typing import Literal

from packtrain.config.base import Section


class ParallelConfig(Section):
    """Spread over the processes that torchrun starts."""

    mode: Literal["auto", "ddp"] = "auto"
    """`ddp`: every rank holds the whole model. `auto`: ddp under torchrun, otherwise one process."""
