"""Small finished runs on disk: one that was trained, and others of any shape that were not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from packtrain.config.load import load_run_config, to_toml
from packtrain.config.run import RunConfig
from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.model.init import build
from packtrain.runs.checkpoint import OpenRun, open_run
from packtrain.runs.layout import RunLayout
from tests.runs.saved import save_alone
from tests.train.conftest import TINY

TEXT = ["The quick brown fox jumps over the lazy dog.", "Zürich 北京 🙂 “quotes”", "def f(x):\n    return x\n"]

MakeRun = Callable[..., OpenRun]


def make_tokenizer(folder: Path, controls: tuple[str, ...] = ("<s>", "</s>")) -> Tokenizer:
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(controls),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True)
    raw.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def write_run(folder: Path, *, tokenizer: Tokenizer, adds_bos: bool = True, **model) -> OpenRun:
    """A run with one checkpoint, of step 20. Its weights are large, so that its logits differ as much as trained ones."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": tokenizer.vocab_size + 5,
        "initializer_range": 0.2,
    }
    config = RunConfig.model_validate(
        {"model": shape | model, "data": {"seq_len": 64}, "train": {"steps": 20, "global_batch_tokens": 128}}
    )
    layout = RunLayout(folder)
    layout.folder.mkdir()
    layout.config.write_text(to_toml(config))
    tokenizer.save(layout.tokenizer)
    manifest = {
        "versions": {"packtrain": "0.1.0", "torch": "2.13.0"},
        "hardware": {"device": "a CPU", "world_size": 1},
        "git_commit": None,
        "dataset": {
            "folder": str(folder / "no-dataset"),
            "hash": "d" * 64,
            "recipe": {"source": {"kind": "stdlib", "path": "/home/me/secret"}},
            "ledger": {"documents_read": 123456, "dropped": {"too_short": 7}},
            "tokenizer": {"hash": load_tokenizer(layout.tokenizer).hash, "adds_bos": adds_bos, "adds_eos": True},
        },
    }
    layout.manifest.write_text(json.dumps(manifest))
    lines = [
        {"step": 10, "tokens": 1280, "loss": 5.5},
        {"step": 20, "tokens": 2560, "loss": 5.25},
        {"step": 20, "val_loss": 5.125, "val_ppl": 168.2, "val_bpb": 2.5},
    ]
    layout.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = dict(build(config.model, seed=1).named_parameters())
    save_alone(layout, weights, {"step": 20, "val_loss": 5.125})
    return open_run(folder)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run in the test's folder and opens it; keywords change its model or tokenizer."""

    def make(*, tokenizer: Tokenizer | None = None, controls: tuple[str, ...] = ("<s>", "</s>"), **changes) -> OpenRun:
        tokenizer = tokenizer or make_tokenizer(tmp_path / "made-tokenizer", controls)
        return write_run(tmp_path / "run", tokenizer=tokenizer, **changes)

    return make


@pytest.fixture(scope="session")
def trained_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    """A run that was trained for ten steps on the tiny dataset."""
    from packtrain.train.run import train

    folder = tmp_path_factory.mktemp("runs") / "trained"
    train(load_run_config("demo", [*TINY, f"data.dataset={dataset}"]).config, folder, resume=False)
    return open_run(folder)
