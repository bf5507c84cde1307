"""Decides how a series of numbers is drawn: inline SVG that stretches with the page while its text keeps its size.

Curves are in an inner SVG that stretches freely (`preserveAspectRatio="none"`, strokes not scaled). Text, points and
grid lines are outside it, placed by percentages. A chart works without JavaScript: its switches are radio buttons that
CSS reads.
"""

import json
import math
from collections.abc import Callable, Sequence

from packtrain.report import figures
from packtrain.report.markup import Markup, el, join
from packtrain.report.scales import Scale, linear, logarithmic, spread_labels
from packtrain.report.series import Figure, describe_points, drawable, readable

# A line that ends beyond this share of the width counts as reaching the right edge.
_EDGE = 0.93
_MAX_BAD_MARKS = 60
_MAX_NAMED_MARKS = 4


def render(figure: Figure) -> Markup:
    """The figure as HTML: heading, legend, switches, and an SVG for each view and scale. It needs at least one finite value."""
    known = readable(figure)
    figure = drawable(known)
    scales = ["linear"]
    if figure.offers_log and all(v > 0 for v in _finite(figure)):
        scales.append("log")
    drawings = [_drawing(figure, view, is_log=scale == "log") for view in range(len(figure.views)) for scale in scales]
    data = json.dumps(describe_points(known), separators=(",", ":")).replace("<", "\\u003c")
    return el(
        "figure",
        el("figcaption", el("h3", figure.title), el("p", figure.unit, class_="unit")),
        el("div", _legend(figure), _switches(figure, scales), class_="chart-head"),
        *drawings,
        el("p", figure.note, class_="note") if figure.note else None,
        el("script", Markup(data), type="application/json"),
        class_="chart",
        id=figure.key,
    )


def formatter(figure: Figure) -> Callable[[float], str]:
    """How a value of the figure is written beside the drawing."""
    return {"decimal": figures.value, "short": figures.short, "size": figures.size, "rate": lambda v: f"{v:.2e}"}[
        figure.number
    ]


def _finite(figure: Figure) -> list[float]:
    values = [y for s in figure.series for y in s.ys] + [level.y for level in figure.levels]
    return [v for v in values if math.isfinite(v)]


def _drawing(figure: Figure, view: int, *, is_log: bool) -> Markup:
    values = _finite(figure)
    low, high = min(values), max(values)
    from_zero = figure.from_zero and low >= 0
    y_scale = logarithmic(low, high) if is_log else linear(0.0 if from_zero else low, high, room=0.06)
    x_scale = linear(0.0, max((x for s in figure.series for x in s.xs[view]), default=1.0))
    title_id = f"{figure.key}-{view}{'-log' if is_log else ''}"
    svg = el(
        "svg",
        el("title", f"{figure.title}, {figure.unit}, by {figure.views[view]}", id=f"{title_id}-t"),
        el("desc", _description(figure, view), id=f"{title_id}-d"),
        _grid(figure, x_scale, y_scale, view),
        _curves(figure, x_scale, y_scale, view),
        _side_labels(figure, x_scale, y_scale, view),
        role="img",
        aria_labelledby=f"{title_id}-t {title_id}-d",
        height=figure.height_px,
        width="100%",
        data_view=view,
        data_x=f"{x_scale.low},{x_scale.high}",
        data_y=f"{y_scale.low!r},{y_scale.high!r}",
        data_log="1" if is_log else None,
    )
    is_wide = bool(figure.levels) or figure.number in ("size", "rate")
    css = f"plot view{view} {'log' if is_log else 'linear'}{' named' if is_wide else ''}"
    return el("div", svg, class_=css)


