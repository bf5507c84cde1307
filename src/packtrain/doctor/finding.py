"""Decides what a check says: all is well, a fault with its fix, or why the check could not be made."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    state: Literal["ok", "fault", "skipped"]
    says: str
    """What was found, or why nothing was looked at."""
    fix: str | None = None
    """What to do about a fault."""
    lines: tuple[str, ...] = ()
    """What was looked at, to be judged by eye."""


def fault(check: str, says: str, fix: str) -> Finding:
    return Finding(check, "fault", says, fix)


def skipped(check: str, why: str) -> Finding:
    return Finding(check, "skipped", why)


def from_error(check: str, error: Exception) -> Finding:
    """The fault that an error of packtrain tells: what is wrong, and after its last semicolon what to write instead."""
    says, _, fix = str(error).rpartition("; ")
    return fault(check, says, fix) if says else fault(check, fix, "see `packtrain doctor` for what this machine can do")
