"""Each line that says what is next works when it is pasted: for every kind of source, preset, and place with an odd name."""

import io
import json
import shlex
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command_line import Done, packtrain
from tests.corpora import sentences, write_jsonl

from packtrain.cli.following import quote
from packtrain.config.load import load_run_config
from packtrain.config.shipped import shipped
from packtrain.plan.choice import choose_preset
from packtrain.plan.vocabulary import set_vocabulary

TEXTS = sentences(60)
ODD = "it's my dâta"
TINY = (
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
)
SHORT = ("train.steps=2", "evaluate.sample_tokens=4", "train.device=cpu")


def next_lines(done: Done) -> list[list[str]]:
    """The words of the commands that a command said to type next, as the shell reads them."""
    assert done.code == 0, done.err
    lines = [
        line.strip().partition(": ")[2] for line in done.out.splitlines() if line.strip().startswith(("next: ", "or: "))
    ]
    return [shlex.split(line) for line in lines]


def paste(words: list[str], *more: str) -> Done:
    """Runs a line of `next_lines`, with settings that make it fast."""
    if words[1] == "-c":
        with redirect_stdout(io.StringIO()) as out:
            exec(words[2], {})
        return Done(0, out.getvalue(), "")
    assert words[0] == "packtrain"
    return packtrain(*words[1:], *more)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_source(kind: str, folder: Path) -> list[str]:
    """A source of a kind, in a folder with an odd name; the settings that name it."""
    folder.mkdir()
    table = pa.table({"text": TEXTS})
    if kind == "hf":
        (folder / "data").mkdir()
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    elif kind == "parquet":
        pq.write_table(table, folder / "a.parquet")
    elif kind == "jsonl":
        write_jsonl(folder / "a.jsonl", TEXTS)
    elif kind == "csv":
        lines = ["text", *(json.dumps(text.replace("\n", " ").replace("\t", " ")) for text in TEXTS)]
        (folder / "a.csv").write_text("\n".join(lines) + "\n")
    elif kind == "text":
        for number, text in enumerate(TEXTS):
            (folder / f"{number}.txt").write_text(text)
    elif kind == "function":
        (folder / "mine.py").write_text(f"def documents():\n    yield from {TEXTS!r}\n")
        return [f"source.function={folder.name}/mine.py:documents"]
    elif kind == "stdlib":
        return ["source.max_documents=40", "source.max_document_mb=0.01", "source.max_bad_fraction=1"]
    return [f"source.path={folder.name}"]


@pytest.mark.parametrize("kind", ["hf", "parquet", "jsonl", "csv", "text", "function", "stdlib"])
@pytest.mark.slow
def test_what_follows_prepare_trains(kind: str, here: Path) -> None:
    words = [f"source.kind={kind}", *write_source(kind, here / f"{ODD} {kind}")]
    first = packtrain("prepare", "stdlib", *words, "tokenizer.vocab_size=300", "prepare.workers=1", "--out", ODD)
    [train] = next_lines(first)
    assert train[1:4] == ["train", "demo", f"data.dataset={ODD}"]
    ended = paste(train, *TINY, *SHORT)
    assert ended.code == 0, ended.err
    assert (here / "runs" / ODD / "samples" / "step-00000002.jsonl").is_file()


def test_the_whole_way_by_next_lines_alone(here: Path) -> None:
    write_jsonl(here / "a b.jsonl", TEXTS)
    words = ["jsonl", "source.path=a b.jsonl", "prepare.workers=1", "source.text_column=text"]
    trained = packtrain("tokenizer", *words, "tokenizer.vocab_size=300", "--out", "tok 1")
    [prepare] = next_lines(trained)
    dry = next_lines(packtrain(*prepare[1:], "--dry-run"))[0]
    assert dry == prepare
    [train] = next_lines(paste(dry))
    generate, evaluate = next_lines(paste(train, *TINY, *SHORT))
    assert paste(generate, "--max-tokens", "4", "--seed", "1").out.startswith(generate[-1])
    [report] = next_lines(paste(evaluate))
    assert paste(report).code == 0
    # The name of the run is taken now.
    again = next_lines(paste(prepare))[0]
    assert again[-1] == f"{train[-1]}-2"
    run = Path(train[-1])
    load, upload = next_lines(packtrain("export", run, "--out", "my model's"))
    assert upload[1:] == ["upload", "my-model-s", "my model's", "--private"]
    assert len(paste(load).out.strip()) > 3
    for inspect in next_lines(packtrain("inspect", prepare[-1])):
        assert paste(inspect).code == 0


