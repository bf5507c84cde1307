"""Decides how a run remembers its place in the data, and whether a saved place belongs to the data that it now has."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from packtrain.data.rows.plan import Layout
from packtrain.errors import DatasetError


@dataclass(frozen=True)
class LoaderState:
    """A run's place in its data, independent of world size, accumulation and machine."""

    manifest_hash: str
    plan_hash: str
    seed: int
    epoch: int
    """Times that every row has been seen; for a mixture, times that as many rows have been seen as all its datasets hold."""
    samples_consumed: int
    """Rows seen in this epoch, over all ranks."""

    def to_dict(self) -> dict[str, str | int]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The state that `to_dict` wrote. Raises DatasetError for anything else."""
        types = {field.name: field.type for field in dataclasses.fields(cls)}
        if values.keys() != types.keys() or any(type(values[name]) is not kind for name, kind in types.items()):
            raise DatasetError(
                f"the saved position in the data is damaged: it needs {', '.join(types)} and has {values}; "
                "resume from an earlier checkpoint"
            )
        return cls(**values)


def check_position(state: LoaderState, layout: Layout, seed: int) -> None:
    """Raises DatasetError if `state` was saved with another dataset, plan or seed, or names a row that does not exist."""
    if state.manifest_hash != layout.manifest_hash:
        raise DatasetError(
            f"this run was trained on dataset {state.manifest_hash[:12]}, but the dataset given is "
            f"{layout.manifest_hash[:12]}; set data.dataset to the folder it was trained on (for a mixture, to the same "
            "folders, weights and max_epochs), or start a new run"
        )
    if state.plan_hash != layout.hash:
        raise DatasetError(
            f"this run's rows were laid out by plan {state.plan_hash[:12]}, but its settings now give {layout.hash[:12]}; "
            "set data.seq_len, data.packing and data.repack back to what they were, or start a new run"
        )
    if state.seed != seed:
        raise DatasetError(
            f"this run's rows were ordered by seed {state.seed}, but train.seed is now {seed}; "
            f"write train.seed={state.seed}, or start a new run"
        )
    if state.epoch < 0 or not 0 <= state.samples_consumed < layout.num_rows:
        raise DatasetError(
            f"the saved position, row {state.samples_consumed} of epoch {state.epoch}, does not exist in a plan of "
            f"{layout.num_rows} rows; resume from an earlier checkpoint"
        )
