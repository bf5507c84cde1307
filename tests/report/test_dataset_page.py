import json
import shutil
from pathlib import Path

import pytest
import typer
from tests.report.test_page import Page
from typer.testing import CliRunner

from packtrain.cli.report import report
from packtrain.data.format.manifest import read_manifest
from packtrain.errors import ConfigError, DatasetError
from packtrain.report.dataset_page import build_dataset_page, write_dataset_report


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "a dataset"))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    for key, value in changes.items():
        tree["ledger"][key] = value
    path.write_text(json.dumps(tree))


def test_the_page_needs_nothing_else_and_tells_every_count(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    page = Page(build_dataset_page(dataset, manifest))
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    for side in ("train", "validation"):
        assert f"{manifest.ledger['tokens'][side]:,}" in page.text
        assert f"{manifest.ledger['documents'][side]:,}" in page.text
    assert "every one is accounted for" in page.text
    assert manifest.tokenizer.hash in page.text


def test_any_reason_is_told_as_text(copy: Path) -> None:
    evil = "<script>alert(1)</script>"
    documents = read_manifest(copy).ledger["documents"]
    edit(copy, documents={**documents, "near_duplicates": 7, "dropped": {evil: 3}}, samples={evil: [evil]})
    page = Page(build_dataset_page(copy, read_manifest(copy)))
    assert evil in page.text and "near duplicates" in page.text
    assert "It does not balance" in page.text


def test_the_command_knows_a_dataset_by_its_manifest(copy: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(copy), "--json"])
    assert json.loads(result.stdout)["report"] == str(copy / "report.html")
    assert (copy / "report.html").read_text().startswith("<!DOCTYPE html>")
    refused = CliRunner().invoke(app, [str(copy), str(tmp_path)])
    assert isinstance(refused.exception, ConfigError)
    with pytest.raises(DatasetError, match="--out"):
        write_dataset_report(copy, tmp_path / "no" / "such" / "file.html")
