"""Any nonsense in the files that a run reads, its hashes made to fit, ends in one sentence and never in a traceback."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packtrain.config.load import load_recipe, load_run_config
from packtrain.errors import ConfigError
from packtrain.runs.layout import RunLayout
from packtrain.storage.atomic import hash_file
from packtrain.storage.json_file import seal
from packtrain.train.run import train
from tests.command_line import packtrain
from tests.train.conftest import TINY

DEEP = "[" * 5000 + "]" * 5000
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 1, 3, 2**53, 2**70, 10**400, -0.5, 1e308, "", "x", "nan", "1", "\x1b[31m", "\0", [], {}, [[]]]
    ),
    st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=4),
    st.dictionaries(st.sampled_from(["step", "hash", "source", "a"]), st.integers(-2, 2), max_size=2),
)
# As text, because some of them are no JSON.
TEXTS = st.sampled_from(
    [
        "",
        "null",
        "[]",
        "3",
        '"x"',
        "{}",
        "{",
        DEEP,
        '{"a": ' + DEEP + "}",
        "NaN",
        '{"step": NaN}',
        '{"a": "\\ud800"}',
        "\xff",
        "\0",
    ]
)
# At the root, a key may be anything; below, it stays what it is.
EDITS = st.tuples(st.randoms(use_true_random=False), st.sampled_from(["replace", "delete", "add"]), VALUES)


def spoil(tree, edit):
    """Changes one value somewhere in a tree of JSON."""
    draw, kind, value = edit
    places = list(_places(tree))
    owner, key = draw.choice(places)
    if kind == "delete":
        del owner[key]
    elif kind == "replace" or isinstance(owner, list):
        owner[key] = value
    else:
        owner["another"] = value


def _places(tree):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def fit_hashes(folder):
    path = folder / "hashes.json"
    hashes = json.loads(path.read_text())
    path.write_text(json.dumps({name: hash_file(folder / name) for name in hashes}))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A run of two steps, saved at the second."""
    folder = tmp_path_factory.mktemp("nonsense") / "run"
    words = [*TINY, f"data.dataset={dataset}", "train.steps=2", "evaluate.every=2", "schedule.name=constant"]
    train(load_run_config("demo", words).config, folder, resume=False)
    return folder


def command(verb, run, dataset):
    trained = ("train", "demo", *TINY, f"data.dataset={dataset}")
    return {
        "generate": ("generate", run, "--prompt", "the", "--max-tokens", 1, "--seed", 1),
        "inspect": ("inspect", run, "--step", 1),
        "report": ("report", run),
        "evaluate": ("evaluate", run, "--tokens", 64),
        "resume": (*trained, "train.steps=2", "evaluate.every=2", "schedule.name=constant", "--run", run, "--resume"),
        "anneal": (
            *(*trained, "train.steps=1", "evaluate.every=0", "schedule.name=linear"),
            *("--run", run.parent / "annealed", "--anneal-from", run),
        ),
    }[verb]


VERBS = ("anneal", "evaluate", "generate", "inspect", "report", "resume")


def check(run, dataset, verb):
    """The verb ends well or with a sentence. An exception that escapes the command line fails the test."""
    shutil.rmtree(run.parent / "annealed", ignore_errors=True)
    done = packtrain(*command(verb, run, dataset))
    assert done.code in (0, 2, 4), done.err
    assert "Traceback" not in done.err
    if done.code:
        assert len(done.sentence) < 2000


@pytest.fixture
def copied(finished, tmp_path):
    """Makes a new copy of the run."""

    def copy():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return shutil.copytree(finished, tmp_path / "run")

    return copy


# Unless a profile asks for more: each takes some tenths of a second.
many = settings(
    max_examples=settings().max_examples * 5 // 8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
FILES = ("manifest.json", "state.json", "hashes.json", "logs.json", "validation.json", "metrics.jsonl", "events.jsonl")


@many
@given(name=st.sampled_from(FILES), verb=st.sampled_from(VERBS), edit=EDITS, text=st.none() | TEXTS)
@pytest.mark.slow
def test_a_value_in_a_file_of_a_run(copied, dataset, name, verb, edit, text):
    run = copied()
    folder = RunLayout(run).checkpoint(2)
    path = run / name if (run / name).exists() else folder / name
    if name.endswith(".jsonl"):
        lines = path.read_text().splitlines()
        number = edit[0].randrange(len(lines))
        if text is None:
            line = json.loads(lines[number])
            spoil(line, edit)
            text = json.dumps(line)
        lines[number] = text
        path.write_text("\n".join(lines) + "\n")
    elif text is not None:
        path.write_text(text)
    else:
        tree = json.loads(path.read_text())
        # Beyond what the hash of such a file protects.
        inner = tree["content"] if name in ("logs.json", "validation.json") else tree
        spoil(inner, edit)
        path.write_text(json.dumps(seal(inner) if inner is not tree else tree))
    if name == "state.json":
        fit_hashes(folder)
    check(run, dataset, verb)


@many
@given(
    verb=st.sampled_from(["generate", "resume"]),
    draw=st.randoms(use_true_random=False),
    kind=st.sampled_from(["drop", "shape", "type", "rename", "cut", "header", "sharding", "empty"]),
)
def test_tensors_that_are_not_the_model_s(copied, dataset, verb, draw, kind):
    run = copied()
    folder = RunLayout(run).checkpoint(2)
    (path,) = folder.glob("*.safetensors")
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if kind in ("drop", "shape", "type", "rename"):
        tensors = safetensors.torch.load(data)
        name = draw.choice(sorted(tensors))
        tensor = tensors.pop(name)
        if kind == "shape":
            tensors[name] = torch.zeros(*tensor.shape, 2)
        elif kind == "type":
            tensors[name] = tensor.to(draw.choice([torch.float16, torch.int64, torch.uint8]))
        elif kind == "rename":
            tensors[draw.choice(["x", "x/exp_avg", name + "/more", ""])] = tensor
        path.write_bytes(safetensors.torch.save(tensors))
    elif kind == "cut":
        path.write_bytes(data[: draw.randrange(len(data))])
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        inner = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"]) if kind == "sharding" else header
        spoil(
            inner,
            (draw, draw.choice(["replace", "delete"]), draw.choice([None, -1, 0, 7, "x", [], {}, [1, 2, 3], 2**70])),
        )
        if kind == "sharding":
            header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(inner)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    fit_hashes(folder)
    check(run, dataset, verb)


SETTINGS = [
    "model.hidden_size",
    "data.dataset",
    "evaluate.prompts",
    "train.steps",
    "optim.betas",
    "model.rope_scaling",
    "x",
    "",
]


@settings(deadline=None)
@given(key=st.sampled_from(SETTINGS), value=st.text(max_size=20) | VALUES.map(repr) | TEXTS, is_recipe=st.booleans())
def test_a_setting_on_the_command_line(key, value, is_recipe):
    load, target = (load_recipe, "stdlib") if is_recipe else (load_run_config, "demo")
    try:
        load(target, [f"{key}={value}"])
    except ConfigError as error:
        assert str(error)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=TEXTS | st.text(max_size=40),
    key=st.sampled_from(["", "a = ", "base = ", "[model]\nhidden_size = ", "data = "]),
)
def test_a_preset_or_recipe(tmp_path, text, key):
    (tmp_path / "own.toml").write_text(key + text, encoding="utf-8")
    for load in (load_recipe, load_run_config):
        try:
            load(str(tmp_path / "own.toml"))
        except ConfigError as error:
            assert str(error)
