"""Decides which configuration a run's weights were made with: the one in their checkpoint, whatever config.toml now says."""

import logging
import re
from pathlib import Path
from typing import Any

from packtrain.config.load import flatten, from_toml
from packtrain.config.run import RunConfig
from packtrain.errors import CheckpointError, PacktrainError
from packtrain.runs.layout import HASHES, LOGS, MADE_BY, STATE, VALIDATION, RunLayout, load_config
from packtrain.runs.metrics import read_events
from packtrain.storage.atomic import hash_bytes, hash_file
from packtrain.storage.json_file import read_json
from packtrain.storage.regular import is_regular

# Of this format and of the first one.
_NAMES = re.compile(r"rank-\d{5,}-\d{5,}\.safetensors|(model|optimizer)\.safetensors|state\.json|configuration\.toml")
_HASH = re.compile(r"[0-9a-f]{32}")
# These have hashes of their own: a log's position depends on the clock, and a validation follows its checkpoint.
UNLISTED = (HASHES, LOGS, VALIDATION)
USE_ANOTHER = "give --step with another checkpoint of the run, or train again with --resume"
_log = logging.getLogger("packtrain")


def read_hashes(folder: Path) -> dict[str, str]:
    """The hash of each file of a checkpoint by name. Raises CheckpointError if it is not a list of a checkpoint's files."""

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{folder} is not a whole checkpoint ({HASHES}: {reason}); {USE_ANOTHER}")

    hashes = read_json(folder / HASHES, refuse)
    if not isinstance(hashes, dict):
        raise refuse("it is not a list of files")
    for name, digest in hashes.items():
        if not _NAMES.fullmatch(name):
            raise refuse(f"it names {name!r}, which a checkpoint does not have")
        if not (isinstance(digest, str) and _HASH.fullmatch(digest)):
            raise refuse(f"it has no hash for {name}")
    if STATE not in hashes:
        raise refuse(f"it does not name {STATE}")
    return hashes


def check_file(folder: Path, name: str, expected: str) -> None:
    """Raises CheckpointError if a file of a checkpoint is not there as a plain file with the hash `expected`."""
    path = folder / name
    if is_regular(path) and hash_file(path) == expected:
        return
    if not path.exists():
        what = "missing"
    else:
        what = "damaged (its hash differs from the saved one)" if is_regular(path) else "not a plain file"
    raise CheckpointError(f"{path} is {what}; {USE_ANOTHER}")


def read_made_by(folder: Path) -> RunConfig | None:
    """The configuration in a checkpoint, checked by its hash; None if the checkpoint's packtrain did not save one.

    Raises CheckpointError if it is damaged.
    """
    hashes = read_hashes(folder)
    if MADE_BY not in hashes:
        return None
    check_file(folder, MADE_BY, hashes[MADE_BY])
    try:
        return from_toml(RunConfig, (folder / MADE_BY).read_text(encoding="utf-8"), str(folder / MADE_BY))
    except (PacktrainError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the configuration in {folder} cannot be read ({error}); {USE_ANOTHER}") from None


def config_of(layout: RunLayout, folder: Path | None) -> RunConfig:
    """The configuration of a run whose weights are in the checkpoint `folder`; without a checkpoint, config.toml's.

    Warns if config.toml was edited since. Raises ConfigError if that is not a configuration at all, CheckpointError if the
    checkpoint's is damaged.
    """
    current = load_config(layout)
    if folder is None:
        return current
    made_by = read_made_by(folder)
    if made_by is None:
        _log.warning(
            "%s was saved without its configuration, as packtrain 0.1.0 did; %s is used, and nobody can tell whether it was edited",
            folder,
            layout.config,
        )
        return current
    made_by = _follow_data(made_by, current)
    if edits := find_edits(layout, made_by, current):
        _log.warning("%s", describe_edits(layout, edits))
    return made_by


def newest_config(layout: RunLayout) -> RunConfig:
    """As `config_of` for the newest checkpoint whose configuration is whole, without looking at its tensors."""
    for step in reversed(layout.saved_steps()):
        try:
            return config_of(layout, layout.checkpoint(step))
        except CheckpointError as error:
            _log.warning("skipping a damaged checkpoint: %s", error)
    return config_of(layout, None)


def config_in_force(layout: RunLayout) -> RunConfig:
    """The configuration that a run continues with unless something is changed: config.toml as the run wrote it when it was
    last started or resumed; if somebody edited it, the configuration of the newest checkpoint that has one.

    Raises ConfigError if config.toml is not a configuration at all.
    """
    current = load_config(layout)
    if _is_as_started(layout):
        return current
    for step in reversed(layout.saved_steps()):
        try:
            made_by = read_made_by(layout.checkpoint(step))
        except CheckpointError:
            continue
        return current if made_by is None else _follow_data(made_by, current)
    return current


def find_edits(layout: RunLayout, made_by: RunConfig, current: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings, as (saved, now), that somebody changed in config.toml; a resumed run may have changed others itself."""
    return {} if _is_as_started(layout) else changes(made_by, current)


def describe_edits(layout: RunLayout, edits: dict[str, tuple[Any, Any]]) -> str:
    """What to say of an edited config.toml."""
    shown = [f"{key} was {before} and is now {now}" for key, (before, now) in edits.items()]
    more = f", and {len(shown) - 5} more" if len(shown) > 5 else ""
    return (
        f"{layout.config} is not the configuration that the weights were made with ({'; '.join(shown[:5])}{more}); "
        "the checkpoint's is used, and the edit has no effect"
    )


def changes(saved: RunConfig, given: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by dotted key, as (before, now); None for one that is unset."""
    old, new = dict(flatten(saved)), dict(flatten(given))
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _follow_data(made_by: RunConfig, current: RunConfig) -> RunConfig:
    """`made_by` with the dataset's folder of config.toml, if its own is gone: a dataset may move, and has a hash of its own."""
    named = made_by.data.dataset
    folders = [named] if isinstance(named, str) else [part.folder for part in named or ()]
    if all(Path(folder).is_dir() for folder in folders):
        return made_by
    return made_by.model_copy(update={"data": made_by.data.model_copy(update={"dataset": current.data.dataset})})


def _is_as_started(layout: RunLayout) -> bool:
    """Whether config.toml is what the run wrote when it was last started or resumed."""
    try:
        started = [event for event in read_events(layout.events) if event["event"] in ("started", "resumed")]
        return bool(started) and started[-1].get("config_hash") == hash_bytes(layout.config.read_bytes())
    except (PacktrainError, OSError):
        return False
