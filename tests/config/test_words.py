"""What can be typed: what `config` shows, numbers with units, names of other programs, and one setting in place of another."""

import itertools
import shlex

import pytest
from tests.command_line import packtrain

from packtrain.config.foreign_names import foreign_names
from packtrain.config.load import dotted_keys, flatten, load_recipe, load_run_config
from packtrain.config.recipe import Recipe
from packtrain.config.run import RunConfig
from packtrain.config.shipped import describe_shipped, shipped
from packtrain.config.values import read_number
from packtrain.config.words import show
from packtrain.errors import ConfigError

LOADED = {"presets": load_run_config, "recipes": load_recipe}
PATHS = {"jsonl", "csv", "parquet", "text-folder", "import", "python"}


def needs(kind, name):
    """What a recipe cannot do without, and does not say itself."""
    if kind == "presets" or name not in PATHS:
        return []
    words = ["source.function=a.py:b"] if name == "python" else ["source.path=here"]
    return [*words, "tokenizer.name=there"] if name == "import" else words


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in LOADED for name in shipped(kind)])
def test_every_value_that_config_shows_can_be_typed(kind, name):
    config = LOADED[kind](name, needs(kind, name)).config
    words = [f"{key}={show(value)}" for key, value in flatten(config)]
    assert LOADED[kind](name, words).config == config
    for word in words:
        assert LOADED[kind](name, [*needs(kind, name), *shlex.split(shlex.quote(word))]).config == config


def test_odd_values_can_be_typed_as_they_are_shown():
    mixture = '{"data/web" = 0.7, "code" = {weight = 0.3, max_epochs = 4}}'
    prompts = r'evaluate.prompts=["a \"b\"", "ü \n", ""]'
    config = load_run_config("demo", [f"data.dataset={mixture}", prompts, "optim.betas=[0.5,0]"]).config
    words = [f"{key}={show(value)}" for key, value in flatten(config)]
    assert load_run_config("demo", words).config == config
    shown = packtrain("config", "demo", f"data.dataset={mixture}", "optim.lr=0.5").out
    line = next(line for line in shown.splitlines() if line.startswith("data.dataset "))
    _, value, *origin = shlex.split(line)
    assert load_run_config("demo", [f"data.dataset={value}"]).config.data.dataset == config.data.dataset
    assert " ".join(origin) == "the command line"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.tokens=50M", 50_000_000),
        ("train.tokens=1.5B", 1_500_000_000),
        ("train.steps=10k", 10_000),
        ("train.steps=1e3", 1_000),
        ("train.global_batch_tokens=524_288", 524_288),
        ("train.tokens=8.123456789012345678T", 8_123_456_789_012_345_678 // 10**6),
        ("optim.lr=3e-4", 3e-4),
        ("guard.stall_seconds=1.5k", 1500.0),
        ("guard.stall_seconds=auto", "auto"),
        ("train.precision=bfloat16", "bf16"),
        ("train.precision=torch.float32", "fp32"),
        ("train.precision=half", "fp16"),
        ("train.precision=float16", "fp16"),
    ],
)
def test_numbers_and_precisions_are_read_as_people_write_them(word, value, tmp_path):
    key, _, text = word.partition("=")
    if "." in text and text.endswith("T"):
        # Not a whole number of tokens.
        with pytest.raises(ConfigError, match="write a number such as"):
            load_run_config("demo", [word])
        text, value = "8.123456789012T", 8_123_456_789_012
    assert dict(flatten(load_run_config("demo", [f"{key}={text}"]).config))[key] == value
    table, _, leaf = key.partition(".")
    (tmp_path / "mine.toml").write_text(f'base = "demo"\n[{table}]\n{leaf} = "{text}"\n')
    assert dict(flatten(load_run_config(str(tmp_path / "mine.toml")).config))[key] == value


@pytest.mark.parametrize("text", ["50m", "1.5k5", "k", "1e", "--5", "0x10", "1,000", "٣", "1" * 60, "1e999", ""])
def test_what_is_not_such_a_number_is_left_alone(text):
    assert read_number(text, int) == text


def test_only_whole_numbers_where_only_those_are_needed():
    with pytest.raises(ConfigError, match=r"train\.steps=1\.0005k .* valid integer"):
        load_run_config("demo", ["train.steps=1.0005k"])
    assert load_recipe("stdlib", ["split.salt=10k"]).config.split.salt == "10k"


