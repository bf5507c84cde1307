"""Decides what the site loads: nothing from another machine. The theme would fetch one script, for which there is ours."""

from typing import Any

_THEIRS = "https://unpkg.com/iframe-worker/shim"


def on_post_page(output: str, page: Any, config: Any) -> str:  # noqa: ARG001  as mkdocs calls it
    """A finished page, with our script in place of the theme's."""
    up = "../" * page.url.count("/")
    return output.replace(_THEIRS, f"{up}assets/worker.js")


def on_post_template(output: str, template_name: str, config: Any) -> str:  # noqa: ARG001  as mkdocs calls it
    """The same for a page that no file of docs/ makes, such as 404.html."""
    return output.replace(_THEIRS, "assets/worker.js")
