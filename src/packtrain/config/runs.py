"""Decides what a run writes: checkpoints, metrics, trackers."""

from pydantic import NonNegativeInt, PositiveInt

from packtrain.config.base import Section


class CheckpointConfig(Section):
    """When a run saves checkpoints. It always saves after the last step."""

    every: NonNegativeInt = 1000
    """Steps between checkpoints; 0 for only at the end, or when the run is stopped."""
    keep: PositiveInt = 3
    """How many of the newest checkpoints to keep. The one with the lowest validation loss is also kept."""
    keep_every: NonNegativeInt = 0
    """Also keep checkpoints of steps that are multiples of this; 0 for none."""


class LogConfig(Section):
    """How often a run logs its metrics."""

    every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""


class TrackConfig(Section):
    """Optional trackers in addition to metrics.jsonl. If one fails, it is dropped with a warning and the run continues."""

    wandb: bool = False
    """Weights & Biases (`pip install 'packtrain[wandb]'`)."""
    tensorboard: bool = False
    """TensorBoard event files in the run directory (`pip install 'packtrain[tensorboard]'`)."""
    trackio: bool = False
    """trackio, a local dashboard (`pip install 'packtrain[trackio]'`)."""
    project: str = "packtrain"
    """Project name, for trackers that use one."""
