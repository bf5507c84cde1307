"""Decides how the work of a preparation is done: processes, machines, disk and slices."""

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from packtrain.config.base import Section


class PrepareConfig(Section):
    """How the work is done. Of these, only slice_documents changes a byte of the dataset."""

    workers: PositiveInt | None = None
    """Number of processes. Unset: one per core."""
    executor: Literal["local", "ray"] = "local"
    """Where slices are prepared. `local`: in processes on this machine. `ray`: in tasks of a Ray cluster
    (`pip install 'packtrain[ray]'`), whose nodes need the source and the dataset at the same paths: on a shared file system, or
    at fsspec URLs."""
    ray_address: str | None = None
    """The Ray cluster: `auto`, or HOST:PORT. Unset: one is started on this machine and stopped at the end."""
    disk_check: bool = True
    """Stop before a local disk is full: when the estimated size of what is still to be written is more than the free space."""
    slice_documents: PositiveInt = 65_536
    """Most documents in a slice, which is the unit of parallel work and of recovery, and becomes one shard. The first gigabytes
    of a source have smaller slices."""

    @model_validator(mode="after")
    def _address_has_an_effect(self) -> Self:
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError(
                "prepare.ray_address has no effect without Ray; write prepare.executor=ray, or leave it out"
            )
        return self
