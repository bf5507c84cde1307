"""Decides how tasks run on Ray: as many at once as the cluster has cores, each tried again when its worker dies."""

import logging
import os
import platform
import socket
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Self

from packtrain import __version__
from packtrain.errors import ConfigError, DatasetError, SourceError
from packtrain.prepare.workers.pool import ATTEMPTS, ONE_THREAD, TASKS_PER_WORKER, Task, describe_kill
from packtrain.storage.locks import WORK_FOLDER
from packtrain.storage.store import Store

# Reserved for each task, so that Ray does not overload a node's memory; a worker takes less.
_TASK_BYTES = 1 << 30


class RayWorkers:
    """As `pool.LocalWorkers`, on a Ray cluster: an existing one, or one that starts here and ends with the context.

    Every node must see the dataset's folder and the source under the same names: on a shared file system, or as fsspec URLs.
    Raises ConfigError if Ray is not installed or the cluster does not answer; `run` raises DatasetError if a node does not see
    the folder.
    """

    def __init__(self, count: int | None, address: str | None, store: Store) -> None:
        self._count, self._address, self._store = count, address, store
        self._token = uuid.uuid4().hex
        self._is_ours = False

    def __enter__(self) -> Self:
        self._ray = _import_ray()
        # A program that already uses Ray keeps its connection.
        if not self._ray.is_initialized():
            self._connect()
            self._is_ours = True
        self._store.write(_probe(self._token), self._token.encode())
        self._slots = self._count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        most = max((node["Resources"].get("memory", 0.0) for node in self._ray.nodes() if node["Alive"]), default=0.0)
        self._call = self._ray.remote(
            num_cpus=1,
            # Ray would wait forever for memory that no node has.
            memory=_TASK_BYTES if most >= _TASK_BYTES else None,
            max_calls=TASKS_PER_WORKER,
            # `run` retries: it passes the attempt, and names the task when it gives up.
            max_retries=0,
        )(_on_node)
        return self

    def __exit__(self, *_: object) -> None:
        self._store.remove([_probe(self._token)])
        if self._is_ours:
            self._ray.shutdown()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        """As `LocalWorkers.run`."""
        ray = self._ray
        waiting = iter(enumerate(tasks))
        running: dict[Any, tuple[int, int]] = {}

        def submit(number: int, attempt: int) -> None:
            reference = self._call.remote(self._store, self._token, __version__, tasks[number], attempt)
            running[reference] = (number, attempt)

        try:
            for _, (number, _task) in zip(range(self._slots), waiting, strict=False):
                submit(number, 1)
            while running:
                [reference], _ = ray.wait(list(running), num_returns=1)
                number, attempt = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError:
                    if attempt == ATTEMPTS:
                        raise SourceError(describe_kill(tasks[number])) from None
                    submit(number, attempt + 1)
                    continue
                yield number, result
                following = next(waiting, None)
                if following is not None:
                    submit(following[0], 1)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            # Send no usage statistics.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._ray.init(num_cpus=self._count, include_dashboard=False, **quiet)
            return
        try:
            _knock(self._address)
            self._ray.init(address=self._address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"prepare.ray_address={self._address} leads to no Ray cluster ({str(error).splitlines()[0]}); start one with "
                "`ray start --head`, or leave prepare.ray_address out to use this machine alone"
            ) from None


def _probe(token: str) -> str:
    return f"{WORK_FOLDER}/ray-{token}"


def _knock(address: str) -> None:
    """Fail early: Ray itself tries an address for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise ValueError("it is neither auto nor HOST:PORT")
    with socket.create_connection((host, int(port)), timeout=10):
        pass


def _on_node(store: Store, token: str, version: str, task: Task, attempt: int) -> Any:
    os.environ.update(ONE_THREAD)
    _check_node(store, token, version)
    try:
        return task.function(*task.arguments, attempt=attempt)
    except SourceError as error:
        raise SourceError(
            f"{error} (seen from the Ray node {platform.node()}, which must see the same files as this machine)"
        ) from None


@lru_cache(maxsize=1)
def _check_node(store: Store, token: str, version: str) -> None:
    node = platform.node()
    if version != __version__:
        raise ConfigError(
            f"the Ray node {node} has packtrain {__version__}, but this machine has {version}; install the same version on every node"
        )
    try:
        seen = store.read(_probe(token)).decode()
    except FileNotFoundError:
        seen = ""
    if seen != token:
        raise DatasetError(
            f"the Ray node {node} does not see {store.where} as this machine does; write an --out on a file system that all nodes "
            "share under the same path, or an fsspec URL such as s3://bucket/NAME"
        )


def _import_ray() -> Any:
    # Silences the warning at every start that later versions of Ray leave GPUs visible to tasks that need none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "prepare.executor=ray needs Ray, which is not installed; run pip install 'packtrain[ray]', or write "
            "prepare.executor=local"
        ) from None
    return ray
