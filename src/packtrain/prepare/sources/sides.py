"""Decides which side a source's owner put a file or a row on: by the file's name, by a value, or by the splits of a hub dataset."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from packtrain.config.recipe import SourceConfig
from packtrain.config.split import SplitConfig
from packtrain.data.format.manifest import SplitName
from packtrain.errors import SourceError
from packtrain.prepare.sources.columns import list_names
from packtrain.prepare.sources.hub import find_dataset_files
from packtrain.prepare.sources.slices import Part, SourceFile

_HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|dev|eval|test)(?![a-z])")
_VALUES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "test", "testing"), "validation"),
}
_VALIDATION_SPLITS = ("validation", "valid", "val", "dev", "test")


def is_held_out(name: str, pattern: str | None = None) -> bool:
    """Whether a file is held out: its name fits the glob pattern; without one, its name or folder says val, dev, test, ...

    A pattern without a slash fits the last part of a name.
    """
    if pattern is None:
        return any(_HELD_OUT.search(part.lower()) for part in PurePosixPath(name).parts)
    from fsspec.utils import glob_translate

    shown = name if "/" in pattern else PurePosixPath(name).name
    return re.match(glob_translate(pattern), shown) is not None


def is_part_held_out(part: Part, split: SplitConfig) -> bool:
    """Whether the rows of a part are held out, for a split by files or by a hub dataset's own splits."""
    return is_held_out(part.file, split.validation_files) if part.side is None else part.side == "validation"


def check_held_out(files: Sequence[SourceFile], split: SplitConfig) -> None:
    """Raise SourceError if the names of a source's files hold none of them out."""
    if any(is_held_out(file.name, split.validation_files) for file in files):
        return
    wanted = f"fits split.validation_files={split.validation_files}"
    if split.validation_files is None:
        wanted = "is named val, valid, validation, dev, eval or test"
    raise SourceError(
        f"split.by=files finds no validation files: no file of the source {wanted}; its files are "
        f"{list_names(file.name for file in files)}: write split.validation_files=GLOB, or split.by=content"
    )


def read_side(value: str | None, split: SplitConfig) -> SplitName | None:
    """The side that a value of split.column means; None if it means none."""
    if not value:
        return None
    word = value.strip().casefold()
    if split.validation_values:
        return "validation" if word in {v.strip().casefold() for v in split.validation_values} else "train"
    return _VALUES.get(word)


def find_hub_sides(source: SourceConfig, split: SplitConfig) -> tuple[list[SourceFile], str | None]:
    """The files of a hub dataset's own training split, then those of its validation split, each with its side; the commit.

    Raises SourceError if there is no validation split besides the training split.
    """
    train, commit = find_dataset_files(source)
    name, held_out = _find_validation(source, split, {file.url for file in train})
    if {file.name for file in train} & {file.name for file in held_out}:
        train = [replace(file, name=f"{source.split}/{file.name}") for file in train]
        held_out = [replace(file, name=f"{name}/{file.name}") for file in held_out]
    return [*(replace(f, side="train") for f in train), *(replace(f, side="validation") for f in held_out)], commit


def _find_validation(source: SourceConfig, split: SplitConfig, trained: set[str]) -> tuple[str, list[SourceFile]]:
    """The validation split with its name: the one that is set, or the first of the usual ones that has files of its own."""
    names = (split.validation_split,) if split.validation_split is not None else _VALIDATION_SPLITS
    for name in names:
        try:
            files, _ = find_dataset_files(source.model_copy(update={"split": name}))
        except SourceError as error:
            # Without an answer, a later name might be taken though this one exists.
            if split.validation_split is not None or "cannot be reached" in str(error):
                raise
            continue
        # A repository whose files are not named after splits gives the same files for each.
        if files and trained.isdisjoint(file.url for file in files):
            return name, files
    raise SourceError(
        f"split.by=hub finds no validation split: {source.repo or source.path} has no files of a split named {' or '.join(names)} "
        f"besides those of source.split={source.split}; write split.validation_split=NAME, or split.by=content"
    )
