"""Decides how a value is shown so that it can be typed again."""

import json
from typing import Any

from pydantic import BaseModel


def show(value: Any) -> str:
    """A value as the command line takes it after `KEY=`; what is not set is `unset`."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        parts = [part.model_dump(exclude_none=True) if isinstance(part, BaseModel) else part for part in value]
        return json.dumps(parts, ensure_ascii=False)
    return str(value)
