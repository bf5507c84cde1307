from pathlib import Path

import pytest
from corpora import recipe, sentences, write_jsonl

from packtrain.data.prepare import prepare


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl file of 200 documents, five of them copies of the first."""
    texts = sentences(195)
    return write_jsonl(tmp_path_factory.mktemp("source") / "tiny.jsonl", texts + [texts[0].upper()] * 5)


@pytest.fixture(scope="session")
def tiny_dataset(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset over `tiny_source`, in shards of at most 50 documents; not to be changed."""
    out = tmp_path_factory.mktemp("dataset") / "tiny"
    prepare(recipe("jsonl", tiny_source, source__id_column="id", prepare__slice_documents=50), out)
    return out
