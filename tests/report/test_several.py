"""Runs are compared only where they were measured on the same text, with the best marked and what differs first."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.report.runs_on_disk import write_run
from tests.report.test_page import Page

from packtrain.report.collect import collect
from packtrain.report.page import build_page


def compared(*folders: Path) -> str:
    text = build_page([collect(folder) for folder in folders])
    Page(text)
    return text


def plain(page: str) -> str:
    return Page(page).text


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def two_runs(folder: Path) -> list[Path]:
    return [
        write_run(folder / "good", lr=1e-3, floor=1.7).folder,
        write_run(folder / "bad", lr=2e-3, floor=2.1, seed=1).folder,
    ]


def test_the_best_figure_is_marked_with_a_word(tmp_path: Path) -> None:
    page = compared(*two_runs(tmp_path))
    results = page[page.index('id="results"') : page.index('id="learning"')]
    rows = re.findall(r"<tr><th scope=\"row\">(\w+)</th>(.*?)</tr>", results)
    assert {name: row.count("best</small>") for name, row in rows} == {"good": 3, "bad": 0}
    assert (
        "The validations during training compare: each is on about 65,536 of 340,418 held-out tokens, the same each time."
        in plain(page)
    )


def test_figures_on_other_text_are_told_apart_and_not_marked(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    edit(folders[1] / "manifest.json", lambda m: m["dataset"]["ledger"]["documents"].update({"validation": 7}))
    page = compared(*folders)
    assert "best</small>" not in page
    assert "were not all on the same text" in plain(page) and "Validated on" in plain(page)


def test_another_tokenizer_leaves_bits_per_byte_comparable(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    edit(folders[1] / "manifest.json", lambda m: m["dataset"]["tokenizer"].update({"hash": "another"}))
    edit(folders[1] / "manifest.json", lambda m: m["dataset"].update({"hash": "another too"}))
    page = compared(*folders)
    # The evaluation is on all of the text. The validation is on a part of it, which depends on the tokens.
    assert page.count("best</small>") == 1
    assert "losses per token do not compare" in plain(page)


def test_a_part_of_the_text_does_not_compare_with_all_of_it(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    config = folders[0] / "config.toml"
    assert "tokens = 65536" in config.read_text()
    config.write_text(config.read_text().replace("tokens = 65536", "tokens = 500000"))
    text = plain(compared(*folders))
    assert "good: all 340,418 held-out tokens; bad: about 65,536 of 340,418 held-out tokens" in text
    assert "65,536 of 340,418" in plain(build_page([collect(folders[1])]))


def test_samples_stand_side_by_side_and_hashes_are_short(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    edit(folders[0] / "manifest.json", lambda m: m["dataset"].update({"hash": "a" * 64}))
    edit(folders[1] / "manifest.json", lambda m: m["dataset"].update({"hash": "a" * 13 + "b" * 51}))
    page = compared(*folders)
    beside = re.findall(r'class="wide beside".*?</table>', page, flags=re.DOTALL)
    assert beside and all(each.count('<th scope="col"') == 3 for each in beside)
    differs = page[page.index('id="differences"') : page.index('id="machinery"')]
    assert "a" * 13 + "bbb" in differs and "a" * 17 not in differs
    assert "are the same in every run" in differs


def test_a_dozen_runs_compare(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"run {i}", lr=1e-3 * (1 + i), seed=i, floor=1.6 + i / 20).folder for i in range(12)
    ]
    page = Page(compared(*folders))
    assert len(page.ids) == len(set(page.ids)) and "12 runs compared" in page.text
