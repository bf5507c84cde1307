"""Decides when this machine's rate is measured for a plan, and when an earlier measurement will do."""

from typing import Any

from packtrain.cli import screen
from packtrain.config.run import RunConfig
from packtrain.errors import DeviceError


def find_rate(config: RunConfig, probe: bool | None) -> dict[str, Any] | None:
    """This machine's rate: kept from an earlier plan, or measured now. None with --no-probe, or if it cannot be measured."""
    from packtrain.plan.rates import keep_rate, read_rate

    if probe is False:
        return None
    if probe is None and (kept := read_rate(config)) is not None:
        return kept
    from packtrain.train.probe import measure

    screen.note("timing a few steps on this machine (--no-probe plans without it)")
    try:
        rate = measure(config)
    except DeviceError as error:
        screen.warn(str(error))
        return None
    keep_rate(config, rate)
    return rate