def _grid(figure: Figure, x_scale: Scale, y_scale: Scale, view: int) -> Markup:
    parts = []
    for value in y_scale.ticks:
        at = _percent(1 - y_scale.place(value))
        parts.append(el("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(el("text", _tick(value, y_scale, figure.number), x="-8", y=at, dy="0.32em", text_anchor="end"))
    parts.append(el("line", x1="0", x2="100%", y1="100%", y2="100%", class_="base"))
    for value in x_scale.ticks:
        at = _percent(x_scale.place(value))
        parts.append(el("line", x1=at, x2=at, y1="100%", y2=figure.height_px + 4, class_="grid"))
        parts.append(el("text", _tick(value, x_scale), x=at, y=figure.height_px + 18, text_anchor="middle"))
    parts.append(el("text", figure.views[view], x="100%", y=figure.height_px + 32, text_anchor="end", class_="axis"))
    for i, mark in enumerate(figure.marks):
        at = _percent(x_scale.place(mark.xs[view]))
        parts.append(el("line", el("title", mark.name), x1=at, x2=at, y1="0", y2="100%", class_="mark"))
        if len(figure.marks) <= _MAX_NAMED_MARKS:
            parts.append(el("text", mark.name.partition(" at ")[0], x=at, dx="4", y=10 + 14 * i, class_="mark-name"))
    for level in figure.levels:
        if y_scale.holds(level.y):
            at = _percent(1 - y_scale.place(level.y))
            parts.append(el("line", x1="0", x2="100%", y1=at, y2=at, class_="level"))
    return el("g", *parts)


def _curves(figure: Figure, x_scale: Scale, y_scale: Scale, view: int) -> Markup:
    lines: list[Markup] = []
    points: list[Markup] = []
    bad: set[str] = set()
    for series in figure.series:
        placed = [
            (x_scale.place(x), 1 - y_scale.place(y) if y_scale.holds(y) else None)
            for x, y in zip(series.xs[view], series.ys, strict=True)
        ]
        path = _path(placed)
        lines.append(el("path", d=path, class_=f"{series.kind} {series.css}", vector_effect="non-scaling-stroke"))
        lonely = len(placed) == 1 and series.kind != "faint"
        if series.kind == "dots" or lonely:
            points += [
                el("circle", cx=_percent(x), cy=_percent(y), r="3", class_=series.css)
                for x, y in placed
                if y is not None
            ]
        values = zip(placed, series.ys, strict=True)
        bad.update(_percent(x) for (x, _), y in values if not math.isfinite(y))
    crosses = [el("text", "×", x=at, y="4", text_anchor="middle", class_="bad") for at in sorted(bad)[:_MAX_BAD_MARKS]]
    stretched = el(
        "svg", *lines, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%", class_="curves"
    )
    return join(stretched, *points, *crosses)


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """SVG path through the points in thousandths, broken where a value is missing."""
    words = []
    pen = "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{1000 * x:.1f} {1000 * y:.1f}")
        pen = "L"
    return "".join(words)


def _side_labels(figure: Figure, x_scale: Scale, y_scale: Scale, view: int) -> Markup:
    """The name and value of each level, and each line's last value: at the right edge, or at the end of a shorter line."""
    write = formatter(figure)
    edge: list[tuple[float, str, str]] = []
    parts: list[Markup] = []
    for series in figure.series:
        points = zip(reversed(series.xs[view]), reversed(series.ys), strict=True)
        x, value = next(((x, y) for x, y in points if y_scale.holds(y)), (0.0, math.nan))
        css = f"end {series.css}"
        if not series.has_end_label or not math.isfinite(value):
            continue
        if x_scale.place(x) > _EDGE:
            edge.append((value, write(value), css))
        else:
            at, y = _percent(x_scale.place(x)), (1 - y_scale.place(value)) * figure.height_px + 4
            parts.append(el("text", write(value), x=at, dx="8", y=y, class_=css))
    edge += [(v.y, f"{v.name} {v.y:.4g}", "level-name") for v in figure.levels if y_scale.holds(v.y)]
    heights = [(1 - y_scale.place(value)) * figure.height_px + 4 for value, _, _ in edge]
    places = spread_labels(heights, figure.height_px + 4)
    parts += [
        el("text", text, x="100%", dx="8", y=y, class_=css) for y, (_, text, css) in zip(places, edge, strict=True)
    ]
    return el("g", *parts)


def _tick(value: float, scale: Scale, number: str = "decimal") -> str:
    if number == "size":
        return figures.size(value)
    # All labels of an axis look alike: 7.5k beside 10k, and 500 beside 1000.
    return figures.short(value) if scale.ticks[-1] >= 10_000 else figures.tick(value, scale.tick_step)


def _legend(figure: Figure) -> Markup | None:
    if len(figure.series) < 2:
        return None
    return el(
        "ul",
        *(el("li", el("i", class_=f"{s.kind} {s.css}"), s.name) for s in figure.series if s.name),
        class_="legend",
    )


def _switches(figure: Figure, scales: Sequence[str]) -> Markup | None:
    groups = []
    if len(figure.views) > 1:
        groups.append(
            _switch(figure.key, "x", "Horizontal axis", [(v, f"view{i}") for i, v in enumerate(figure.views)])
        )
    if len(scales) > 1:
        groups.append(_switch(figure.key, "y", "Vertical scale", [(s, s) for s in scales]))
    return el("div", *groups, class_="switches") if groups else None


def _switch(key: str, axis: str, legend: str, choices: Sequence[tuple[str, str]]) -> Markup:
    inputs = [
        el("label", el("input", type="radio", name=f"{key}-{axis}", class_=css, checked=i == 0), el("span", text))
        for i, (text, css) in enumerate(choices)
    ]
    return el("fieldset", el("legend", legend), *inputs)


def _description(figure: Figure, view: int) -> str:
    write, by = formatter(figure), figure.views[view]
    sentences = []
    for series in figure.series:
        known = [(x, y) for x, y in zip(series.xs[view], series.ys, strict=True) if math.isfinite(y)]
        if not known or series.kind == "faint":
            continue
        (x0, y0), (x1, y1) = known[0], known[-1]
        span = f"from {write(y0)} at {figures.exact(x0)} {by} to {write(y1)} at {figures.exact(x1)} {by}"
        sentences.append(f"{series.name or figure.title}: {span}, lowest {write(min(y for _, y in known))}.")
    sentences += [f"{level.name}: {write(level.y)}." for level in figure.levels]
    return " ".join(sentences)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
