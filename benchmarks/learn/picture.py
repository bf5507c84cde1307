"""Decides how the curves of recipes are drawn: bits per byte by tokens, a dot where a run has finished."""

import html
from collections.abc import Sequence
from typing import Any

_WIDTH, _HEIGHT = 760, 380
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 24, 24, 46
# Told apart by people who see colours differently (Okabe and Ito), on light and dark paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")


def draw_curves(lines: Sequence[dict[str, Any]]) -> str:
    """An SVG of the curves of lines on one corpus, a colour for each recipe. Raises ConfigError for none, or for several corpora.

    Lines join the scores of one run on its way; dots are finished runs, the mean over seeds.
    """
    from packtrain.errors import ConfigError
    from packtrain.report.scales import linear, logarithmic

    drawn = [line for line in lines if line["mean"] is not None]
    corpora = sorted({line["corpus"]["name"] for line in drawn})
    if len(corpora) != 1:
        raise ConfigError(
            f"a picture shows one corpus, and there are {len(corpora)}; write --corpus {corpora[0] if corpora else 'NAME'}"
        )
    points = [point for line in drawn for point in line["curve"]]
    tokens, bits = zip(*points, strict=True)
    x_scale = logarithmic(min(tokens), max(tokens))
    y_scale = linear(min(bits), max(bits), room=0.06)
    names = list(dict.fromkeys(line["name"] for line in sorted(drawn, key=lambda line: line["mean"])))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}

    def place(point: Sequence[float]) -> tuple[float, float]:
        x = _LEFT + x_scale.place(point[0]) * (_WIDTH - _LEFT - _RIGHT)
        return round(x, 1), round(_TOP + (1 - y_scale.place(point[1])) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_grid(x_scale, y_scale, place)]
    for line in drawn:
        colour, placed = colours[line["name"]], [place(point) for point in line["curve"]]
        path = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        x, y = placed[-1]
        said = html.escape(f"{line['name']}: {line['mean']:.4f} bits per byte after {line['tokens']:,} tokens")
        parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"><title>{said}</title></circle>')
    parts += [_name(name, colours[name], number) for number, name in enumerate(names)]
    height = _HEIGHT + 18 * len(names)
    title = html.escape(f"Bits per byte on held-out documents of {corpora[0]}, by tokens")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#666"><title>{title}</title>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _grid(x_scale: Any, y_scale: Any, place: Any) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in y_scale.ticks:
        _, y = place((x_scale.low, value))
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#999" stroke-opacity="0.3"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.4g}</text>')
    for value in x_scale.ticks:
        x, _ = place((value, y_scale.low))
        parts.append(f'<line x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}" stroke="#999"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{_short(value)}</text>')
    parts.append(f'<text x="{right}" y="{bottom + 36}" text-anchor="end">tokens</text>')
    parts.append(f'<text x="{_LEFT - 56}" y="14">bits per byte</text>')
    return "\n".join(parts)


def _name(name: str, colour: str, number: int) -> str:
    y = _HEIGHT + 18 * number + 4
    return f'<circle cx="{_LEFT}" cy="{y - 4}" r="4" fill="{colour}"/><text x="{_LEFT + 12}" y="{y}">{html.escape(name)}</text>'


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"
