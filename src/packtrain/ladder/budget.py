"""Decides what a budget is: minutes of this machine, or FLOPs."""

import re
from dataclasses import dataclass

from packtrain.errors import ConfigError

_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_EXAMPLE = "write a time such as 30m, 90min, 2h or 1h30m, or FLOPs such as 1e15flops"
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@dataclass(frozen=True)
class Budget:
    """What a ladder may take: `amount` seconds of this machine, or FLOPs."""

    text: str
    amount: float
    is_flops: bool

    def describe(self, amount: float) -> str:
        """An amount of this kind, in words."""
        return f"{amount:.2g} FLOPs" if self.is_flops else describe_seconds(amount)


def parse_budget(text: str) -> Budget:
    """Reads `30m`, `2h`, `1h30m`, `90s`, `1e15flops`. Raises ConfigError for anything else, and for a budget of nothing."""
    word = text.strip().lower().replace(" ", "")
    flops = re.fullmatch(_NUMBER + r"flops?", word)
    parts = re.findall(r"(\d+(?:\.\d+)?)(sec|min|s|m|h|d)", word)
    if flops:
        amount = float(flops[1])
    elif parts and "".join(number + unit for number, unit in parts) == word:
        amount = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        raise ConfigError(f"--budget {text!r} is neither a time nor FLOPs; {_EXAMPLE}")
    if not 0 < amount < 1e30:
        raise ConfigError(f"--budget {text!r} buys nothing that can be counted; {_EXAMPLE}")
    return Budget(word, amount, flops is not None)


def describe_seconds(seconds: float) -> str:
    """A time in one or two words: 45 s, 12 min, 3.5 h, 12 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.0f} days"
