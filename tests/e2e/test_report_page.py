"""Decides whether a reader can use the pages: in a browser, at three widths, light and dark, by pointer, by keyboard, and live."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.report.runs_on_disk import metrics, write_run

from packtrain.data.format.manifest import read_manifest
from packtrain.report.collect import collect
from packtrain.report.dataset_page import build_dataset_page
from packtrain.report.page import build_page
from packtrain.report.watch import open_server

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
WIDTHS = (390, 820, 1440)

CHECKS = Path(__file__).with_name("page_checks.js").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Path]:
    """One run, a dozen runs with long names, a run of one point, one of losses that are not finite, and a dataset."""
    folder = tmp_path_factory.mktemp("pages")
    one = write_run(folder / "one").folder
    dozen = [
        write_run(folder / f"{i} a-run-with-a-rather-long-name", lr=1e-3 * (1 + i), seed=i).folder for i in range(12)
    ]
    single, bad = write_run(folder / "single").folder, write_run(folder / "bad").folder
    single_line, *_ = (single / "metrics.jsonl").read_text().splitlines()
    (single / "metrics.jsonl").write_text(single_line + "\n")
    lines = [json.loads(line) for line in (bad / "metrics.jsonl").read_text().splitlines()]
    with (bad / "metrics.jsonl").open("w") as file:
        # Bare NaN and Infinity, as other programs write them; a gap in the steps; a torn end.
        for i, line in enumerate(lines[:20] + lines[40:]):
            changed = {"loss": (float("nan"), float("inf"))[i % 2]} if i % 7 == 3 and "loss" in line else {}
            file.write(json.dumps({**line, **changed}) + "\n")
        file.write('{"step": 9')
    written = {"one": [one], "dozen": dozen, "single": [single], "bad": [bad]}
    found = {}
    for name, runs in written.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(build_page([collect(run) for run in runs]))
    found["dataset"] = folder / "dataset.html"
    found["dataset"].write_text(build_dataset_page(dataset, read_manifest(dataset)))
    return found


@pytest.mark.parametrize("name", ["one", "dozen", "single", "bad", "dataset"])
@pytest.mark.slow
def test_nothing_is_cut_off_faint_or_without_a_name(browser: Any, pages: dict[str, Path], name: str) -> None:
    faults: list[Any] = []
    page = browser.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: faults.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(pages[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        faults += page.evaluate(f"{CHECKS}.findCut()")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        faults += page.evaluate(f"{CHECKS}.findFaint()")
    faults += page.evaluate(f"{CHECKS}.findUnnamed()")
    page.close()
    assert faults == []


def test_values_are_read_and_zoomed_by_keyboard_alone(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 820, "height": 900})
    page.goto(pages["one"].as_uri())
    chart = page.locator("#loss .plot.view0.linear")
    said, whole = page.locator("#loss .said"), chart.locator("svg").first.inner_html()
    chart.focus()
    page.keyboard.press("Home")
    assert said.text_content().startswith("10 steps, training, running mean: ")
    page.keyboard.press("ArrowRight")
    assert said.text_content().startswith("20 steps")
    page.keyboard.press("End")
    assert said.text_content().startswith("700 steps") and "held out: " in said.text_content()
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert said.text_content() == "525 steps to 700 steps"
    ticks = chart.locator("svg text[text-anchor=middle]").all_text_contents()
    assert ticks and all(500 <= float(tick) <= 700 for tick in ticks)
    # The first Escape puts the value away, the second shows everything.
    page.keyboard.press("Escape")
    assert page.locator("#loss .tip").is_hidden() and chart.locator("svg").first.inner_html() != whole
    page.keyboard.press("Escape")
    assert chart.locator("svg").first.inner_html() == whole
    page.close()


def test_a_spike_is_seen_and_found_by_dragging(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run").folder
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"step": s, "tokens": s * 64, "loss": 50.0 if s == 12_345 else 2 + 1 / s}) + "\n"
            for s in range(1, 20_001)
        )
    (tmp_path / "page.html").write_text(build_page([collect(folder)]))
    page = browser.new_page(viewport={"width": 820, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    chart = page.locator("#loss .plot.view0.linear")
    box = chart.locator("svg").first.bounding_box()
    [x] = [box["x"] + box["width"] * 12_345 / 20_000]
    page.mouse.move(x - 20, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(x + 20, box["y"] + 60, steps=3)
    page.mouse.up()
    ticks = [
        float(text.rstrip("k").replace("K", ""))
        for text in chart.locator("svg text[text-anchor=middle]").all_text_contents()
    ]
    assert ticks and all(11.5 <= tick <= 13.2 for tick in ticks)
    highest = chart.locator("path.faint").evaluate("(p) => p.getBBox().y")
    assert highest < 100
    page.get_by_role("button", name="Show all: Loss").click()
    assert chart.locator("svg text[text-anchor=middle]").first.text_content() == "0"
    page.close()


def test_a_first_column_stays_while_a_table_scrolls(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(pages["dozen"].as_uri())
    box = page.locator("#differences .wide").first
    before = box.locator("tbody th").first.bounding_box()["x"]
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#differences .wide').scrollLeft > 0")
    assert box.locator("tbody th").first.bounding_box()["x"] == before
    page.close()


@pytest.mark.slow
def test_a_live_page_grows_and_keeps_what_the_reader_has_set(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run").folder
    with open_server([folder]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = browser.new_page(viewport={"width": 820, "height": 700})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        page.locator("#bits label", has_text="tokens").click()
        page.locator("#configuration summary").click()
        chart = page.locator("#loss .plot.view0.linear")
        chart.focus()
        page.keyboard.press("Home")
        page.keyboard.press("+")
        page.evaluate("window.scrollTo(0, 900)")
        shown = chart.locator("svg text[text-anchor=middle]").all_text_contents()
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(
                json.dumps(line) + "\n" for line in metrics(900, lr=1e-3, seed=0, floor=1.9) if line["step"] > 700
            )
        page.locator(".byline", has_text="900 of").wait_for(timeout=60_000)
        assert chart.locator("svg text[text-anchor=middle]").all_text_contents() == shown
        assert page.evaluate("window.scrollY") == 900
        assert (
            page.locator("#bits input.view1").is_checked()
            and page.locator("#configuration details").get_attribute("open") == ""
        )
        assert page.evaluate("document.activeElement.className") == "plot view0 linear"
        assert page.locator("#loss .tip").is_visible()
        server.shutdown()
        server.server_close()
        page.locator(".live", has_text="has ended").wait_for(timeout=60_000)
        page.close()
        thread.join()
    assert faults == []
