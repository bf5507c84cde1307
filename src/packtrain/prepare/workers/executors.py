"""Decides by name which workers a recipe's slices run on."""

import os
from collections.abc import Callable

from packtrain.config.recipe import PrepareConfig
from packtrain.prepare.workers.pool import LocalWorkers, Workers
from packtrain.prepare.workers.ray import RayWorkers
from packtrain.storage.store import Store


def open_workers(config: PrepareConfig, store: Store) -> Workers:
    """A context that does tasks whose results go to `store`."""
    return EXECUTORS[config.executor](config, store)


def _local(config: PrepareConfig, store: Store) -> Workers:  # noqa: ARG001  executors are called alike
    return LocalWorkers(config.workers or num_cores())


def _ray(config: PrepareConfig, store: Store) -> Workers:
    # A cluster elsewhere has as many cores as it says.
    count = config.workers or (num_cores() if config.ray_address is None else None)
    return RayWorkers(count, config.ray_address, store)


def num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


EXECUTORS: dict[str, Callable[[PrepareConfig, Store], Workers]] = {"local": _local, "ray": _ray}
