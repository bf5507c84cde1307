"""Whatever a file is called and whatever a text says, a screen, a page and a card show it and do not obey it."""

import io
import re
import sys
from pathlib import Path

import pytest
import yaml
from tests.report.test_page import Page

from packtrain.cli import screen
from packtrain.cli.generate import show
from packtrain.data.tokens.visible import printable
from packtrain.errors import DiskFullError, RunError
from packtrain.export import card
from packtrain.report import page
from packtrain.report.markup import el
from packtrain.report.page import write_page

NASTY = (
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b31m",
    "a\u202egnp.exe",
    "\u2066\u2069\u200e\u200f\u061c\u2028",
    "bell\x07 back\x08 \r \0 \x7f",
    "lone \ud800",
    "<script>alert(1)</script>",
    "`code` ``x`` **bold** _it_ [link](http://x) ![i](y) | cell",
    "---\nlibrary_name: evil\n---",
    "[/bold][red] \\[x]",
    "# heading\n\n- list",
)
HIDDEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize(
    "text", ["", "plain", "zwölf 日本 🙂👩‍👩‍👧 مرحبا", "two\nlines\tand a tab", "e\u0301\u200b\ufeff"]
)
def test_other_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize("text", NASTY)
def test_a_screen_shows_it(text, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for write in (screen.note, screen.warn, screen.error, screen.heading):
        write(text)
    screen._open_console(stderr=False).print(screen.escape(text))
    screen._open_console(stderr=False).print(text, markup=False)
    table = screen.table(screen.escape(text), title=screen.escape(text))
    table.add_row(screen.escape(text))
    screen._open_console(stderr=False).print(table)
    with screen.progress(text) as on_progress:
        on_progress(1, 2)
    shown = "".join(capsys.readouterr())
    assert not HIDDEN.search(shown.replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
    assert printable(text).splitlines()[0] in shown


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_shown_what_a_model_wrote_and_a_file_gets_it_as_it_is(monkeypatch, is_terminal):
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", out)
    text = "\x1b[31m\u202e\x07 and\nmore"
    assert show(text, [text, "\x9b"]) == text + "\x9b"
    plain = f"{text}{text}\x9b\n"
    assert out.getvalue() == (printable(plain) if is_terminal else plain)


@pytest.mark.parametrize("text", NASTY)
def test_a_page_shows_it(text):
    made = page.document(text, [el("p", text, title=text), el("pre", text)], text)
    assert not HIDDEN.search(made)
    assert "<script>alert" not in made
    assert printable(text) in Page(made).text
    made.encode()


@pytest.mark.parametrize("text", NASTY)
def test_a_card_shows_it(text):
    inert, code = card._inert(text), card._code(text)
    table = card._table(text, [(text, text), ("list", [text])])
    for made in (inert, code, table):
        assert not HIDDEN.search(made)
        assert "---\nlibrary" not in made
    assert "\n" not in inert + code
    for made in (inert, table):
        assert "<script" not in made and not re.search(r"(?<!\\)[`*\[\]]", made)
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table.splitlines()[2:])
    front_matter = card._FRONT_MATTER.format(lines="library_name: transformers\n")
    assert yaml.safe_load(front_matter.strip("-"))["library_name"] == "transformers"


@pytest.mark.parametrize("number", [28, 122, 27])
def test_a_page_on_a_full_disk_ends_with_4(tmp_path: Path, monkeypatch, number):
    def full(_):
        raise OSError(number, "no room")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError, match="there is no room left on the disk") as caught:
        write_page(tmp_path / "report.html", "text", RunError)
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    with pytest.raises(RunError, match="choose another file with --out"):
        write_page(tmp_path / "none" / "report.html", "text", RunError)
    assert list(tmp_path.iterdir()) == []
