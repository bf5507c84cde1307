"""Decides how a prepared dataset is turned into training rows."""

from typing import Literal

from pydantic import PositiveInt

from packtrain.config.base import Section


class DataConfig(Section):
    """Which dataset, and how its documents become rows; none of this needs tokenizing again."""

    dataset: str | None = None
    """Folder that `packtrain prepare` wrote."""
    seq_len: PositiveInt = 1024
    """Tokens in a row (T)."""
    packing: Literal["concat", "bestfit"] = "concat"
    """`concat`: one stream cut into rows. `bestfit`: no document that fits a row is cut (arXiv 2404.10830)."""
    document_mask: bool = False
    """Whether attention stays within a document and positions restart at each."""
