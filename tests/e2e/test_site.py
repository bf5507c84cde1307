"""Decides whether the pages of docs/ build into a site that is whole and asks no other machine for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    build = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1", "PATH": ""})
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(tmp_path / "site").as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    for name in ("index", "tutorial", "guide-437m", "python", "data", "configuration", "decisions/index"):
        assert f"{name}.html" in pages
    loads = re.compile(
        r"<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href|srcset)=[\"']?(?:https?:)?//[^\s>]*"
    )
    # The name of the page itself is not loaded.
    found = {name: [tag for tag in loads.findall(page) if "canonical" not in tag] for name, page in pages.items()}
    assert {name: tags for name, tags in found.items() if tags} == {}
    sheets = "".join(sheet.read_text() for sheet in tmp_path.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//[^)]*", sheets)


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "index.md").read_text()
    assert [page.name for page in folder.glob("0*.md") if f"({page.name})" not in listed] == []
