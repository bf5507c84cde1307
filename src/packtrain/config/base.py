"""The behaviour that every configuration class shares: frozen, no unknown keys, finite numbers, defaults checked like given values."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the configuration. Field docstrings are the documentation: `docs/configuration.md` is made from them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )
