"""Decides how a trained model is served in Python: a server that runs beside the caller until it is closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packtrain.api.target import is_dataset, which_checkpoint
from packtrain.errors import ConfigError, RunError
from packtrain.serve.limits import ServeLimits

if TYPE_CHECKING:
    from packtrain.report.collect import RunRecord
    from packtrain.serve.page import PageParts
    from packtrain.serve.server import Serving

_LIMITS = ServeLimits()


def serve(
    target: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    reload: bool = False,
    slots: int = _LIMITS.slots,
    queue: int = _LIMITS.queue,
    max_seconds: float = _LIMITS.max_seconds,
    allow_hosts: Sequence[str] = (),
    allow_origins: Sequence[str] = (),
    step: int | None = None,
    best: bool = False,
    last: bool = False,
    average: bool | None = None,
    device: str | None = None,
    weights: str = "float32",
) -> Serving:
    """Serves a model by OpenAI's API, with a page to play with it, until the result's `close()`; it is also a context.

    `target` is what `load` opens, and `last` and `average` mean what they do there. The result has the `address`; port 0 takes
    a free one. `reload` answers with newer checkpoints of a run that is still training, whatever its train.stop_after: the
    newest, or the `best` so far. `slots` texts are generated at once, and `queue` more wait. A `host` other than loopback needs
    a `token`. `weights` "int8" or "bfloat16" hold the model in fewer bits, on the CPU, and the result's `weights_note` says
    what that saves and costs. docs/serving.md has the rest. Raises ConfigError for an option that does not fit or a library
    that is missing, and what `load` raises.
    """
    _require_libraries()
    from packtrain.api.narrowing import check_weights, describe_narrowing, device_for, narrow
    from packtrain.pretrained.open import open_model
    from packtrain.serve.reload import Follow
    from packtrain.serve.server import Serving, Where
    from packtrain.train.device import open_device

    folder = Path(target)
    limits = ServeLimits(slots=slots, queue=queue, max_seconds=max_seconds)
    where = Where(host, port, token, tuple(allow_hosts), tuple(allow_origins))
    # Who follows a run wants to see it move, so only --best leaves the newest.
    which = which_checkpoint(folder, step, best, last or (reload and not best and step is None))
    if reload and step is not None:
        raise ConfigError(
            f"--step {step} stays with one checkpoint, and --reload follows the run; leave one of them out"
        )
    if is_dataset(folder):
        raise RunError(f"{folder} is a dataset; give a run or a model")
    wanted = device or device_for(weights)
    opened = open_model(folder, step=step, which=which, device=str(open_device(wanted)), average=average)
    if reload and opened.run is None:
        raise ConfigError(f"--reload follows a run that is training, and {folder} is not a run; leave it out")
    narrowing = narrow(opened, weights)
    page = page_parts(None if opened.run is None else opened.folder)
    # A newer checkpoint is held in the same way; what that costs is measured once.
    follow = Follow(which, check_weights(weights), average) if reload else None
    server = Serving(opened, where, limits, page, follow=follow)
    server.weights_note = None if narrowing is None else describe_narrowing(narrowing)
    return server


def page_parts(run: Path | None) -> PageParts:
    """The report's style and charts, and its curves of what a run has learned."""
    from packtrain.report.document import asset
    from packtrain.report.watch import LivePage
    from packtrain.serve.page import PageParts

    return PageParts(asset("page.css"), asset("page.js"), None if run is None else LivePage([run], _draw))


def _draw(records: list[RunRecord]) -> str:
    from packtrain.report import curves
    from packtrain.report.charts import render
    from packtrain.report.markup import join

    return join(*(render(figure) for figure in curves.learning(records)))


def _require_libraries() -> None:
    import importlib.util

    for name in ("starlette", "uvicorn", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"serving needs {name}, which is not installed; run pip install 'packtrain[serve]'")
