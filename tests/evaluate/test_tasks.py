"""Whether tasks give what the harness's own Hugging Face backend gives for the exported model, and what does not fit is refused."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from packtrain.api.measuring import continue_for_task
from packtrain.config.model import ModelConfig
from packtrain.data.tokens.tokenizer import Tokenizer
from packtrain.errors import ConfigError, SourceError, UserError
from packtrain.evaluate.tasks import run_tasks
from packtrain.export.huggingface import model_config, tokenizer_config, tokenizer_json
from packtrain.model.init import build
from packtrain.pretrained.open import OpenModel, open_model
from packtrain.runs.layout import write_json
from tests.evaluate.test_measure import silent

pytest.importorskip("lm_eval", reason="pip install lm-eval")

FILES = Path(__file__).with_name("task_files")
TASKS = ("little", "little_texts", "copying")
CONTEXT = 64


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> OpenModel:
    """A model as `packtrain export` writes it."""
    folder = tmp_path_factory.mktemp("exported")
    config = ModelConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=tokenizer.vocab_size,
        initializer_range=0.08,
    )
    weights = {name: p.detach().contiguous() for name, p in build(config, seed=4).named_parameters()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model_config(config, tokenizer, CONTEXT, "float32"))
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer, True))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, True, CONTEXT))
    return open_model(folder)


@pytest.fixture(autouse=True)
def cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the libraries keep of a task's data goes away with the test. Their warnings are not about our code."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(opened: OpenModel, *names: str, files: Path | None = FILES, limit: int | None = None) -> dict[str, Any]:
    return run_tasks(
        opened,
        names,
        task_files=files,
        limit=limit,
        continue_prompts=lambda prompts: continue_for_task(opened, prompts),
        progress=silent,
    )


def figures(found: dict[str, Any]) -> dict[str, list[str]]:
    """Every metric with the digits that the harness prints: four decimals. Of large perplexities float32 has six digits."""

    def shown(value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}" if value < 1000 else f"{value:.4e}"

    return {
        name: [f"{m['name']} {shown(m['value'])} {shown(m['stderr'])}" for m in task["metrics"]]
        for name, task in found["tasks"].items()
    }


@pytest.mark.slow
def test_every_kind_of_task_equals_the_hugging_face_backend(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.models.huggingface import HFLM

    before = torch.get_rng_state()
    ours = run(opened, *TASKS)
    assert torch.equal(torch.get_rng_state(), before)

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    backend = HFLM(pretrained=str(opened.folder), dtype="float32", device="cpu", batch_size=4)
    monkeypatch.setattr("packtrain.evaluate.harness.HarnessModel", lambda *_: backend)
    theirs = run(opened, *TASKS)
    assert figures(ours) == figures(theirs)
    assert {name: task["questions"] for name, task in ours["tasks"].items()} == {
        "little": None,
        "little_questions": 12,
        "last_words": 5,
        "little_texts": 3,
        "copying": 4,
    }
    assert ours["tasks"]["little_questions"]["shots"] == 2
    assert ours["tasks"]["last_words"]["metrics"][0]["higher_is_better"] is False


def test_a_limit_takes_the_first_questions(opened: OpenModel) -> None:
    found = run(opened, "little_questions", limit=3)
    assert found["limit"] == 3
    assert found["tasks"]["little_questions"]["questions"] == 3


def test_what_is_not_a_task_is_refused(opened: OpenModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        run(opened, "little", files=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no \.yaml file"):
        run(opened, "little", files=tmp_path)
    (tmp_path / "broken.yaml").write_text("task: [broken\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not a task file"):
        run(opened, "broken", files=tmp_path)


@pytest.mark.slow
def test_an_unknown_task_is_a_sentence_with_near_names(opened: OpenModel) -> None:
    says = rf"no task 'helaswag' of lm-evaluation-harness or of {FILES}; did you mean hellaswag"
    with pytest.raises(ConfigError, match=says) as refused:
        run(opened, "helaswag")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"little_questions.jsonl": None}, SourceError, "the data of task 'little_questions' cannot be read"),
        ({"little_questions.jsonl": '{"question": "a"\n'}, SourceError, "the data of task 'little_questions'"),
        (
            {"dataset_path: json": "dataset_path: nobody/nothing"},
            SourceError,
            "nobody/nothing from the Hugging Face hub",
        ),
        ({"output_type: multiple_choice": "output_type: guessing"}, ConfigError, "guessing"),
    ],
)
def test_a_task_that_does_not_load_is_refused_in_a_sentence(
    opened: OpenModel, tmp_path: Path, change: dict[str, str | None], error: type[Exception], says: str
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("little_questions.yaml", "little_questions.jsonl"):
        shutil.copy(FILES / name, folder)
    for old, new in change.items():
        if old.endswith(".jsonl"):
            (folder / old).unlink() if new is None else (folder / old).write_text(new)
        else:
            path = folder / "little_questions.yaml"
            path.write_text(path.read_text().replace(old, str(new)))
    with pytest.raises(error, match=says) as refused:
        run(opened, "little_questions", files=folder)
    assert "\n" not in str(refused.value)


def test_a_task_that_generates_more_than_the_context_is_refused(opened: OpenModel, tmp_path: Path) -> None:
    shutil.copy(FILES / "copying.jsonl", tmp_path)
    text = (FILES / "copying.yaml").read_text().replace("max_gen_toks: 12", "max_gen_toks: 64")
    (tmp_path / "copying.yaml").write_text(text)
    with pytest.raises(UserError, match="leaves no room"):
        run(opened, "copying", files=tmp_path)
