"""Decides how the page to play with the model is sent: one file that runs nothing but its own script and asks nobody else."""

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from packtrain.errors import PacktrainError
from packtrain.serve.refusal import Refusal


class Drawn(Protocol):
    """Curves as HTML that follow their run; `refresh` reads what is new, and takes a while."""

    content: bytes
    version: str

    def refresh(self) -> None: ...


@dataclass(frozen=True)
class PageParts:
    """What the page takes from the report: its style, the script of its charts, and the curves of the run, if it is one."""

    style: str
    script: str
    curves: Drawn | None


class Page:
    """The page, and the curves on it."""

    def __init__(self, parts: PageParts) -> None:
        self._curves = parts.curves
        style, script = parts.style + _read("page.css"), parts.script + _read("page.js")
        self._content = (
            _read("page.html")
            .replace("/*STYLE*/", style)
            .replace("/*SCRIPT*/", script)
            .replace("HAS_CURVES", "yes" if parts.curves else "no")
        )
        self._policy = (
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    async def show(self, request: Request) -> Response:  # noqa: ARG002  the signature is starlette's
        return HTMLResponse(self._content, headers={"Content-Security-Policy": self._policy})

    async def show_curves(self, request: Request) -> Response:
        if self._curves is None:
            raise Refusal(404, "this model has no curves: it is not a run")
        try:
            await asyncio.to_thread(self._curves.refresh)
        except PacktrainError as error:
            raise Refusal(503, str(error)) from None
        tag = f'"{self._curves.version}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return HTMLResponse(self._curves.content, headers={"ETag": tag})


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