def test_the_command_line_beats_the_length_of_a_preset_and_a_file_that_of_its_base(tmp_path):
    loaded = load_run_config("demo", ["train.tokens=50M"])
    assert (loaded.config.train.steps, loaded.config.train.tokens) == (None, 50_000_000)
    assert loaded.origins["train.steps"] == "the command line"
    assert load_run_config("llama2-15m", ["train.steps=7"]).config.given_steps == 7
    (tmp_path / "mine.toml").write_text('base = "llama2-15m"\n[train]\nsteps = 5\n')
    (tmp_path / "next.toml").write_text('base = "mine.toml"\n[train]\ntokens = "1M"\n')
    assert load_run_config(str(tmp_path / "mine.toml")).config.given_steps == 5
    assert load_run_config(str(tmp_path / "next.toml")).config.train.steps is None
    assert load_run_config(str(tmp_path / "next.toml"), ["train.steps=3"]).config.given_steps == 3
    (tmp_path / "both.toml").write_text("[train]\nsteps = 5\ntokens = 1_000_000\n")
    with pytest.raises(ConfigError, match="both set the length; keep one"):
        load_run_config(str(tmp_path / "both.toml"))


def test_epochs_are_a_length_like_steps_and_tokens(tmp_path):
    config = load_run_config("demo", ["train.epochs=2.5", "data.seq_len=64", "train.global_batch_tokens=512"]).config
    assert (config.train.steps, config.train.tokens, config.given_steps) == (None, None, None)
    # 25 rows, eight a step.
    assert config.num_steps(10) == 4
    # A whole number of rows, not one more for the rounding of 1.1.
    assert load_run_config("demo", ["train.epochs=1.1"]).config.num_steps(160) == 176 // 8
    with pytest.raises(ConfigError, match="keep one of them"):
        load_run_config("demo", ["train.epochs=2", "train.steps=3"])
    with pytest.raises(ConfigError, match=r"4 steps of 8 rows need 32 rows, .* write train\.steps=3"):
        config.num_steps(10, 24)
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        load_run_config("demo", ["train.epochs=0"])
    (tmp_path / "both.toml").write_text("[train]\nepochs = 5\ntokens = 1_000_000\n")
    with pytest.raises(ConfigError, match=r"train\.tokens=1000000 and train\.epochs=5\.0 both set the length"):
        load_run_config(str(tmp_path / "both.toml"))


def test_naming_a_tokenizer_unsets_training_one_and_the_other_way_round(tmp_path):
    named = load_recipe("stdlib", ["tokenizer.name=mine"]).config.tokenizer
    assert (named.name, named.vocab_size) == ("mine", None)
    trained = load_recipe("fineweb-edu-10bt", ["tokenizer.vocab_size=10k"]).config.tokenizer
    assert (trained.name, trained.vocab_size) == (None, 10_000)
    (tmp_path / "mine.toml").write_text('base = "stdlib"\n[tokenizer]\nname = "a"\nrevision = "b"\n')
    assert load_recipe(str(tmp_path / "mine.toml")).config.tokenizer.revision == "b"
    # A revision is of the repository that it was given for.
    assert load_recipe(str(tmp_path / "mine.toml"), ["tokenizer.name=c"]).config.tokenizer.revision is None
    with pytest.raises(ConfigError, match="this has both; leave one out"):
        load_recipe("stdlib", ["tokenizer.name=mine", "tokenizer.vocab_size=300"])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("learning_rate=1", "did you mean optim.lr?"),
        ("train.n_layer=3", "did you mean model.num_hidden_layers?"),
        ("block_size=3", "did you mean data.seq_len?"),
        ("batch_size=3", "did you mean train.micro_batch_size or train.global_batch_tokens?"),
        ("bf16=true", "did you mean train.precision? write train.precision=bf16"),
        ("--lr_scheduler_type=cosine", "did you mean schedule.name?"),
        ("dropout=0", "did you mean train.dropout?"),
        ("bias=true", "the model has no biases"),
        ("source.path=x", "source.path is a setting of recipes; give it to `packtrain prepare`"),
        ("text_field=x", "source.text_column is a setting of recipes"),
    ],
)
def test_names_of_other_programs_lead_to_the_setting_here(word, told):
    with pytest.raises(ConfigError) as caught:
        load_run_config("demo", [word])
    assert told in str(caught.value)


def test_every_name_of_another_program_leads_to_a_setting_that_there_is():
    known = {key for cls in (RunConfig, Recipe) for key, _ in dotted_keys(cls)}
    settings = set(itertools.chain.from_iterable(found for found, _ in foreign_names().values()))
    assert settings <= known and not foreign_names().keys() & known
    assert all(found or remark for found, remark in foreign_names().values())


def test_without_a_name_config_lists_presets_and_recipes():
    shown = packtrain("config").out
    for kind in LOADED:
        for name, about in describe_shipped(kind).items():
            assert 10 < len(about) < 120 and any(
                line.split()[:1] == [name] and about in line for line in shown.splitlines()
            )
    assert "15.2M parameters" in shown and "304M tokens" in shown
