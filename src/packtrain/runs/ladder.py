"""Decides what ladder.json holds: the runs of a ladder, the law fitted to them, and what it predicts."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from packtrain.errors import RunError
from packtrain.runs.layout import write_json
from packtrain.runs.saved_state import describe_misfit
from packtrain.storage.json_file import MOST_COUNT, read_json

LADDER_FILE = "ladder.json"

Count = Annotated[int, Field(ge=1, lt=MOST_COUNT)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Factor = Annotated[FiniteFloat, Field(ge=0)]


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Law(_Written):
    """L(N, D) = floor + size_factor / N^exponent + tokens_factor / D^exponent, in nats per token."""

    floor: Factor
    size_factor: Factor
    tokens_factor: Factor
    exponent: Positive

    def predict(self, parameters: float, tokens: float) -> float:
        """Loss in nats per token."""
        of_size = self.size_factor / float(parameters) ** self.exponent
        return self.floor + of_size + self.tokens_factor / float(tokens) ** self.exponent


class RungRecord(_Written):
    """One run: how it is trained, and what came of it."""

    name: str = Field(pattern=r"^[\w-]{1,100}$")
    """Of its folder in the ladder's."""
    config: dict[str, Any]
    parameters: Count
    hidden_size: Count
    num_hidden_layers: Count
    tokens: Count
    epochs: Factor
    steps: Count
    global_batch_tokens: Count
    lr: Positive
    flops: Positive
    planned_s: Factor
    """Of this machine when it is idle, by the measured rate."""
    state: Literal["planned", "finished", "diverged"] = "planned"
    reason: str = ""
    """Why it diverged."""
    loss: Positive | None = None
    """On held-out text, after the last step, in nats per token."""
    bits_per_byte: Positive | None = None


class Prediction(_Written):
    """What a law says of a run that it was not fitted to, with an interval that holds the loss in 19 of 20 cases."""

    parameters: Count
    tokens: Count
    loss: Positive
    low: Positive
    high: Positive
    bits_per_byte: Positive
    bits_per_byte_low: Positive
    bits_per_byte_high: Positive


class HeldOutCheck(_Written):
    """The largest size, predicted by a law that was fitted without it, beside its own loss."""

    run: str
    predicted: Positive
    measured: Positive

    @property
    def error(self) -> float:
        """Relative to the measured loss; negative if the law says too little."""
        return self.predicted / self.measured - 1


class Asked(_Written):
    """What was asked for: another preset, dataset or budget is another ladder."""

    settings: dict[str, Any]
    dataset_hash: str
    budget: str


class LadderRecord(_Written):
    """Everything in ladder.json."""

    format: Literal[1] = 1
    asked: Asked
    preset: str
    parameters: Count
    """Of the preset."""
    tokens: Count
    epochs: Factor
    flops: Positive
    slowdown: Annotated[FiniteFloat, Field(ge=1)]
    """Seconds on the wall for one of this machine when it is idle, as measured before the first run."""
    runs: tuple[RungRecord, ...]
    law: Law | None = None
    law_intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = {}
    held_out: HeldOutCheck | None = None
    prediction: Prediction | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    """What the runs themselves say against the law."""


def read_ladder(folder: Path) -> LadderRecord:
    """The ladder in a folder. Raises RunError if it has none, or if its file is damaged or of another version."""
    path = folder / LADDER_FILE
    if not path.exists():
        raise RunError(
            f"{folder} does not contain a ladder (it has no {LADDER_FILE}); give the --out folder of `packtrain ladder`"
        )

    def refuse(reason: str) -> RunError:
        return RunError(f"{path} is damaged ({reason}); restore a copy of it, or start over with another --out")

    found = read_json(path, refuse)
    if isinstance(found, dict) and found.get("format", 1) != 1:
        raise RunError(
            f"{path} is of another version of packtrain; read it with that one, or start over with another --out"
        )
    try:
        return LadderRecord.model_validate(found)
    except ValidationError as failure:
        raise refuse(describe_misfit(failure)) from None


def write_ladder(folder: Path, record: LadderRecord) -> None:
    """Replaces the ladder's file: readers see the old or the new one."""
    write_json(folder / LADDER_FILE, record.model_dump(mode="json"))
