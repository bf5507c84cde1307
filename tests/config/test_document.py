"""docs/configuration.md is what the classes say."""

from pathlib import Path

from packtrain.config.document import configuration_markdown


def test_the_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == configuration_markdown(), "run `make docs` and commit docs/configuration.md"
