"""Decides how a run is divided among processes."""

from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from packtrain.config.base import Section


class ParallelConfig(Section):
    """How the processes that torchrun or Slurm starts share a run. A run may resume with a different number of them."""

    mode: Literal["auto", "ddp", "fsdp"] = "auto"
    """`ddp`: every rank holds the whole model. `fsdp`: weights, gradients and optimizer states are sharded over the ranks
    (FSDP2). `auto`: a resumed run keeps its mode; a new run takes ddp if the model is computed to fit in the memory of one
    process, else fsdp if a shard is, else ddp with a warning. A single process always holds the whole model."""
    shard_size: PositiveInt | None = None
    """fsdp: ranks that share one copy of the model, such as the ranks of a node. Unset: all of them."""
    lanes: PositiveInt | Literal["auto"] = "auto"
    """Parts of a micro-batch that one process on a CPU computes in parallel, each with its share of the threads. Each part
    after the first needs memory for its own gradients. `auto`: 2 if there are threads for two, the rows are an even number, and
    train.activation_gb is unset."""
    join_timeout_s: PositiveFloat = 300.0
    """Seconds that a process waits at the start for the first process's address to answer, and for all others to join. At
    most five more if the address accepts the connection and never answers."""
    timeout_s: PositiveFloat = 1800.0
    """Seconds that a process waits for the others within a run, as when a machine loses its network. It must exceed the longest
    wait of a sound run, such as for a checkpoint on a slow disk."""
