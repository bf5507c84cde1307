"""Decides what a chart is made of, and which of its points are drawn and can be read and zoomed into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from packtrain.report.scales import thin

if TYPE_CHECKING:
    import numpy as np

_NUM_COLOURS = 8
MOST_DRAWN = 800
# Points in the page, over all lines of a figure, which the pointer reads and zooming draws.
_MAX_READ, _MAX_READ_OF_FIGURE = 4000, 12_000


@dataclass(frozen=True)
class Series:
    """One line. `xs` has the positions once per view of the figure (steps, tokens); a NaN in `ys` means "not finite"."""

    name: str
    xs: "tuple[Sequence[float] | np.ndarray, ...]"
    ys: "Sequence[float] | np.ndarray"
    colour: int = 0
    kind: Literal["line", "faint", "dots"] = "line"
    has_end_label: bool = True

    @property
    def css(self) -> str:
        """Classes of its colour. There are eight; the ninth series has the first again, dashed."""
        return f"c{self.colour % _NUM_COLOURS}" + (" dashed" if self.colour >= _NUM_COLOURS else "")


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    y: float


@dataclass(frozen=True)
class Mark:
    """A vertical line where something happened, by position in each view."""

    name: str
    xs: tuple[float, ...]


@dataclass(frozen=True)
class Figure:
    """A chart with its heading. `key` is unique on the page; `unit` says what the vertical axis measures."""

    key: str
    title: str
    unit: str
    series: tuple[Series, ...]
    note: str = ""
    views: tuple[str, ...] = ("steps",)
    levels: tuple[Level, ...] = ()
    marks: tuple[Mark, ...] = ()
    from_zero: bool = False
    offers_log: bool = False
    height_px: int = 260
    number: Literal["decimal", "short", "size", "rate"] = "decimal"


def readable(figure: Figure) -> Figure:
    """The figure with the points that are in the page: all, or of each stretch its lowest and highest, and its first gap."""
    limit = max(MOST_DRAWN, min(_MAX_READ, _MAX_READ_OF_FIGURE // max(1, len(figure.series))))
    return replace(figure, series=tuple(_thinned(series, limit) for series in figure.series))


def drawable(figure: Figure) -> Figure:
    """As `readable`, with the fewer points that are drawn as long as nobody zooms in."""
    return replace(figure, series=tuple(_thinned(series, MOST_DRAWN) for series in figure.series))


def describe_points(figure: Figure) -> dict[str, Any]:
    """What the page's program knows of a figure, as JSON: its points, marks and levels, and how to write its values."""
    return {
        "views": figure.views,
        "number": figure.number,
        "marks": [mark.xs for mark in figure.marks],
        "levels": [(level.name, level.y) for level in figure.levels if math.isfinite(level.y)],
        "series": [
            {
                "name": s.name or figure.title,
                "kind": s.kind,
                "css": s.css,
                "xs": [[_plain(x) for x in s.xs[0]], *(_as_multiple(s.xs[0], xs) for xs in s.xs[1:])],
                "ys": [float(f"{y:.5g}") if math.isfinite(y) else None for y in s.ys],
            }
            for s in figure.series
        ],
    }


def _thinned(series: Series, limit: int) -> Series:
    kept = thin(series.ys, limit)
    return replace(
        series,
        xs=tuple([float(x[i]) for i in kept] for x in series.xs),
        ys=[float(series.ys[i]) for i in kept],
    )


def _as_multiple(first: "Sequence[float] | np.ndarray", other: "Sequence[float] | np.ndarray") -> Any:
    """The factor between two axes, if there is one: half of the page would be tokens, which are steps times a number."""
    factor = next((b / a for a, b in zip(first, other, strict=True) if a), None)
    is_one = factor is not None and all(a * factor == b for a, b in zip(first, other, strict=True))
    return factor if is_one else [_plain(x) for x in other]


def _plain(x: float) -> float | int:
    return int(x) if float(x).is_integer() else x
