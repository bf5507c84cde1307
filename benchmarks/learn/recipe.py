"""Decides how a preset file becomes experiments: its budget, its seeds, and the line of results of them all."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.learn.corpora import Corpus
from benchmarks.learn.results import append_line, describe_place, describe_runs, name_experiment, read_lines
from benchmarks.learn.seed import measure_seed

# Set by the benchmark or by the machine, and no part of a recipe.
_NOT_OF_A_RECIPE = ("evaluate", "checkpoint", "log", "track", "cpu", "parallel")
# The dataset gives the vocabulary.
_LENGTHS = ("train.seed", "train.steps", "train.tokens", "data.dataset", "model.vocab_size")
_GIVEN = {"train.seed": "--seeds", "data.dataset": "--corpus", "train.tokens": "--tokens", "train.steps": "--tokens"}
_TRIAL_S = 20


@dataclass(frozen=True)
class Budget:
    """How long a recipe is trained. Without tokens and minutes: as long as the preset says."""

    tokens: int | None = None
    minutes: float | None = None
    share: float = 1.0
    """Of that length. The whole schedule shrinks to it, with its warm-up."""


@dataclass(frozen=True)
class RecipeFile:
    """A preset file with what was typed beside it."""

    preset: str
    name: str
    words: tuple[str, ...] = ()
    budget: Budget = field(default=Budget())
    seeds: tuple[int, ...] = (1337,)
    points: int = 4

    def with_words(self, words: Sequence[str]) -> "RecipeFile":
        """The same with more settings, which its name tells."""
        return replace(self, words=(*self.words, *words), name=" ".join([self.name, *words]))


def name_recipe(preset: str, words: Sequence[str]) -> str:
    """The file's name without its end, with the settings that were typed."""
    return " ".join([Path(preset).stem if preset.endswith(".toml") else preset, *words])


def measure_recipe(recipe: RecipeFile, corpus: Corpus, work: Path, file: Path) -> dict[str, Any]:
    """Trains and scores every seed that is not done, and appends the line unless the file has it. Returns the line."""
    config = _configure(recipe, corpus, work)
    tokens = config.given_steps * config.train.global_batch_tokens
    settings = list_settings(config, recipe.words)
    identity = {"name": recipe.name, "corpus": corpus.dataset, "settings": settings, "tokens": tokens}
    experiment = name_experiment(identity)
    known = next((line for line in read_lines(file) if line["experiment"] == experiment), None)
    done = {run["seed"]: run for run in known["runs"]} if known else {}
    runs = []
    for seed in recipe.seeds:
        run = done.get(seed) or _measure(config, seed, corpus, work / "runs" / experiment / str(seed), recipe)
        runs.append(run)
    # Seeds that were measured before count too.
    runs += [run for seed, run in done.items() if seed not in recipe.seeds]
    if known and len(runs) == len(done):
        print(f"{recipe.name}: done before, in {file}", flush=True)
        return known
    line = {
        "experiment": experiment,
        "name": recipe.name,
        "preset": recipe.preset,
        "corpus": corpus.record(),
        "protocol": {"name": "documents", "window": runs[0].get("window"), "overlap": runs[0].get("overlap")},
        "parameters": runs[0].get("parameters"),
        "tokens": tokens,
        "share": recipe.budget.share,
        "minutes_given": recipe.budget.minutes,
        "settings": settings,
        "seeds": [run["seed"] for run in runs],
        **describe_runs(runs),
        "runs": runs,
        **describe_place(),
    }
    append_line(file, line)
    return line


def _measure(config: Any, seed: int, corpus: Corpus, folder: Path, recipe: RecipeFile) -> dict[str, Any]:
    seeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
    print(f"{recipe.name}, seed {seed}: {config.given_steps:,} steps, in {folder}", flush=True)
    run = measure_seed(seeded, corpus, folder, recipe.points)
    if "failed" in run:
        print(f"  {run['failed']}", flush=True)
    else:
        print(f"  {run['bits_per_byte']:.4f} bits per byte, {run['processor_s']:.0f} processor seconds", flush=True)
    return run


