"""Shipped presets and recipes say only what differs from the defaults, or from their base, and where a value came from."""

import tomllib

import pytest

from packtrain.config.load import flatten, load_recipe, load_run_config
from packtrain.config.recipe import Recipe
from packtrain.config.run import RunConfig
from packtrain.config.shipped import shipped
from packtrain.errors import ConfigError

REFERENCE = "llama2-437m"
# The reference preset states itself in full.
FILES = [(kind, name) for kind in ("presets", "recipes") for name in shipped(kind) if name != REFERENCE]


def said(kind, name):
    """What a file says, by dotted key, without its base."""
    return {
        f"{table}.{key}": value
        for table, values in tomllib.loads(shipped(kind)[name]).items()
        if table != "base"
        for key, value in values.items()
    }


def without(kind, name):
    """What holds for a file that says nothing, by dotted key: its base, or the defaults."""
    base = tomllib.loads(shipped(kind)[name]).get("base")
    if base is not None:
        return dict(flatten((load_run_config if kind == "presets" else load_recipe)(base).config))
    cls = RunConfig if kind == "presets" else Recipe
    sections = {key: field.annotation.model_fields for key, field in cls.model_fields.items()}
    return {f"{table}.{key}": field.default for table, fields in sections.items() for key, field in fields.items()}


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_says_only_what_differs(kind, name):
    before = without(kind, name)
    # A recipe always names the kind of its source.
    repeated = [key for key, value in said(kind, name).items() if before[key] == value and key != "source.kind"]
    assert not repeated, f"{name}.toml repeats {', '.join(repeated)}; leave them out"


def test_the_reference_preset_is_the_defaults_but_for_optimizer_rate_and_vocabulary():
    before = without("presets", REFERENCE)
    stated = said("presets", REFERENCE)
    assert {key for key, value in stated.items() if _plain(value) != before[key]} == {
        "optim.name",
        "optim.lr",
        "model.vocab_size",
    }
    assert {"model.hidden_size", "model.num_hidden_layers", "train.global_batch_tokens"} <= stated.keys()


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


def test_values_of_a_base_are_named_after_it():
    loaded = load_run_config("llama2-437m-h16", ["optim.lr=1e-4"])
    assert loaded.config.model.num_attention_heads == 16
    assert loaded.config.model.hidden_size == 1024
    assert loaded.origins["model.num_attention_heads"] == "preset llama2-437m-h16"
    assert loaded.origins["model.hidden_size"] == "preset llama2-437m"
    assert loaded.origins["optim.lr"] == "the command line"


def test_a_file_builds_on_a_preset_or_on_a_file_beside_it(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "demo"\n[optim]\nlr = 1e-3\n[data.dataset]\nweb = 0.5\ncode = 0.5\n')
    (tmp_path / "next.toml").write_text('base = "mine.toml"\n[data.dataset]\nweb = 1.0\n')
    loaded = load_run_config(str(tmp_path / "next.toml"))
    assert (loaded.config.optim.lr, loaded.config.model.hidden_size) == (1e-3, 128)
    assert [part.folder for part in loaded.config.data.dataset] == ["web"]
    assert loaded.origins["optim.lr"] == str(tmp_path / "mine.toml")
    assert loaded.origins["data.dataset"] == str(tmp_path / "next.toml")
    assert loaded.origins["model.hidden_size"] == "preset demo"


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        ('"dmo"', "there is no preset 'dmo'; did you mean demo?"),
        ('"none.toml"', "none.toml does not exist"),
        ('"mine.toml"', "mine.toml is its own base"),
        ("3", "base=3"),
    ],
)
def test_a_base_that_is_not_there_is_refused(base, sentence, tmp_path):
    (tmp_path / "mine.toml").write_text(f"base = {base}\n")
    with pytest.raises(ConfigError) as caught:
        load_run_config(str(tmp_path / "mine.toml"))
    assert sentence in str(caught.value)