def test_a_dataset_of_validation_alone_says_how_it_is_used(here: Path) -> None:
    write_jsonl(here / "a.jsonl", TEXTS)
    tokenizer = packtrain("tokenizer", "jsonl", "source.path=a.jsonl", "tokenizer.vocab_size=300", "--out", "tok")
    assert tokenizer.code == 0
    words = ["source.path=a.jsonl", "tokenizer.name=tok", "tokenizer.vocab_size=", "split.validation_fraction=1"]
    [inspect] = next_lines(packtrain("prepare", "jsonl", *words, "prepare.workers=1", "--out", "held out"))
    assert "all validation" in paste(inspect).out


@pytest.mark.parametrize(
    "word",
    [
        "plain",
        "two words",
        "it's",
        'a "b"',
        "$HOME `x` \\",
        "日本 é",
        "line\nbreak",
        "tab\there",
        "\x1b[31m",
        "{a,b}",
        "",
    ],
)
def test_a_quoted_word_comes_back_from_the_shell(word: str) -> None:
    line = quote(word)
    assert line.isprintable()
    shown = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True)
    assert shown.stdout.decode() == word


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "preset"),
    [
        (300, 300, "demo"),
        (2_000_000, 4096, "demo"),
        (300_000_000, 32_000, "llama2-15m"),
        (1_000_000_000, 50_257, "llama2-42m"),
        (10_000_000_000, 32_000, "llama2-437m"),
        # Its vocabulary is fixed.
        (10_000_000_000, 50_257, "llama2-110m"),
    ],
)
def test_the_preset_fits_the_dataset(tokens: int, vocabulary: int, preset: str) -> None:
    choice = choose_preset(tokens, vocabulary)
    assert choice.preset == preset
    assert choice.epochs <= 4.0 or choice.tokens == 2048, "one step at least"
    assert choice.tokens <= 20 * choice.parameters
    config = load_run_config(choice.preset, choice.settings).config
    steps = config.given_steps
    assert steps is not None
    assert abs(steps * config.train.global_batch_tokens - choice.tokens) < config.train.global_batch_tokens


def test_a_fixed_vocabulary_is_refused_with_what_to_write(dataset: Path, tmp_path: Path) -> None:
    for words in (["plan", "llama2-437m"], ["train", "llama2-437m", "--run", tmp_path / "run"]):
        refused = packtrain(*words[:2], f"data.dataset={dataset}", "train.device=cpu", *words[2:])
        assert "has 512 tokens, but model.vocab_size=32000; write model.vocab_size=512" in refused.sentence
    plan = json.loads(
        packtrain("plan", "llama2-437m", f"data.dataset={dataset}", "model.vocab_size=", "--no-probe", "--json").out
    )
    assert plan["vocabulary"] == {"size": 512, "from": "the dataset's"}


@pytest.mark.usefixtures("here")
def test_plan_says_which_vocabulary_it_assumed() -> None:
    Path("mine.toml").write_text('base = "llama2-15m"\n')
    shown = packtrain("plan", "mine.toml", "--no-probe").out
    assert "vocabulary 32,000 (assumed, as Llama 2's)" in " ".join(shown.split())
    plan = json.loads(packtrain("plan", "llama2-437m", "--no-probe", "--json").out)
    assert plan["parameters"]["total"] == 437_584_896
    assert plan["vocabulary"]["from"] == "model.vocab_size"


def test_only_presets_that_promise_their_size_fix_a_vocabulary() -> None:
    fixed = {name for name in shipped("presets") if load_run_config(name).config.model.vocab_size is not None}
    assert fixed == {"llama2-437m", "llama2-437m-h16", "llama2-437m-h8", "llama2-437m-fast"}
    config = load_run_config("demo").config
    assert set_vocabulary(config, 300).model.vocab_rows == 300
    assert set_vocabulary(load_run_config("llama2-437m").config, 300).model.vocab_rows == 32_000
