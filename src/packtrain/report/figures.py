"""Decides how numbers, sizes and times are written for a reader."""

import datetime
import math

_LARGE = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def exact(value: float) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Three or four digits with a letter for the size: 437.6M, 2.87M, 950."""
    return _scaled(value, _LARGE, "")


def size(value: float) -> str:
    """Bytes in decimal units, as on the command line and on a disk: a GB is 10⁹ bytes."""
    return _scaled(value, _BYTES, " ") if abs(value) >= 999.5 else f"{value:.0f} B"


def decimal(value: float | None, places: int = 3) -> str:
    """A measured number with a fixed number of decimals; a dash or words if there is none."""
    if value is None:
        return "–"
    return f"{value:.{places}f}" if math.isfinite(value) else "not finite"


def value(given: float) -> str:
    """A value beside a curve: three decimals, or fewer for large numbers."""
    if 0 < abs(given) < 0.001:
        return f"{given:.2e}"
    return f"{given:.{3 if abs(given) < 10 else 2}f}" if abs(given) < 100 else short(given)


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds, or seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(epoch_s: float) -> str:
    """A point in time, in UTC."""
    return datetime.datetime.fromtimestamp(epoch_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def tick(value: float, step: float | None = None) -> str:
    """An axis label with as many decimals as the distance `step` between ticks needs."""
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    if step is None:
        return f"{value:.3g}"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**places, 6) % 1:
        places += 1
    return f"{value:.{places}f}"


def _scaled(value: float, units: tuple[tuple[float, str], ...], gap: str) -> str:
    for unit, letter in units:
        # 999.95k would be rounded to 1000k, so the limit is slightly below the unit.
        if abs(value) >= unit * 0.9995:
            scaled = value / unit
            digits = f"{scaled:.{2 if abs(scaled) < 9.995 else 1}f}"
            return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}{gap}{letter}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
