"""How a test saves a checkpoint without training."""

from packtrain.parallel.parts import TensorPart
from packtrain.parallel.ranks import Ranks
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter


def save_alone(layout, tensors, state):
    """Writes a checkpoint of whole tensors from one process, and waits until it is on the disk. Removes no other."""
    with CheckpointWriter(layout, Ranks(), Retention(newest=len(layout.saved_steps()) + 1)) as writer:
        writer.save({name: TensorPart.whole(tensor) for name, tensor in tensors.items()}, state)
        writer.wait()
