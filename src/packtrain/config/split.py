"""Decides how it can be said which documents are held out for validation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from packtrain.config.base import Section


class SplitConfig(Section):
    """Which documents are held out for validation. Copies of a document are never on both sides, unless keep_leaks is set."""

    by: Literal["content", "files", "column", "hub", "tail"] = "content"
    """`content`: by a hash of the text. `files`: the files that validation_files names are held out (not for function). `column`:
    a column says the side of each row (hf, parquet, jsonl, csv, function). `hub`: the dataset's own train and validation splits
    (hf). `tail`: the end of the text, in source order; the document in which it begins is cut in two."""
    validation_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """content: share of documents that are held out. tail: share of the text. 1 makes a dataset to evaluate on."""
    salt: str = "packtrain"
    """content: another salt gives another split."""
    validation_files: str | None = None
    """files: a glob pattern for the names of the files to hold out. A pattern without a slash fits files in any folder. Unset:
    files named val, valid, validation, dev, eval or test, or in a folder of such a name."""
    column: str | None = None
    """column: the column or key with the side of a row. train and training mean training; val, valid, validation, dev, eval, test
    and testing mean validation, in any case. A function yields it as {"text": ..., COLUMN: ...}."""
    validation_values: tuple[str, ...] = ()
    """column: the values that mean validation, in any case; every other value then means training. Unset: those above."""
    validation_split: str | None = None
    """hub: the split to hold out. Unset: the first of validation, valid, val, dev and test that there is. source.split is the
    other."""
    keep_leaks: bool = False
    """files, column, hub, tail: keep training documents that validation also has. By default, they are left out as
    `in_validation`."""

    @property
    def is_given(self) -> bool:
        """Whether the owner of the source made the split."""
        return self.by in ("files", "column", "hub")

    @model_validator(mode="after")
    def _fits_its_way(self) -> Self:
        for key, ways in _WAYS_OF_SPLITTING.items():
            if self.by not in ways and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"split.{key} has no effect with split.by={self.by}, only with {' or '.join(ways)}; leave it out, or write "
                    f"split.by={ways[-1]}"
                )
        if self.by == "column" and self.column is None:
            raise ValueError("split.by=column needs the column that says the side of a row; write split.column=NAME")
        return self


# The settings of a split that only some ways of splitting understand. Old recipes may have a fraction and a salt with `files`.
_WAYS_OF_SPLITTING = {
    "validation_fraction": ("files", "tail", "content"),
    "salt": ("files", "tail", "content"),
    "validation_files": ("files",),
    "column": ("column",),
    "validation_values": ("column",),
    "validation_split": ("hub",),
    "keep_leaks": ("hub", "column", "tail", "files"),
}
