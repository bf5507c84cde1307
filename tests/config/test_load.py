"""Configuration: where values come from, and that every mistake gets one sentence that says what to write."""

import re

import pytest

from packtrain.config.document import field_docstrings
from packtrain.config.load import dotted_keys, flatten, from_toml, load_recipe, load_run_config, to_toml
from packtrain.config.recipe import Recipe
from packtrain.config.run import RunConfig
from packtrain.config.shipped import shipped
from packtrain.errors import ConfigError


def test_settings_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[optim]\nlr = 1e-3\nweight_decay = 0.2\n")
    loaded = load_run_config(str(file), ["optim.lr=2e-3"])
    assert (loaded.config.optim.lr, loaded.config.optim.weight_decay, loaded.config.optim.eps) == (2e-3, 0.2, 1e-8)
    assert loaded.origins == {"optim.lr": "the command line", "optim.weight_decay": str(file)}


@pytest.mark.parametrize("name", shipped("presets"))
def test_every_preset_loads_and_survives_toml(name):
    config = load_run_config(name).config
    assert from_toml(RunConfig, to_toml(config), name) == config


@pytest.mark.parametrize("name", shipped("recipes"))
def test_every_recipe_loads_and_survives_toml(name):
    settings = ["source.path=here"] if "path" in _error_of(load_recipe, name, []) else []
    settings += ["source.function=here.py:documents"] if "function" in _error_of(load_recipe, name, settings) else []
    settings += ["tokenizer.name=here"] if "tokenizer" in _error_of(load_recipe, name, settings) else []
    config = load_recipe(name, settings).config
    assert from_toml(Recipe, to_toml(config), name) == config


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["optim.lrr=1"], "there is no setting 'optim.lrr' (from the command line); did you mean optim.lr"),
        (["lr=1"], "did you mean optim.lr?"),
        (["data.sequence_length=4"], "did you mean data.seq_len"),
        (["train.steps=ten"], "train.steps=ten (from the command line) does not fit: input should be a valid integer"),
        (["train.steps=true"], "train.steps=true (from the command line) does not fit"),
        (["train.steps=0"], "train.steps=0 (from the command line) does not fit: input should be greater than 0"),
        (["train.global_batch_tokens=512kb"], "train.global_batch_tokens=512kb"),
        (["data.packing=best"], "input should be 'concat' or 'bestfit'"),
        (["optim.betas=[0.9]"], "optim.betas"),
        (["optim.betas=[0.9, 1.0]"], "less than 1"),
        (["optim.lr=nan"], "optim.lr"),
        (["nonsense"], "'nonsense' is not a setting; write KEY=VALUE, for example optim.lr=3e-4"),
        (["train.global_batch_tokens=1000"], "write train.global_batch_tokens=768"),
        (
            ["model.hidden_size=130"],
            "model.hidden_size=130 is not a multiple of model.num_attention_heads=4; change one of them, or set model.head_dim",
        ),
        (["model.num_key_value_heads=3"], "write a divisor of 4 for model.num_key_value_heads"),
        (["model.head_dim=33"], "write an even model.head_dim"),
        (["train.steps=5", "train.tokens=100000"], "both set the length; keep one"),
        (["model.rope_scaling.factor=2"], "has no model.rope_scaling.rope_type"),
        (["model.max_position_embeddings=8"], "data.seq_len=8"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        load_run_config("demo", settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_answered_with_the_nearest_and_all():
    with pytest.raises(ConfigError, match=r"there is no preset 'dmo'; did you mean demo\?"):
        load_run_config("dmo")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_run_config(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load_run_config(str(broken))
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_run_config(str(broken))


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nstep = 3\n")
    with pytest.raises(ConfigError, match=r"no setting 'train.step' \(from .*mine.toml\); did you mean train.steps"):
        load_run_config(str(file))


@pytest.mark.parametrize("word", ["train.steps=", "train.steps=unset"])
def test_an_empty_value_unsets(word):
    assert load_run_config("demo", [word]).config.train.steps is None


def test_a_text_setting_keeps_what_looks_like_a_number():
    assert load_recipe("stdlib", ["split.salt=42"]).config.split.salt == "42"


def test_every_key_says_what_it_means():
    for cls in (RunConfig, Recipe):
        for key, _ in dotted_keys(cls):
            table, _, leaf = key.rpartition(".")
            owner = cls
            for name in filter(None, table.split(".")):
                annotation = owner.model_fields[name].annotation
                owner = getattr(annotation, "__args__", (annotation,))[0]
            field = owner.model_fields[leaf]
            is_table = hasattr(field.annotation, "model_fields")
            assert is_table or field.description or field_docstrings(owner).get(leaf), key


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optim.lr=inf", "optim.lr=Infinity (from the command line) does not fit: input should be a finite number"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] (from the command line) does not fit: value 2 is missing"),
        ("optim.betas=[2,0]", "optim.betas=2 (from the command line) does not fit: input should be less than 1"),
        ("train.compile=maybe", "does not fit: input should be a valid boolean, unable to interpret input, or 'auto'"),
        ("model.rope_scaling={rope_type='yarn', factor=2}", "rope_type=yarn (from the command line) does not fit"),
    ],
)
def test_an_error_says_which_value_does_not_fit_and_what_would(setting, sentence):
    assert sentence in _error_of(load_run_config, "demo", [setting])


