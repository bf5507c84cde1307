"""Every promise of the README has a test module of its own, which opens by quoting it."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_promise_has_a_module_that_quotes_it() -> None:
    text = (HERE.parents[1] / "README.md").read_text()
    section = text.partition("## What it promises")[2].partition("\n## ")[0]
    promises = {name: " ".join(said.split()) for name, said in re.findall(r"- \*\*(.+?)\.\*\* ((?:.|\n  )+)", section)}
    assert len(promises) == 6
    for name, said in promises.items():
        module = HERE / f"test_{name.lower().replace(' ', '_')}.py"
        opening = " ".join((ast.get_docstring(ast.parse(module.read_text())) or "").split())
        assert opening == f"{name}. {said}"
