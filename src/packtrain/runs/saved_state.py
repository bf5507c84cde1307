"""Decides what state.json of a checkpoint must hold, so that nothing that reads it finds another kind of value."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from packtrain.errors import CheckpointError, CheckpointFormatError
from packtrain.runs.configuration import USE_ANOTHER
from packtrain.runs.layout import STATE, RunLayout
from packtrain.runs.retention import read_val_loss
from packtrain.storage.json_file import MOST_COUNT, read_json

FORMAT_VERSION = 2
# The first format has all tensors in two files, not in parts; both are read alike.
_READABLE = (1, FORMAT_VERSION)

_Count = Annotated[int, Field(ge=0, lt=MOST_COUNT)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _GuardState(_Part):
    losses: list[FiniteFloat] = []
    grad_norms: list[FiniteFloat] = []
    recent_skips: list[bool] = []
    num_rollbacks: _Count = 0


class _ScalerState(_Part):
    scale: Annotated[FiniteFloat, Field(gt=0)]
    growth_factor: Annotated[FiniteFloat, Field(gt=1)]
    backoff_factor: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(gt=0, lt=MOST_COUNT)]
    growth_tracker: Annotated[int, Field(ge=0, lt=MOST_COUNT, alias="_growth_tracker")]


class _SavedTokenizer(_Part):
    hash: str
    adds_bos: bool
    adds_eos: bool


class _AverageState(_Part):
    kind: str
    count: _Count


class _SavedState(_Part):
    step: _Count
    tokens: _Count = 0
    val_loss: FiniteFloat | None = None
    guard: _GuardState = _GuardState()
    loader: dict[str, Any] | None = None
    optimizer: str | None = None
    scaler: dict[str, Any] = {}
    optimizer_numbers: dict[str, bool | int | FiniteFloat] = {}
    tokenizer: _SavedTokenizer | None = None
    average: _AverageState | None = None


def read_state(folder: Path) -> dict[str, Any]:
    """The content of state.json in a checkpoint, with the loss of its validation.

    Raises CheckpointFormatError if another version wrote it, CheckpointError if it does not have what it must have.
    """

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{folder} is not a whole checkpoint ({STATE}: {reason}); {USE_ANOTHER}")

    state = read_json(folder / STATE, refuse)
    if not isinstance(state, dict):
        raise refuse("it is not a table of values")
    if type(state.get("format")) is not int or state["format"] not in _READABLE:
        raise CheckpointFormatError(
            f"{folder} has checkpoint format {str(state.get('format'))[:20]} and this packtrain reads up to {FORMAT_VERSION}; "
            "use the packtrain version named in the run's manifest.json"
        )
    try:
        step = _SavedState.model_validate(state).step
        # Empty if the run did not scale its loss.
        if state.get("scaler"):
            _ScalerState.model_validate(state["scaler"])
    except ValidationError as failure:
        raise refuse(describe_misfit(failure)) from None
    if RunLayout.step_of(folder) not in (None, step):
        raise refuse(f"it is of step {step}")
    return state | {"val_loss": read_val_loss(folder)}


def describe_misfit(failure: ValidationError) -> str:
    """What is wrong with a value that came out of a file, as a clause."""
    error = failure.errors()[0]
    key = ".".join(str(part) for part in error["loc"])[:80]
    message = error["msg"]
    return f"{key}: {message[:1].lower()}{message[1:]}"
