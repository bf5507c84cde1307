"""Decides which datasets a run trains on, and how their documents are packed into rows."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, field_validator

from packtrain.config.base import Section

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

VerifyMode = Literal["full", "sample", "none"]

IGNORE_INDEX = -100
"""The target of a position without loss, such as padding. torch and Hugging Face use the same number."""


class MixedDataset(Section):
    """One dataset of a mixture."""

    folder: str
    """A folder that `packtrain prepare` wrote."""
    weight: Positive
    """Its share of the tokens, relative to the other weights."""
    max_epochs: Positive | None = None
    """Most epochs of it; after them the other datasets take over its share. Unset: no limit."""

    def __repr__(self) -> str:
        limit = "" if self.max_epochs is None else f" (at most {self.max_epochs:g} epochs)"
        return f"{self.weight:g} {self.folder}{limit}"

    __str__ = __repr__


class DataConfig(Section):
    """The datasets, and how their documents are packed into rows. Changing these needs no new tokenization."""

    dataset: str | tuple[MixedDataset, ...] | None = None
    """A folder that `packtrain prepare` wrote. Or a mixture: a table of folders and weights, `{"data/web" = 0.7,
    "data/code" = {weight = 0.3, max_epochs = 4}}`, or a list of tables with `folder`, `weight` and `max_epochs`. Weights are
    shares of the tokens and need not sum to 1. After max_epochs of a dataset, the others take over its share. If every dataset
    has such a limit the data ends, and a run with more steps than the data has is refused."""
    seq_len: PositiveInt = 1024
    """Tokens in a row, which is one training sequence (T)."""
    packing: Literal["concat", "bestfit"] = "concat"
    """`concat`: all documents as one stream, cut into rows. `bestfit`: a document that fits in a row is never cut
    (arXiv 2404.10830)."""
    document_mask: bool = False
    """Keep attention within each document, and restart positions at each."""
    repack: bool = False
    """Pack the documents in a new order in each epoch after the first, so that rows begin elsewhere and have other neighbours.
    For text that is read many times; the first epoch is the same with and without it."""
    verify: VerifyMode = "sample"
    """Which files are compared with the hashes in the manifest before a run or an evaluation begins. `full`: all.
    `sample`: a gigabyte of random shards, others at each start, which for a small dataset is all of them. `none`: no file."""

    @field_validator("dataset", mode="before")
    @classmethod
    def _mixture(cls, value: Any) -> Any:
        """Reads a table or list of tables as a tuple of MixedDataset. Pydantic's own errors on a union would not say what is wrong."""
        if isinstance(value, str) and value.startswith("{"):
            raise ValueError(f"data.dataset={value} is not a complete table; {_EXAMPLE}")
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
        raise ValueError(
            f"data.dataset, {name}: {key or 'it'} does not fit ({error['msg'][:1].lower() + error['msg'][1:]}); {_EXAMPLE}"
        ) from None