def test_flatten_lists_every_leaf():
    assert dict(flatten(load_run_config("demo").config))["model.hidden_size"] == 128


def _error_of(call, *args) -> str:
    try:
        call(*args)
    except ConfigError as error:
        return str(error)
    return ""


MIXED = [
    '{"data/web" = 0.7, "code" = {weight = 0.3, max_epochs = 4}}',
    '{"data/web": 0.7, "code": {"weight": 0.3, "max_epochs": 4}}',
    '[{folder = "data/web", weight = 0.7}, {folder = "code", weight = 0.3, max_epochs = 4}]',
]


@pytest.mark.parametrize("table", MIXED)
def test_a_mixture_is_a_table_of_folders_and_weights(table, tmp_path):
    config = load_run_config("demo", [f"data.dataset={table}"]).config
    assert [(d.folder, d.weight, d.max_epochs) for d in config.data.dataset] == [
        ("data/web", 0.7, None),
        ("code", 0.3, 4),
    ]
    assert from_toml(RunConfig, to_toml(config), "x") == config
    file = tmp_path / "mine.toml"
    file.write_text('[data.dataset]\n"data/web" = 0.7\n[data.dataset.code]\nweight = 0.3\nmax_epochs = 4\n')
    assert load_run_config(str(file)).config.data.dataset == config.data.dataset


@pytest.mark.parametrize("folder", ["data/web", "2024", "2024-01-01", "1e5", "true", "a=0.5,b=0.5", "[old]/data"])
def test_a_folder_stays_a_folder_whatever_it_looks_like(folder):
    assert load_run_config("demo", [f"data.dataset={folder}"]).config.data.dataset == folder


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('{"a": 0.7, b: 1}', "is not a complete table; write a folder, or a mixture as {"),
        ("{}", "data.dataset is an empty table"),
        ('{"a": 0}', "data.dataset, a: weight does not fit (input should be greater than 0)"),
        ('{"a": Infinity}', "data.dataset, a: weight does not fit"),
        ('{"a": "much"}', "data.dataset, a: weight does not fit"),
        ('{"a": {"max_epochs": 2}}', "data.dataset, a: weight does not fit (field required)"),
        ('{"a": {"weight": 1, "epochs": 2}}', "data.dataset, a: epochs does not fit"),
        ('{"a": {"weight": 1, "max_epochs": 0}}', "data.dataset, a: max_epochs does not fit"),
        ("[1]", "data.dataset, 1: it does not fit"),
        (
            '[{folder = "a", weight = 1}, {folder = "a", weight = 2}]',
            "data.dataset names a 2 times; add up its weights",
        ),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_sentence(table, sentence):
    assert sentence in _error_of(load_run_config, "demo", [f"data.dataset={table}"])


@pytest.mark.parametrize(
    ("target", "words", "told"),
    [
        ("", [], "there is no preset ''"),
        ("[" * 5_000, [], "there is no preset '[[["),
        ("a\0b", [], "there is no preset"),
        ("a\0b.toml", [], "cannot be read"),
        ("demo", ["data.dataset=\udc80"], "bytes that are not UTF-8"),
        ("demo", ["train.steps=" + "9" * 5_000], "train.steps"),
    ],
    ids=["nothing", "too long", "a NUL", "a NUL before the ending", "not UTF-8", "5,000 digits"],
)
def test_what_no_preset_or_setting_can_be_is_a_sentence(target: str, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_run_config(target, words)
