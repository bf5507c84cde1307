"""Decides whether a reader can use the server's page: in a browser, at two widths, light and dark, by pointer and by keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.report.runs_on_disk import write_run

pytest.importorskip("starlette", reason="pip install 'packtrain[serve]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from tests.serve.conftest import make_model  # noqa: E402

from packtrain.api import serving  # noqa: E402
from packtrain.serve.limits import ServeLimits  # noqa: E402
from packtrain.serve.server import Serving, Where  # noqa: E402

CHECKS = Path(__file__).with_name("page_checks.js").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of a model that has learned nothing, with the curves of a run; it has a token."""
    folder = tmp_path_factory.mktemp("page")
    parts = serving.page_parts(write_run(folder / "run").folder)
    with Serving(make_model(folder), Where(port=0, token="secret"), ServeLimits(), parts) as made:
        yield made


def open_page(browser: Any, server: Serving, faults: list[Any], width: int = 820) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(server.address) else None)
    page.goto(server.address)
    page.get_by_label("This server needs its token").fill("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#curves figure")
    return page


def test_a_text_is_generated_and_read_by_keyboard_alone(browser: Any, server: Serving) -> None:
    faults: list[Any] = []
    page = open_page(browser, server, faults)
    assert page.title().startswith("tiny") and "training step 700" in page.text_content("#facts")
    page.get_by_label("Tokens at most").fill("30")
    page.get_by_label("Seed").fill("5")
    page.get_by_label("Prompt").fill("The dog")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#more:enabled")
    status, text = page.text_content("#status"), page.text_content("#text")
    assert "step 700, seed 5" in status and text.startswith("The dog") and len(text) > 20
    page.focus("#text")
    page.keyboard.press("Home")
    first = page.text_content("#detail-said")
    page.keyboard.press("ArrowRight")
    assert "%" in first and page.text_content("#detail-said") != first
    assert page.locator("#alternatives tr").count() >= 8 and page.locator("#alternatives tr.chosen").count() >= 1
    # The same seed repeats the text.
    page.get_by_role("button", name="Generate", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#more:enabled")
    assert page.text_content("#text") == text
    page.close()
    assert faults == []


def test_the_pointer_shows_alternatives_and_chooses_one(browser: Any, server: Serving) -> None:
    faults: list[Any] = []
    page = open_page(browser, server, faults)
    page.get_by_label("Tokens at most").fill("20")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_selector("#more:enabled")
    # A token by itself: of those that make a character together, no alternative can be chosen.
    for token in page.locator("#text .tok").all():
        token.hover()
        if page.locator("#alternatives button").count():
            break
    chosen = page.locator("#alternatives button").filter(has_text=re.compile(r"^[^\\]+$")).first
    name = chosen.text_content()
    chosen.click()
    page.wait_for_selector("#more:enabled")
    assert page.text_content("#text .given").replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").endswith(name)
    page.close()
    assert faults == []


def test_a_text_is_stopped_and_its_slot_is_free(browser: Any, server: Serving) -> None:
    page = open_page(browser, server, [])
    page.get_by_label("Tokens at most").fill("2000")
    page.get_by_label("Prompt").fill("The")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#text .tok")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop:disabled")
    assert "stopped" in page.text_content("#status")
    page.close()


def test_an_error_is_said_and_text_from_the_model_is_not_markup(browser: Any, server: Serving) -> None:
    page = open_page(browser, server, [])
    page.get_by_label("Prompt").fill("word " * 3000)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#fault:visible")
    assert "context holds" in page.text_content("#fault")
    page.get_by_label("Prompt").fill("<img src=x onerror=alert(1)>")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#more:enabled")
    assert page.locator("#text img").count() == 0 and page.locator("#fault").is_hidden()
    page.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_cut_off_faint_or_without_a_name(browser: Any, server: Serving, width: int) -> None:
    faults: list[Any] = []
    page = open_page(browser, server, faults, width)
    page.get_by_label("Tokens at most").fill("40")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.wait_for_selector("#more:enabled")
    page.focus("#text")
    page.keyboard.press("End")
    faults += page.evaluate(f"{CHECKS}.findCut()")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        faults += page.evaluate(f"{CHECKS}.findFaint()")
    faults += page.evaluate(f"{CHECKS}.findUnnamed()")
    page.close()
    assert faults == []
