"""Decides which prepared datasets are trained on, and how they become rows."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from packtrain.config.base import Section

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

IGNORE_INDEX = -100
"""The target of a position without loss, such as padding. torch and Hugging Face use the same number."""


class MixedDataset(Section):
    """One dataset of a mixture."""

    folder: str
    """Folder that `packtrain prepare` wrote."""
    weight: Positive
    """Its tokens, in proportion to the other weights."""
    max_epochs: Positive | None = None
    """Times that it may be seen; then the others share its part. Unset: no limit."""

    def __repr__(self) -> str:
        limit = "" if self.max_epochs is None else f" (at most {self.max_epochs:g} epochs)"
        return f"{self.weight:g} {self.folder}{limit}"

    __str__ = __repr__


class DataConfig(Section):
    """Which datasets, and how their documents become rows; none of this needs tokenizing again."""

    dataset: str | tuple[MixedDataset, ...] | None = None
    """Folder that `packtrain prepare` wrote; or a mixture, as a table of folders and weights: `{"data/web" = 0.7,
    "data/code" = {weight = 0.3, max_epochs = 4}}`, or as a list of tables with `folder`, `weight` and `max_epochs`. Weights are
    of tokens, and need not sum to 1. A dataset that has been seen max_epochs times leaves its part to the others; where all
    have such limits the data ends, and more steps than it is enough for are an error."""
    seq_len: PositiveInt = 1024
    """Tokens in a row (T)."""
    packing: Literal["concat", "bestfit"] = "concat"
    """`concat`: one stream cut into rows. `bestfit`: no document that fits a row is cut (arXiv 2404.10830)."""
    document_mask: bool = False
    """Whether attention stays within a document and positions restart at each."""

    @field_validator("dataset", mode="before")
    @classmethod
    def _mixture(cls, value: Any) -> Any:
        """A table or list of tables becomes a tuple of MixedDataset; said here, since no union could say what is wrong."""
        if isinstance(value, str) and value.startswith("{"):
            raise ValueError(f"data.dataset={value} is no whole table; {_EXAMPLE}")
        if isinstance(value, dict):
            value = [
                {"folder": folder, **(entry if isinstance(entry, dict) else {"weight": entry})}
                for folder, entry in value.items()
            ]
        if not isinstance(value, list | tuple):
            return value
        if not value:
            raise ValueError(f"data.dataset is an empty table; {_EXAMPLE}")
        parts = tuple(_part(entry) for entry in value)
        folders = [part.folder for part in parts]
        for folder in folders:
            if folders.count(folder) > 1:
                raise ValueError(f"data.dataset names {folder} {folders.count(folder)} times; add up its weights")
        return parts


_EXAMPLE = 'write a folder, or a mixture as {"FOLDER" = WEIGHT, "FOLDER" = {weight = WEIGHT, max_epochs = TIMES}}'


def _part(entry: Any) -> MixedDataset:
    try:
        return MixedDataset.model_validate(entry)
    except ValidationError as failure:
        error = failure.errors()[0]
        name = entry.get("folder", "a table") if isinstance(entry, dict) else entry
        key = ".".join(str(part) for part in error["loc"])
        raise ValueError(f"data.dataset, {name}: {key or 'it'} does not fit ({error['msg']}); {_EXAMPLE}") from None
