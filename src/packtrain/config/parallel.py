"""Decides how a run is spread over processes."""

from typing import Literal

from pydantic import PositiveInt

from packtrain.config.base import Section


class ParallelConfig(Section):
    """Spread over the processes that torchrun or Slurm starts; a run may go on with another number of them."""

    mode: Literal["auto", "ddp", "fsdp"] = "auto"
    """`ddp`: every rank holds the whole model. `fsdp`: weights, gradients and optimizer states are cut over the ranks
    (FSDP2). `auto`: as the run was before, at first ddp, or fsdp where by computation only parts of the model fit into the
    memory of a process. One process alone holds the whole model in any case."""
    shard_size: PositiveInt | None = None
    """fsdp: ranks that share one copy of the model, such as those of a node; none: all of them."""
    lanes: PositiveInt | Literal["auto"] = "auto"
    """Parts of a micro-batch that one process on a CPU computes beside each other, each with its share of the threads; each
    but the first holds gradients of its own. `auto`: 2 where there are threads and rows for it and no train.activation_gb."""
