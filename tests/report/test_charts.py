"""A chart draws each number where it belongs, in SVG that is complete without a script."""

import json
import math
import re
from xml.etree import ElementTree

import pytest

from packtrain.report.charts import render
from packtrain.report.series import Figure, Level, Mark, Series

STEPS = [10.0, 20.0, 30.0, 40.0]


def figure(ys: list[float], **changes: object) -> Figure:
    tokens = [step * 512 for step in STEPS]
    series = (Series("training", (STEPS, tokens), ys), Series("held out", (STEPS, tokens), ys, 1, "dots"))
    kept: dict[str, object] = {"views": ("steps", "tokens"), "offers_log": True, **changes}
    return Figure("loss", "Loss", "nats per token", series, **kept)  # type: ignore[arg-type]


def drawings(markup: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg role=.*?</svg>(?=</div>)", markup)]


def test_every_view_and_scale_is_drawn_without_a_script() -> None:
    found = drawings(render(figure([8.0, 4.0, 3.0, 2.5])))
    assert [(svg.get("data-view"), svg.get("data-log")) for svg in found] == [
        ("0", None),
        ("0", "1"),
        ("1", None),
        ("1", "1"),
    ]
    for svg in found:
        assert svg.findtext("title", "").startswith("Loss, nats per token, by ")
        assert "from 8.000 at 10 steps" in svg.findtext("desc", "") or "at 5,120 tokens" in svg.findtext("desc", "")
        assert svg.get("role") == "img"
        names = (svg.get("aria-labelledby") or "").split()
        assert names == [child.get("id") for child in svg[:2]]


def test_a_point_is_where_its_numbers_say() -> None:
    svg = drawings(render(figure([8.0, 4.0, 3.0, 2.0], offers_log=False)))[0]
    low, high = (float(v) for v in (svg.get("data-y") or "").split(","))
    path = svg.find(".//path[@class='line c0']")
    assert path is not None
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", path.get("d") or "")[1:]]
    assert [x for x, _ in points] == pytest.approx([250, 500, 750, 1000])
    expected = [1000 * (1 - (y - low) / (high - low)) for y in (8.0, 4.0, 3.0, 2.0)]
    assert [y for _, y in points] == pytest.approx(expected, abs=0.06)
    circles = [c.get("cx") for c in svg.iter("circle")]
    assert circles == ["25.00%", "50.00%", "75.00%", "100.00%"]


def test_a_value_that_is_not_finite_breaks_the_line_and_gets_a_cross() -> None:
    markup = render(figure([8.0, math.nan, 3.0, math.inf]))
    svg = drawings(markup)[0]
    path = svg.find(".//path[@class='line c0']")
    assert path is not None and (path.get("d") or "").count("M") == 2
    assert [text.get("x") for text in svg.iter("text") if text.get("class") == "bad"] == ["100.00%", "50.00%"]
    assert "nan" not in markup.lower() and "inf" not in markup.lower()


def test_there_is_no_log_scale_if_a_value_is_not_positive() -> None:
    assert all(svg.get("data-log") is None for svg in drawings(render(figure([1.0, 0.0, 2.0, 3.0]))))


def test_levels_and_marks_are_named() -> None:
    marks = (Mark("resumed at step 20", (20.0, 20 * 512.0)),)
    markup = render(figure([8.0, 4.0, 3.0, 2.0], levels=(Level("zlib -9", 1.8532),), marks=marks))
    for svg in drawings(markup):
        assert "zlib -9 1.853" in [text.text for text in svg.iter("text")]
        assert [line.findtext("title") for line in svg.iter("line") if line.get("class") == "mark"] == [
            "resumed at step 20"
        ]


def test_labels_do_not_cover_each_other() -> None:
    levels = tuple(Level(f"level {i}", 2.0 + i / 1000) for i in range(6))
    svg = drawings(render(figure([8.0, 4.0, 3.0, 2.0], levels=levels)))[0]
    heights = sorted(
        float(t.get("y") or 0) for t in svg.iter("text") if t.get("class") in ("level-name", "end c0", "end c1")
    )
    assert len(heights) == 8
    assert all(b - a >= 13.9 for a, b in zip(heights, heights[1:], strict=False))
    assert heights[-1] <= 264.1


def test_names_are_escaped() -> None:
    markup = render(Figure("k", "<b>", "&", (Series("</script><script>alert(1)</script>", ([1.0, 2.0],), [1.0, 2.0]),)))
    assert "<b>" not in markup and markup.count("</script>") == 1
    data = json.loads(markup[markup.index(">", markup.index("<script")) + 1 : markup.index("</script>")])
    assert data["series"][0]["name"] == "</script><script>alert(1)</script>"


def test_one_point_and_equal_points_are_drawn() -> None:
    for xs, ys in (([5.0], [2.0]), ([1.0, 2.0], [3.0, 3.0]), ([0.0], [0.0])):
        assert drawings(render(Figure("k", "t", "u", (Series("s", (xs,), ys),), offers_log=True)))


def test_a_long_series_is_thinned_with_its_peak_kept() -> None:
    ys = [1.0] * 50_000
    ys[31_234] = 9.0
    markup = render(Figure("k", "t", "u", (Series("s", (list(map(float, range(50_000))),), ys),)))
    assert len(markup) < 100_000 and ",9.0," in markup