def _configure(recipe: RecipeFile, corpus: Corpus, work: Path) -> Any:
    """The configuration with its length settled, in tokens of whole steps."""
    from packtrain.config.load import load_run_config
    from packtrain.errors import ConfigError

    for word in recipe.words:
        if word.partition("=")[0] in _GIVEN:
            key = word.partition("=")[0]
            raise ConfigError(f"{word} is for the benchmark to set; write {_GIVEN[key]} instead")
    own = ["evaluate.every=0", "evaluate.prompts=[]", f"data.dataset={corpus.folder}"]
    config = load_run_config(recipe.preset, [*own, *recipe.words]).config
    batch, budget, words = config.train.global_batch_tokens, recipe.budget, list(own)
    if budget.minutes is not None:
        tokens = _tokens_of_minutes(config, recipe, corpus, work)
    elif (found := budget.tokens or (config.given_steps or 0) * batch) == 0:
        raise ConfigError(f"{recipe.preset} says no length; write --tokens, for example --tokens 2048000")
    else:
        tokens = found
    steps = int(tokens * budget.share / batch)
    if not steps:
        raise ConfigError(
            f"{tokens * budget.share:,.0f} tokens are less than one step of {batch:,}; give more, or write "
            "train.global_batch_tokens=... with a smaller number"
        )
    if budget.share != 1 and config.schedule.warmup_steps:
        words.append(f"schedule.warmup_steps={max(1, round(config.schedule.warmup_steps * budget.share))}")
    # Typed settings come last: a warm-up that was typed does not shrink.
    return load_run_config(recipe.preset, [*words, *recipe.words, f"train.tokens={steps * batch}"]).config


def list_settings(config: Any, words: Sequence[str]) -> dict[str, Any]:
    """What differs from the defaults, by dotted key, without what every experiment sets itself."""
    from packtrain.config.load import flatten
    from packtrain.config.run import RunConfig

    defaults = dict(flatten(RunConfig()))
    typed = {word.partition("=")[0] for word in words} - set(_LENGTHS)
    return {
        key: value
        for key, value in flatten(config.model_copy())
        if key in typed
        or (value != defaults[key] and key not in _LENGTHS and key.partition(".")[0] not in _NOT_OF_A_RECIPE)
    }


def _tokens_of_minutes(config: Any, recipe: RecipeFile, corpus: Corpus, work: Path) -> int:
    """Tokens that the recipe trains on in its minutes, by a trial of 20 processor seconds that is kept for the other seeds."""
    import torch

    from packtrain.train.run import train

    threads = torch.get_num_threads()
    identity = [recipe.name, corpus.dataset, list_settings(config, recipe.words), threads]
    kept = work / "trials" / f"{name_experiment({'trial': identity})}.txt"
    if not kept.is_file():
        marks: list[tuple[float, int]] = []

        def note(record: dict[str, Any]) -> bool:
            if "tokens" in record and "loss" in record:
                marks.append((time.process_time(), record["tokens"]))
            return len(marks) > 5 and marks[-1][0] - marks[2][0] > _TRIAL_S

        config = load_long(config)
        with tempfile.TemporaryDirectory(prefix="packtrain-learn-") as scratch:
            train(config, Path(scratch) / "run", resume=False, on_step=note)
        # The first steps warm up caches.
        rate = (marks[-1][1] - marks[2][1]) / (marks[-1][0] - marks[2][0])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(str(rate))
    assert recipe.budget.minutes is not None
    return int(float(kept.read_text()) * recipe.budget.minutes * 60 * threads)


def load_long(config: Any) -> Any:
    """The configuration with more steps than a trial takes."""
    train = config.train.model_copy(update={"steps": 1_000_000, "tokens": None})
    return config.model_copy(update={"train": train})
