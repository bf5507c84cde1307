"""Decides what all configuration classes share: frozen, no unknown keys, finite numbers, defaults checked as given values are."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the configuration. Field docstrings are the documentation: `docs/configuration.md` is made from them.

    `config/document.py` reads them: had pydantic to do so (`use_attribute_docstrings`), every command would begin a fifth later.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, defer_build=True)
