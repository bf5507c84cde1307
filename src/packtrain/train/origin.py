"""Decides where a run's settings come from: the preset that is named or, if a run is resumed, the run itself."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packtrain.config.load import flatten, load_run_config, read_stated, split_word
from packtrain.config.run import RunConfig
from packtrain.config.words import show
from packtrain.errors import RunError
from packtrain.runs.configuration import config_in_force
from packtrain.runs.layout import RunLayout
from packtrain.storage.json_file import read_json
from packtrain.train.resume import continue_config
from packtrain.train.shape import take_shape

PRESET = "preset"
"""The field of manifest.json."""
_log = logging.getLogger("packtrain")
_MOST_SHOWN = 3


def resolve_config(
    preset: str, typed: Sequence[str], folder: Path, *, resume: bool, changed: Sequence[str] = ()
) -> RunConfig:
    """The configuration of a run in `folder`, from a preset and `KEY=VALUE` words.

    With `resume`, a run that is there already continues with its own settings, as `continue_config` says, and the preset must
    be the one that it was started from. A new run that starts from weights has their shape. Raises ConfigError, RunError and
    ModelError.
    """
    layout = RunLayout(folder)
    if not (resume and layout.config.is_file()):
        return take_shape(load_run_config(preset, [*typed, *changed]))
    config = continue_config(layout, typed, changed)
    check_preset(layout, preset, [*typed, *changed])
    return config


def describe_preset(name: str) -> dict[str, Any]:
    """What a run records of the preset that it is started from: its name, and what it states by dotted key."""
    return {"name": name, "values": json.loads(json.dumps(read_stated(name), default=str))}


def check_preset(layout: RunLayout, name: str, words: Sequence[str]) -> None:
    """Raises RunError if the preset is another one than the run was started from and does not say the same.

    Warns if it was edited since, and says which settings come from the run. `words`: what else is on the command line.
    """
    stated, started = describe_preset(name), _read_preset(layout)
    given = {split_word(word)[0] for word in words}
    own = json.loads(json.dumps(dict(flatten(config_in_force(layout))), default=str))
    differing = {key: (value, own.get(key)) for key, value in stated["values"].items() if value != own.get(key)}
    differing = {key: both for key, both in differing.items() if key not in given}
    if not differing:
        return
    if started and started["name"] != name and started["values"] != stated["values"]:
        key, (there, here) = next(iter(differing.items()))
        raise RunError(
            f"{layout.folder} was started from {started['name']}, and {name} is another preset (it has {key}={show(there)}, the run "
            f"{key}={show(here)}); write `packtrain resume {layout.folder}`, or give another --run folder"
        )
    edited = [key for key in differing if started and started["values"].get(key) != stated["values"][key]]
    if edited:
        _log.warning(
            "%s has changed since %s was started (%s); the run's own settings stay, and --change KEY=VALUE changes one of them",
            name,
            layout.folder,
            _listed(
                f"{key} is now {show(stated['values'][key])}, and {show(own.get(key))} in the run" for key in edited
            ),
        )
    else:
        _log.info("from the run, not from %s: %s", name, _listed(f"{key}={show(own.get(key))}" for key in differing))


def _read_preset(layout: RunLayout) -> dict[str, Any] | None:
    """What the run recorded; None for a run that another version or Python started."""
    try:
        recorded = read_json(layout.manifest, RunError).get(PRESET)
        return recorded if isinstance(recorded["name"], str) and isinstance(recorded["values"], dict) else None
    except (RunError, AttributeError, TypeError, KeyError):
        return None


def _listed(sentences: Any) -> str:
    shown = list(sentences)
    more = f", and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    return ", ".join(shown[:_MOST_SHOWN]) + more
