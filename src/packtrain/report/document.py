"""Decides what surrounds the parts of a page: its head, style and scripts, and how the file is written whole."""

import datetime
import errno
from collections.abc import Sequence
from pathlib import Path

import packtrain
from packtrain.errors import PacktrainError
from packtrain.report.markup import Markup, el
from packtrain.storage.atomic import disk_errors, write_atomically


def document(title: str, parts: Sequence[Markup], origin: str, *, live: bool = False) -> str:
    """An HTML document around the parts of a page; `origin`, in the footer, says what it was written from.

    A `live` page asks the server that it came from for a newer one.
    """
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(asset("page.css"))),
    )
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    footer = el("footer", f"Written by packtrain {packtrain.__version__} on {stamp} from {origin}.")
    program = asset("page.js") + (asset("live.js") if live else "")
    return "<!DOCTYPE html>\n" + el("html", head, el("body", *parts, footer, el("script", Markup(program))), lang="en")


def contents(entries: dict[str, str]) -> Markup:
    """Links to sections by their keys."""
    links = [el("li", el("a", title, href=f"#{key}")) for key, title in entries.items()]
    return el("nav", el("ul", *links), aria_label="Contents")


def write_page(target: Path, content: str, refusal: type[PacktrainError]) -> None:
    """Writes a page completely or not at all. Raises `refusal` if it cannot be written, DiskFullError if the disk is full."""
    try:
        if not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such folder")
        with disk_errors(target.parent):
            write_atomically(target, content.encode())
    except OSError as error:
        raise refusal(
            f"the report cannot be written to {target} ({error.strerror}); choose another file with --out"
        ) from None


def asset(name: str) -> str:
    """A file that belongs to the pages: page.css, page.js or live.js."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
