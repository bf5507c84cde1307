"""What a trained model says is the same everywhere: greedy text of transformers on 100 prompts, and every type of GGUF."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from packtrain.config.load import load_run_config
from packtrain.data.format.shards import open_dataset
from packtrain.export.gguf.check import TOLERANCES
from packtrain.export.run import export_run
from packtrain.generate.batch import Engine
from packtrain.generate.settings import GenerateSettings
from packtrain.pretrained.conditions import conditions_of
from packtrain.runs.checkpoint import open_run
from packtrain.runs.metrics import read_metrics
from packtrain.train.run import train
from tests.train.conftest import TINY

pytestmark = pytest.mark.slow
NUM_PROMPTS, NUM_NEW = 100, 12
# Two logits that are closer than this are equal but for the order of additions; which is larger is decided by rounding.
EQUAL = 1e-4


@pytest.fixture(scope="module")
def learned(dataset, tmp_path_factory):
    """A run of 150 steps, whose loss has left that of a model that knows nothing far behind."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    settings = [
        *TINY,
        f"data.dataset={dataset}",
        "train.steps=150",
        "optim.lr=1e-2",
        "evaluate.every=0",
        "checkpoint.every=150",
    ]
    train(load_run_config("demo", settings).config, folder, resume=False)
    run = open_run(folder)
    losses = [line["loss"] for line in read_metrics(run.layout.metrics) if "loss" in line]
    assert losses[-1] < losses[0] - 2
    return run


@pytest.fixture(scope="module")
def prompts(dataset):
    """Beginnings in held-out text, of 1 to 19 tokens."""
    ids = open_dataset(dataset).split("validation").read(0, 1000).astype("int64").tolist()
    assert len(ids) == 1000
    return [ids[i * 9 : i * 9 + 1 + i % 19] for i in range(NUM_PROMPTS)]


def generate_theirs(folder, prompts, eos):
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    width = max(map(len, prompts))
    padded = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
    attended = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = theirs.generate(
        padded, attention_mask=attended, do_sample=False, max_new_tokens=NUM_NEW, pad_token_id=eos, eos_token_id=eos
    )
    new = made[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in new]


def is_decided_by_rounding(model, prompt, ours, theirs):
    """Whether two texts part at a place where the model finds both tokens equally likely."""
    same = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.no_grad():
        logits_V = model(torch.tensor([[*prompt, *ours[:same]]]))[0, -1]
    return abs(float(logits_V[ours[same]] - logits_V[theirs[same]])) < EQUAL


def test_greedy_text_of_a_trained_model_is_that_of_transformers_batched_and_alone(learned, prompts, tmp_path):
    assert export_run(learned, tmp_path / "hf").checks.num_greedy == 20
    conditions = conditions_of(learned)
    tokenizer, length = conditions.tokenizer, conditions.context_length
    expected = generate_theirs(tmp_path / "hf", prompts, tokenizer.eos_id)

    def generate_ours(*some):
        engine = Engine(learned.model, tokenizer, slots=len(some), context_length=length)
        streams = [engine.add(prompt, GenerateSettings(max_tokens=NUM_NEW, temperature=0.0)) for prompt in some]
        while any(stream.finish_reason is None for stream in streams):
            engine.step()
        return [stream.token_ids for stream in streams]

    alone = [generate_ours(prompt)[0] for prompt in prompts]
    assert generate_ours(*prompts) == alone
    assert len({tuple(ids) for ids in alone}) >= 10, "a model that says one thing shows nothing"
    other = [i for i, ids in enumerate(alone) if ids != expected[i]]
    for i in other:
        assert is_decided_by_rounding(learned.model, prompts[i], alone[i], expected[i]), prompts[i]
    assert len(other) <= 1


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_llama_cpp_is_within_the_tolerance_of_each_type_on_a_trained_model(learned, tmp_path, dtype):
    checks = export_run(learned, tmp_path / "out", format="gguf", dtype=dtype).checks
    assert checks.text == "validation split" and checks.num_tokens == 64
    assert checks.max_logit_difference <= checks.tolerance
    assert checks.num_greedy == (20 if dtype == "float32" else None)
    # What the rounding of the weights costs a trained model.
    assert checks.loss_exported == pytest.approx(checks.loss, rel={"float32": 1e-5, "q8_0": 0.02}.get(dtype, 0.01))
    print(dtype, checks.max_logit_difference, checks.tolerance, checks.loss, checks.loss_exported)
