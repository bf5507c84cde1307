"""Decides how counts and durations read, as people say them."""


def amount(count: float) -> str:
    """A count as people say it: 437.6M, 8.75B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.4g}{letter}"
    return f"{count:,.0f}"


def duration(hours: float) -> str:
    """Hours as people say them."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s" if hours > 1 / 3600 else "under 1 s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    if hours < 24 * 365 * 2:
        return f"{hours:.1f} h" if hours < 48 else f"{hours:,.0f} h" if hours < 24 * 14 else f"{hours / 24:,.0f} days"
    return f"{hours / 8760:,.0f} years"


def describe_average(kind: str | None) -> str:
    """What follows a step whose weights are an average over steps; nothing for the step's own weights."""
    return "" if kind is None else f", average of the weights ({kind})"
