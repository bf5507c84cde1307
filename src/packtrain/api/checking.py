"""Decides how machines, presets and runs are checked, and runs listed, from Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, overload

from packtrain.api.settings import Settings, to_words
from packtrain.errors import ConfigError

if TYPE_CHECKING:
    from packtrain.config.run import RunConfig
    from packtrain.doctor.finding import Finding
    from packtrain.doctor.machine import MachineFacts
    from packtrain.runs.layout import RunLayout
    from packtrain.runs.status import RunStatus


@overload
def doctor(target: None = None) -> MachineFacts: ...
@overload
def doctor(target: str | Path, *settings: Settings, run: str | Path | None = None) -> list[Finding]: ...
def doctor(
    target: str | Path | None = None, *settings: Settings, run: str | Path | None = None
) -> MachineFacts | list[Finding]:
    """What this machine can do: `facts` by name, and `problems`. Of a preset or a run, the finding of each check, in about a minute.

    A finding has `check`, `state` ("ok", "fault" or "skipped"), `says` and, of a fault, its `fix`. `settings` are a preset's;
    `run` is where the run would be, whose disk is checked. Nothing is trained for good. Raises ConfigError and RunError.
    """
    if target is None:
        from packtrain.doctor.machine import examine_machine

        if settings or run is not None:
            raise ConfigError(
                "settings and run are those of a preset; give its name first, such as doctor('demo', ...)"
            )
        return examine_machine()
    return list(examine_target(str(target), to_words(settings), None if run is None else Path(run)))


def examine_target(target: str, words: list[str], folder: Path | None) -> Iterator[Finding]:
    """The findings of a preset with its settings, or of a run, as each check is made."""
    from packtrain.doctor.examine import examine

    return examine(*_resolve(target, words, folder))


def runs(folder: str | Path = "runs", *, problems: list[str] | None = None) -> list[RunStatus]:
    """The runs in a folder and below it, those that were written last first: state, step, loss, bits per byte, tokens/s.

    `problems` gets a sentence for each folder that cannot be read. Raises RunError if there is no such folder.
    """
    from packtrain.runs.listing import list_runs

    return list_runs(Path(folder), problems)


def _resolve(target: str, settings: list[str], folder: Path | None) -> tuple[RunConfig, Path, RunLayout | None]:
    """The configuration to check, the folder of the run, and the run if it exists."""
    from packtrain.api.training import with_shape
    from packtrain.config.load import load_run_config
    from packtrain.config.shipped import shipped
    from packtrain.runs.configuration import newest_config
    from packtrain.runs.layout import find_run

    if target in shipped("presets") or not Path(target).is_dir():
        return with_shape(load_run_config(target, settings)), folder or Path(), None
    layout = find_run(Path(target))
    if settings:
        raise ConfigError(f"{target} is a run, whose settings are fixed; leave out '{settings[0]}'")
    if folder is not None:
        raise ConfigError(f"{target} is a run, and is where it is; leave out --run {folder}")
    return newest_config(layout), layout.folder, layout
