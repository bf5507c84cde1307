"""Decides where the rate that a probe measured is kept, and for which runs on which machine it holds."""

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from packtrain.config.cores import count_cores
from packtrain.config.run import RunConfig
from packtrain.model.cpu.name import cpu_name
from packtrain.storage.atomic import hash_bytes, write_atomically
from packtrain.storage.json_file import parse_json, read_bounded

# A machine does not change in a day, and what else runs on it does.
_KEPT_S = 24 * 3600


def rate_key(config: RunConfig) -> str:
    """Names everything that the rate of training depends on: the shape of the work, and the machine with its libraries."""
    work = {
        "model": config.model.model_dump(mode="json"),
        "seq_len": config.data.seq_len,
        "document_mask": config.data.document_mask,
        "rows": config.rows_per_pass,
        "rows_per_step": config.rows_per_step,
        "optimizer": config.optim.name,
        "lanes": config.parallel.lanes,
        "cpu": config.cpu.model_dump(mode="json"),
        **{key: getattr(config.train, key) for key in ("precision", "activation_gb", "device", "compile")},
    }
    machine = {
        "cpu": cpu_name(),
        "cores": count_cores(),
        "versions": [metadata.version(name) for name in ("packtrain", "torch")],
        "environment": [os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")],
    }
    return hash_bytes(json.dumps([work, machine], sort_keys=True).encode())


def read_rate(config: RunConfig) -> dict[str, Any] | None:
    """What a probe of this machine measured for `config` within a day, as `train.probe.measure` gives it, with `age_s`."""
    place = _place(config)
    if place is None or not place.is_file():
        return None
    try:
        kept = parse_json(read_bounded(place))
        age_s = time.time() - kept["measured_at"]
        usable = 0 <= age_s < _KEPT_S and float(kept["tokens_per_s"]) > 0 and int(kept["memory_bytes"]) > 0
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return {**kept, "age_s": age_s} if usable else None


def keep_rate(config: RunConfig, rate: dict[str, Any]) -> None:
    """Keeps what a probe measured. A folder that cannot be written only means that the next plan measures again."""
    place = _place(config)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, (json.dumps(rate) + "\n").encode())
    except OSError:
        return


def _place(config: RunConfig) -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:
        # A container's user without a name has no home.
        return None
    return folder / "packtrain" / "rates" / f"{rate_key(config)}.json"
