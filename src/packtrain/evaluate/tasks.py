"""Decides how tasks of lm-evaluation-harness are run and reported: its own by their names, or the user's from a folder."""

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import io
import logging
import math
import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from packtrain.errors import ConfigError, PacktrainError, SourceError
from packtrain.evaluate.continuations import Continue
from packtrain.evaluate.measure import Stages
from packtrain.pretrained.open import OpenModel

# Resamples for the standard errors of metrics that are no means. The harness's own command takes 100,000, minutes of time.
_RESAMPLES = 1000
# The seeds of the harness's own command.
_SEED, _NUMPY_SEED, _FEWSHOT_SEED = 0, 1234, 1234
_MOST_NEAR_NAMES = 3
_YAML = (".yaml", ".yml")
# What the harness's `dataset_path` says of files, and not of a repository on the hub.
_LOCAL_DATA = ("json", "csv", "parquet", "text", "arrow")


def run_tasks(
    opened: OpenModel,
    names: Sequence[str],
    *,
    task_files: Path | None,
    limit: int | None,
    continue_prompts: Continue,
    progress: Stages,
) -> dict[str, Any]:
    """Figures of each task and group, by name: `metrics` with value and standard error, `questions`, `version`; seconds of all,
    and `task_seconds` without reading the tasks and their data.

    Needs lm-evaluation-harness. Raises ConfigError for unknown tasks and task files that are malformed, and SourceError if the
    data of a task cannot be read.
    """
    began = time.perf_counter()
    if task_files is not None and not task_files.is_dir():
        raise ConfigError(f"--task-files {task_files} is not a folder; give one with .yaml files beside their data")
    with _quiet(), _seeded():
        from lm_eval.evaluator import evaluate

        from packtrain.evaluate.harness import HarnessModel

        # Paths in a task file are meant from its folder.
        with contextlib.chdir(task_files or Path.cwd()):
            loaded = _load(names, Path.cwd() if task_files else None)
        with progress("tasks", "requests") as on_progress:
            started = time.perf_counter()
            backend = HarnessModel(opened, continue_prompts, on_progress)
            found = evaluate(lm=backend, task_dict=loaded, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=False)
    finished = time.perf_counter()
    results = {**found["results"], **found.get("groups", {})}
    return {
        "tasks": {name: _describe(name, metrics, found) for name, metrics in results.items()},
        "limit": limit,
        "harness": importlib.metadata.version("lm_eval"),
        "task_seconds": round(finished - started, 3),
        "seconds": round(finished - began, 2),
    }


def _load(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """The tasks, with their data read; `folder` has task files, and is the current one."""
    manager = _find(names, folder)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            one = manager.load([name])
        except PacktrainError:
            raise
        # The libraries that read a task and its data raise almost anything.
        except Exception as error:  # noqa: BLE001
            raise _explain(name, error, manager.task_index.get(name), folder) from None
        for key in loaded:
            loaded[key] |= one.get(key, {})
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _find(names: Sequence[str], folder: Path | None) -> Any:
    """A manager that knows all the names. The index of the harness's own tasks takes seconds, and is made only if needed."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        _check_task_files(folder)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=None if folder is None else str(folder))
    known = manager.all_tasks
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=_MOST_NEAR_NAMES, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            where = "" if folder is None else f" or of {folder}"
            raise ConfigError(f"there is no task '{name}' of lm-evaluation-harness{where}; {hint}")
    return manager


def _check_task_files(folder: Path) -> None:
    """The harness leaves out files that it cannot read, without a word; this raises ConfigError for the first."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in _YAML)
    if not paths:
        raise ConfigError(f"--task-files {folder} has no .yaml file; write one beside the data, see docs/evaluating.md")
    for path in paths:
        try:
            config = yaml.load(path.read_bytes(), _TaskYaml)
        except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not a task file: {_one_line(error)}; see docs/evaluating.md") from None
        if not isinstance(config, dict):
            raise ConfigError(f"{path} is not a task file: it has no `task: NAME`; see docs/evaluating.md")


class _TaskYaml(yaml.SafeLoader):
    """Reads a task file without importing the functions that it names."""


_TaskYaml.add_constructor("!function", lambda _, node: str(node.value))


def _explain(name: str, error: Exception, entry: Any, folder: Path | None) -> PacktrainError:
    """What to say of a task that does not load."""
    config = getattr(entry, "cfg", None) or {}
    path = getattr(entry, "yaml_path", None)
    is_local = folder is not None and path is not None and Path(path).is_relative_to(folder)
    is_data = isinstance(error, OSError) or type(error).__module__.startswith(("datasets", "pyarrow"))
    if is_local and is_data and config.get("dataset_path") in _LOCAL_DATA:
        return SourceError(f"the data of task '{name}' cannot be read: {_one_line(error)}; see {path}")
    if is_local and not _is_unreachable(error):
        return ConfigError(f"{path} is not a task that lm-evaluation-harness can run: {_one_line(error)}")
    if _is_unreachable(error):
        source = config.get("dataset_path") or "its data"
        return SourceError(
            f"task '{name}' needs {source} from the Hugging Face hub, which cannot be reached; connect to the network once, or "
            "give --task-files FOLDER with the task's YAML and data"
        )
    return ConfigError(f"task '{name}' does not load: {type(error).__name__}: {_one_line(error)}")


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a hub that is out of reach."""
    while error is not None:
        kind = {parent.__name__ for parent in type(error).__mro__}
        if kind & {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "HTTPError", "TransportError"}:
            return True
        if "DatasetNotFoundError" in kind or "Couldn't reach" in str(error) or "offline" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _describe(name: str, metrics: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A task's metrics, in the order of the harness's table."""
    better = found.get("higher_is_better", {}).get(name, {})
    rows = []
    for key, value in metrics.items():
        metric, comma, chosen_by = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = metrics.get(f"{metric}_stderr,{chosen_by}")
        rows.append(
            {
                "name": metric if chosen_by == "none" else f"{metric} ({chosen_by})",
                "value": _finite(value),
                "stderr": _finite(error),
                "higher_is_better": better.get(metric),
            }
        )
    samples = found.get("n-samples", {}).get(name, {})
    return {
        "alias": str(metrics.get("alias", name)).strip(" -"),
        "version": found.get("versions", {}).get(name),
        "shots": found.get("n-shot", {}).get(name),
        "questions": samples.get("effective"),
        "metrics": rows,
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seeds as the harness's own command sets them, for tasks that draw; afterwards the generators are as before."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(_SEED)
        np.random.seed(_NUMPY_SEED)
        torch.manual_seed(_NUMPY_SEED)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The harness and the libraries under it print bars, tips and warnings, also to standard output, which belongs to our figures."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "--tasks needs lm-evaluation-harness, which is not installed: `pip install 'packtrain[eval]'`"
        )
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        # Now, because each sets how much it logs when it is first imported.
        for library in ("datasets", "lm_eval.evaluator"):
            importlib.import_module(library)
        # tqdm comes with the harness.
        tqdm = importlib.import_module("tqdm").tqdm
        stack.callback(setattr, tqdm, "__init__", tqdm.__init__)
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)
        for name in ("lm_eval", "datasets", "huggingface_hub", "transformers", "httpx"):
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        # Processes that fork beside torch's threads may hang, and a thousand resamples do not need them.
        before = os.environ.setdefault("DISABLE_MULTIPROC", "")
        os.environ["DISABLE_MULTIPROC"] = "1"
        # Empty is as good as unset to the harness.
        stack.callback(os.environ.__setitem__, "DISABLE_MULTIPROC", before)
        yield
