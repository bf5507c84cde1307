"""Decides what a run writes: checkpoints, metrics, trackers."""

from pydantic import NonNegativeInt, PositiveInt

from packtrain.config.base import Section


class CheckpointConfig(Section):
    """When a run is saved. The last step always is."""

    every: NonNegativeInt = 1000
    """Steps between checkpoints; 0: only at the end or when stopped."""
    keep: PositiveInt = 3
    """How many of the newest stay; the best by validation loss stays besides."""
    keep_every: NonNegativeInt = 0
    """Checkpoints of steps that this divides stay as well; 0: none."""


class LogConfig(Section):
    """How often a run says where it is."""

    every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""


class TrackConfig(Section):
    """Optional trackers beside metrics.jsonl. A tracker that fails is dropped with a warning; the run goes on."""

    wandb: bool = False
    """Weights & Biases (`pip install 'packtrain[wandb]'`)."""
    tensorboard: bool = False
    """TensorBoard event files in the run directory (`pip install 'packtrain[tensorboard]'`)."""
    project: str = "packtrain"
    """Project name for trackers that have one."""
