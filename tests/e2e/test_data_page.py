"""Decides whether docs/data.md is true: runs its commands in order, on files laid out as the page says."""

import csv
import json
import re
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command_line import packtrain
from tests.e2e.test_readme import commands

from packtrain.prepare.steps.train_tokenizer import train_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def block(language: str) -> str:
    """The page's only block of a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page assumes. The text is Python's language reference."""
    monkeypatch.chdir(tmp_path)
    # Only the beginnings: nearly every command trains a tokenizer on them.
    texts = [text[:2500] for text in topics.values()]
    (tmp_path / "my_texts" / "manual").mkdir(parents=True)
    for number, text in enumerate(texts):
        name = f"{1790 + number}-{number:03d}.txt" if number % 2 else f"manual/{number:03d}.rst"
        (tmp_path / "my_texts" / name).write_text(text)
    (tmp_path / "my_texts" / "1862-072.txt").write_text(f"In other words: {texts[0]}")
    with (tmp_path / "reviews.jsonl").open("w") as lines:
        lines.writelines(json.dumps({"review": text, "id": n}) + "\n" for n, text in enumerate(texts))
    with (tmp_path / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["review"], *([text] for text in texts)])
    hub = tmp_path / "fineweb-edu" / "sample" / "10BT"
    hub.mkdir(parents=True)
    scores = [3 + n % 3 for n in range(len(texts))]
    names = [str(n) for n in range(len(texts))]
    pq.write_table(pa.table({"text": texts, "id": names, "int_score": scores}), hub / "000_00000.parquet")
    train_tokenizer(texts, 512).save(tmp_path / "llama2")
    (tmp_path / "my_source.py").write_text(block("python"))
    (tmp_path / "mine.toml").write_text(block("toml"))
    return tmp_path


@pytest.mark.slow
def test_every_command_does_what_the_page_says(folder: Path) -> None:
    for words in [*commands(PAGE), ["prepare", "mine.toml", "--out", "data/from-a-file"]]:
        in_one_process = ["prepare.workers=1"] if words[0] in ("prepare", "import") else []
        # The filters drop most of the reference, so a tenth of the rest may be zero documents.
        few = ["split.validation_fraction=0"] if "clean.filters" in " ".join(words) else []
        done = packtrain(words[0], *words[1:], *in_one_process, *few)
        if words[:2] == ["prepare", "fineweb-edu-10bt"] and "source.path=fineweb-edu" not in words:
            # Tests have no network. The error must give the command that the page gives.
            assert done.code == 2
            assert "hf download HuggingFaceFW/fineweb-edu" in done.sentence
            continue
        assert done.code == 0, (words, done.err)
        if words[0] == "diff":
            assert "The same documents with the same ids on the same sides." in done.out
    assert (folder / "data/mine/report.html").is_file()
    assert (folder / "data/mine/manifest.json").read_text().count("my_texts") == 1
    near, again = (json.loads((folder / f"data/{name}/manifest.json").read_text()) for name in ("near", "again"))
    assert near["ledger"]["documents"]["near_duplicates"] == 1
    assert again["ledger"]["tokens"] == json.loads((folder / "data/mine/manifest.json").read_text())["ledger"]["tokens"]
