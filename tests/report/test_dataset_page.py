"""The page of a prepared dataset shows every count of its manifest, and any text in it only as text."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from tests.corpora import reseal
from tests.report.test_page import Page
from typer.testing import CliRunner

from packtrain.cli.report import report
from packtrain.data.format.manifest import read_manifest
from packtrain.errors import ConfigError, DatasetError
from packtrain.report.dataset_page import build_dataset_page, write_dataset_report


@pytest.fixture
def copied(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "a dataset"))


def edit(folder: Path, **changes: object) -> None:
    reseal(folder, lambda tree: tree["ledger"].update(changes))


def test_the_page_needs_no_other_file_and_shows_every_count(dataset: Path) -> None:
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


def test_any_reason_is_shown_as_text(copied: Path) -> None:
    evil = "<script>alert(1)</script>"
    documents = read_manifest(copied).ledger["documents"]
    edit(copied, documents={**documents, "near_duplicates": 7, "dropped": {evil: 3}}, samples={evil: [evil]})
    page = Page(build_dataset_page(copied, read_manifest(copied)))
    assert evil in page.text and "near duplicates" in page.text
    assert "The ledger does not balance" in page.text


def test_the_command_knows_a_dataset_by_its_manifest(copied: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(copied), "--json"])
    assert json.loads(result.stdout)["report"] == str(copied / "report.html")
    assert (copied / "report.html").read_text().startswith("<!DOCTYPE html>")
    refused = CliRunner().invoke(app, [str(copied), str(tmp_path)])
    assert isinstance(refused.exception, ConfigError)
    with pytest.raises(DatasetError, match="--out"):
        write_dataset_report(copied, tmp_path / "no" / "such" / "file.html")
