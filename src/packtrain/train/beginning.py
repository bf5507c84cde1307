"""Decides what a new run begins with: weights drawn from its seed, those of a model from elsewhere, or those of another run."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from packtrain.config.model import ModelConfig
from packtrain.config.run import RunConfig
from packtrain.data.feed.datasets import RunDatasets
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import RunError, TokenizerError
from packtrain.model.init import ReadWeight
from packtrain.parallel.ranks import Ranks
from packtrain.pretrained.files import ModelFiles
from packtrain.pretrained.open import read_files_to_train
from packtrain.pretrained.parity import measure_parity
from packtrain.pretrained.vocabulary import VocabularyMap, find_difference, map_vocabulary
from packtrain.runs.checkpoint import Checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.metrics import Events
from packtrain.storage.atomic import hash_bytes, hash_file
from packtrain.storage.json_file import read_json
from packtrain.train.anneal import annealing_start
from packtrain.train.predecessor import Predecessor, find_predecessor, list_history
from packtrain.train.rollback import ANNEALING, CONTINUING
from packtrain.train.shape import check_shape

STARTED_FROM = "started_from"
"""The field of manifest.json."""
_PER_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")
_log = logging.getLogger("packtrain")


class Beginning(NamedTuple):
    """What a run has before its first step. Without any of it, its weights are new."""

    checkpoint: Checkpoint | None = None
    """Weights, optimizer and place in the data, as of step 0."""
    read: ReadWeight | None = None
    """Weights alone."""
    record: dict[str, Any] | None = None
    """What the manifest says of them; None on other ranks than the main one."""
    event: str | None = None
    """The kind of event that tells where in its data the run begins, if not at the first row."""
    place: dict[str, Any] | None = None
    """That place, as a state of the loader."""
    source: str | None = None
    """What the weights are from, in words."""

    def tell(self, events: Events) -> None:
        """Notes the place in the data where the run begins, if that is not the first row."""
        if self.event is not None:
            events.record(self.event, step=0, checkpoint=self.source, loader=self.place)


def begin(config: RunConfig, datasets: RunDatasets, layout: RunLayout, ranks: Ranks) -> Beginning:
    """What the new run in `layout` begins with. All ranks raise, or none.

    Raises ModelError, RunError or CheckpointError for weights that cannot be read or that have changed since a first start,
    ConfigError for another shape than the run's, TokenizerError for another tokenizer than the dataset's.
    """
    if config.train.anneal_from is not None:
        found = annealing_start(config, ranks)
        return Beginning(found, event=ANNEALING, place=found.state["loader"], source=str(found.folder))
    if config.train.init_from is not None:
        return _begin_with_files(config, datasets, layout, ranks, Path(config.train.init_from))
    if config.train.continue_from is not None:
        return _begin_with_run(config, datasets, layout, find_predecessor(config.train.continue_from, ranks), ranks)
    return Beginning()


def _begin_with_files(
    config: RunConfig, datasets: RunDatasets, layout: RunLayout, ranks: Ranks, path: Path
) -> Beginning:
    record: dict[str, Any] | None = None
    with ranks.together():
        files = read_files_to_train(path)
        conditions = files.conditions()
        moved = _match_tokenizer(config, datasets, conditions.tokenizer, files.config, path)
        check_shape(config, files.config, path, is_extended=moved is not None)
        if conditions.add_bos != datasets.tokenizer.adds_bos and ranks.is_main:
            puts = ("puts a begin-of-text token before each text", "puts none")
            _log.warning(
                "%s %s, and %s was prepared the other way; the model has to get used to it",
                path,
                puts[0] if conditions.add_bos else puts[1],
                datasets.name,
            )
        if ranks.is_main:
            record = _describe_files(files, moved)
            _check_unchanged(layout, record, path)
    return Beginning(read=_with_new_rows(files.read, moved), record=record, source=f"{path} ({files.kind})")


def _describe_files(files: ModelFiles, moved: VocabularyMap | None) -> dict[str, Any]:
    hashes = [hash_file(path) for path in files.files]
    parity = measure_parity(files)
    if parity is not None:
        _log.info(
            "%s: %s equal those of %s, within %.1e (measured on %d tokens; %.0e is allowed)",
            files.path,
            parity.compared,
            parity.reference,
            parity.max_difference,
            parity.num_tokens,
            parity.tolerance,
        )
    return {
        "kind": files.kind,
        "path": str(files.path.resolve()),
        "hash": hashes[0] if len(hashes) == 1 else hash_bytes("".join(hashes).encode()),
        "parity": parity.describe() if parity else None,
        **_describe_moved(moved),
    }


def _begin_with_run(
    config: RunConfig, datasets: RunDatasets, layout: RunLayout, before: Predecessor, ranks: Ranks
) -> Beginning:
    path = before.layout.folder
    record: dict[str, Any] | None = None
    with ranks.together():
        moved = _match_tokenizer(config, datasets, before.read_tokenizer(), before.config.model, path)
        check_shape(config, before.config.model, path, is_extended=moved is not None)
        new_optimizer = before.optimizer_misfit(config, moved is not None)
        place = before.place_in(config, datasets)
        if ranks.is_main:
            record = {
                "kind": "run",
                "path": str(path.resolve()),
                "hash": before.hash,
                "step": before.checkpoint.step,
                "tokens": before.checkpoint.state.get("tokens", 0),
                "optimizer_state": "kept" if new_optimizer is None else f"new, because {new_optimizer}",
                "place_in_data": "kept" if place else "first row",
                **_describe_moved(moved),
                "history": list_history(before.layout),
            }
            _check_unchanged(layout, record, path)
            _log.info(
                "from step %s of %s: the optimizer's state is %s; the data begins %s",
                f"{before.checkpoint.step:,}",
                path,
                record["optimizer_state"],
                "where that run was" if place else "at its first row",
            )
    event, source = CONTINUING if place else None, str(before.checkpoint.folder)
    if new_optimizer is not None:
        return Beginning(None, _with_new_rows(before.read, moved), record, event, place, source)
    return Beginning(before.as_step_zero(place), None, record, event, place, source)


def _match_tokenizer(
    config: RunConfig, datasets: RunDatasets, own: Tokenizer, shape: ModelConfig, path: Path
) -> VocabularyMap | None:
    """How the rows of the vocabulary move; None if they stay. Raises TokenizerError for another tokenizer, unless it may be."""
    given = load_tokenizer(datasets.tokenizer_folder)
    difference = None if own.hash == given.hash else find_difference(own, given)
    if not config.train.extend_vocab:
        if difference is None:
            return None
        raise TokenizerError(
            f"{datasets.name} was prepared with another tokenizer than that of {path} ({difference}); prepare it with the "
            "model's (docs/coming-in.md says how), or add --extend-vocab to train with the dataset's"
        )
    rows = config.model.vocab_size
    if difference is None and rows == shape.vocab_rows:
        _log.info("%s has the tokenizer of %s; train.extend_vocab changes nothing", datasets.name, path)
        return None
    assert rows is not None, "set_vocabulary has set it"
    moved = map_vocabulary(own, given, rows)
    _log.info(
        "vocabulary: %s of %s tokens keep their rows, %s new ones are set to the mean, %s of the model's are dropped",
        f"{moved.num_kept:,}",
        f"{moved.num_new_tokens:,}",
        f"{moved.num_mean:,}",
        f"{moved.num_dropped:,}",
    )
    return moved


def _with_new_rows(read: ReadWeight, moved: VocabularyMap | None) -> ReadWeight:
    if moved is None:
        return read

    def read_moved(name: str) -> Tensor:
        return moved.apply(read(name)) if name in _PER_TOKEN else read(name)

    return read_moved


def _describe_moved(moved: VocabularyMap | None) -> dict[str, Any]:
    return {} if moved is None else {"vocabulary": moved.describe()}


def _check_unchanged(layout: RunLayout, record: dict[str, Any], path: Path) -> None:
    """Raises RunError if the run was started before, and not from these weights: it has no checkpoint yet to resume from."""
    if not layout.manifest.is_file():
        return
    started = read_json(layout.manifest, RunError)
    before = started.get(STARTED_FROM) if isinstance(started, dict) else None
    if isinstance(before, dict) and before.get("hash") != record["hash"]:
        raise RunError(
            f"{path} has changed since {layout.folder} was started from it (hash {str(before.get('hash'))[:12]}, now "
            f"{record['hash'][:12]}), and the run has no checkpoint yet; restore it, or give another --run folder"
        )
