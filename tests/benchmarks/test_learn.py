"""Whether a recipe is measured once and by one protocol, and compared only with what compares."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.learn.__main__ import main
from benchmarks.learn.picture import draw_curves
from benchmarks.learn.recipe import RecipeFile
from benchmarks.learn.results import FILE, read_lines
from benchmarks.learn.small import describe_efficiency, measure_epochs, prepare_small
from benchmarks.learn.sweep import list_points
from benchmarks.learn.table import compare, find_finished, find_on_the_way, list_rows

from packtrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
TINY = """
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 32
[data]
seq_len = 32
[train]
steps = 8
global_batch_tokens = 128
[optim]
lr = 1e-2
[schedule]
warmup_steps = 4
"""


@pytest.fixture
def command(dataset, tmp_path):
    preset = tmp_path / "tiny.toml"
    preset.write_text(TINY)
    common = ["--corpus", str(dataset), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "learn.jsonl")]
    return lambda verb, *words: main([verb, str(preset), *words, *common])


def _line(name, tokens, mean, spread=0.01):
    return {"name": name, "tokens": tokens, "mean": mean, "spread": spread}


def test_a_recipe_is_trained_scored_and_kept_once(command, tmp_path, capsys):
    results = tmp_path / "learn.jsonl"
    assert command("train", "--seeds", "1", "2", "--points", "1") == 0
    (line,) = read_lines(results)
    assert line["name"] == "tiny" and line["seeds"] == [1, 2] and line["tokens"] == 8 * 128
    assert [tokens for tokens, _ in line["curve"]] == [4 * 128, 8 * 128]
    assert line["curve"][-1][1] == pytest.approx(line["mean"], abs=1e-5)
    assert line["protocol"] == {"name": "documents", "window": 32, "overlap": 16}
    assert line["settings"]["optim.lr"] == 0.01 and "train.seed" not in line["settings"]
    # Nothing is trained again, with or without the runs.
    (tmp_path / "work" / "runs").rename(tmp_path / "elsewhere")
    assert command("train", "--seeds", "2") == 0
    assert len(results.read_text().splitlines()) == 1
    assert "done before" in capsys.readouterr().out


def test_the_figure_is_that_of_evaluate(command, tmp_path):
    from contextlib import nullcontext

    from packtrain.api.measuring import EvaluateOptions, evaluate_and_save

    assert command("train", "--points", "0", "data.packing=bestfit", "data.document_mask=true") == 0
    (line,) = read_lines(tmp_path / "learn.jsonl")
    run = next((tmp_path / "work" / "runs").iterdir()) / "1337"
    options = EvaluateOptions(everything=True, protocol="documents")
    outcome = evaluate_and_save(run, options, progress=lambda *_: nullcontext(lambda *_: None))
    assert line["mean"] == pytest.approx(outcome["model"]["bits_per_byte"], abs=1e-5)


def test_a_finished_run_is_scored_as_if_it_were_trained_here(command, tmp_path, capsys):
    assert command("train", "--points", "1") == 0
    (trained,) = read_lines(tmp_path / "learn.jsonl")
    run = next((tmp_path / "work" / "runs").iterdir()) / "1337"
    assert main(["score", str(run), "--name", "tiny", "--results", str(tmp_path / "scored.jsonl")]) == 0
    (scored,) = read_lines(tmp_path / "scored.jsonl")
    same = ("mean", "settings", "tokens", "corpus", "seeds", "experiment", "parameters")
    assert [scored[key] for key in same] == [trained[key] for key in same]
    # Nobody measured what it took.
    assert scored["minutes"] is None and scored["wall_s"] > 0
    assert main(["table", "--against", "tiny", "--results", str(tmp_path / "scored.jsonl")]) == 0
    assert "the reference" in capsys.readouterr().out
    assert main(["score", str(tmp_path), "--name", "x", "--results", str(tmp_path / "scored.jsonl")]) == 2


def test_a_share_shrinks_the_whole_schedule(command, tmp_path):
    assert command("train", "--share", "0.5", "--points", "0") == 0
    assert command("train", "--share", "0.5", "--points", "0", "schedule.warmup_steps=3") == 0
    first, second = read_lines(tmp_path / "learn.jsonl")
    assert first["tokens"] == second["tokens"] == 4 * 128
    assert first["settings"]["schedule.warmup_steps"] == 2 and second["settings"]["schedule.warmup_steps"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.seed=3"], "--seeds"),
        (["optim.lrr=1"], "optim.lr"),
        (["--tokens", "100"], "less than one step"),
        (["--corpus", "nowhere"], "stdlib, prose, shakespeare"),
        (["--corpus", "prose"], "--data"),
    ],
)
def test_bad_input_is_one_sentence(dataset, tmp_path, capsys, words, said):
    preset = tmp_path / "tiny.toml"
    preset.write_text(TINY)
    corpus = [] if "--corpus" in words else ["--corpus", str(dataset)]
    assert main(["train", str(preset), *words, *corpus, "--work", str(tmp_path), "--results", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_line_of_another_kind_is_refused(tmp_path, capsys):
    (tmp_path / "learn.jsonl").write_text(json.dumps({"loss": 1}) + "\n")
    assert main(["table", "--results", str(tmp_path / "learn.jsonl")]) == 2
    assert "line 1" in capsys.readouterr().err


def test_a_sweep_goes_one_at_a_time_or_over_a_grid():
    over = ["optim.lr=1e-3,2e-3", "optim.betas=[0.9,0.95],[0.9,0.99]"]
    assert list_points(over, is_grid=False) == [
        ["optim.lr=1e-3"],
        ["optim.lr=2e-3"],
        ["optim.betas=[0.9,0.95]"],
        ["optim.betas=[0.9,0.99]"],
    ]
    assert len(list_points(over, is_grid=True)) == 4


def test_a_difference_within_the_spread_is_nothing():
    goal = _line("reference", 100, 1.50, 0.02)
    assert compare(_line("a", 100, 1.49), goal, None) == "nothing"
    assert compare(_line("a", 100, 1.40), goal, None) == "-0.1000"
    assert compare(_line("a", 100, 1.49, None), {**goal, "spread": None}, 0.02) == "nothing"


def test_tokens_to_a_figure_are_interpolated_never_extrapolated():
    budgets = [_line("a", 100, 1.8), _line("a", 400, 1.4)]
    assert find_finished(budgets, 1.6) == (pytest.approx(200), False)
    assert find_finished(budgets, 1.9) == (100, True)
    assert find_finished(budgets, 1.3) is None


def test_two_recipes_of_one_name_are_not_joined():
    def line(tokens, mean, lr, **settings):
        kept = {
            "corpus": {"name": "text"},
            "parameters": 1,
            "seeds": [1],
            "curve": [],
            "minutes": None,
            "tokens_per_s": None,
        }
        return _line("mine", tokens, mean) | kept | {"settings": {"optim.lr": lr, **settings}}

    goal = line(200, 1.5, 0.0) | {"name": "goal"}
    joined = [line(100, 1.6, 0.1, **{"schedule.warmup_steps": 1}), line(200, 1.4, 0.1, **{"schedule.warmup_steps": 2})]
    cells = list_rows([goal, *joined], "goal")
    assert next(row[6] for row in cells if row[:3] == ["mine", "0.00M", "200"]) == "141 (0.71)"
    apart = [joined[0], line(200, 1.4, 0.2)]
    cells = list_rows([goal, *apart], "goal")
    assert next(row[6] for row in cells if row[:3] == ["mine", "0.00M", "200"]) == "at most 200 (1.00)"
    assert find_on_the_way([(100, 1.8), (400, 1.4)], 1.6) == pytest.approx(200)
    assert find_on_the_way([(100, 1.8)], 1.6) is None


def test_a_picture_has_a_line_and_a_name_for_each_recipe():
    lines = [
        {**_line(name, 2000, 1.5), "corpus": {"name": "stdlib"}, "curve": [[1000, 1.8], [2000, 1.5]]}
        for name in ("fast <1>", "reference")
    ]
    drawn = draw_curves(lines)
    assert drawn.count("<polyline") == 2 and "fast &lt;1&gt;" in drawn and ">2k<" in drawn
    with pytest.raises(ConfigError, match="one corpus"):
        draw_curves([*lines, {**lines[0], "corpus": {"name": "prose"}}])


def test_a_small_corpus_is_a_beginning_of_the_larger_one(tmp_path):
    rows = [
        {"id": f"speech {number}", "text": f"Speech {number}: " + "so many words here " * 40} for number in range(30)
    ]
    (tmp_path / "sotu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = ["tokenizer.vocab_size=300", "prepare.workers=1"]
    whole = prepare_small(tmp_path, tmp_path, 0.016, 1.0, recipe)
    half = prepare_small(tmp_path, tmp_path, 0.016, 0.5, recipe)
    assert whole.held_out == half.held_out and whole.documents == 3
    assert (whole.share_of_text, half.share_of_text, whole.name) == (1.0, 0.5, "prose-0.016MB")
    texts = [sorted(tmp_path.glob(f"data/prose-0.016MB-{share}-*.jsonl"))[0].read_text() for share in ("1", "0.5")]
    sides = [[json.loads(line) for line in text.splitlines() if '"train"' in line] for text in texts]
    words = ["".join(row["text"] for row in side) for side in sides]
    assert 15_900 < len(words[0]) <= 16_000 and 7_900 < len(words[1]) <= 8_000 and words[0].startswith(words[1])


def test_epochs_end_when_they_do_not_help(monkeypatch):
    corpus = SimpleNamespace(train_tokens=100)
    figures = {100: 2.0, 200: 1.8, 400: 1.9, 800: 1.0}
    monkeypatch.setattr(
        "benchmarks.learn.small.measure_recipe",
        lambda recipe, *_: _line("a", recipe.budget.tokens, figures[recipe.budget.tokens]),
    )
    lines = measure_epochs(RecipeFile("x.toml", "a"), corpus, [4, 1, 2, 8], Path(), Path())
    assert [line["tokens"] for line in lines] == [100, 200, 400]


def test_data_efficiency_is_the_share_at_which_the_best_is_reached():
    assert "data efficiency 2.00" in describe_efficiency([(0.25, 2.0), (0.5, 1.5), (1.0, 1.2)], 1.5, "plain")
    assert "at least 4.00" in describe_efficiency([(0.25, 1.0)], 1.5, "plain")
    assert "does not reach" in describe_efficiency([(0.25, 2.0)], 1.5, "plain")


def test_the_page_has_the_tables_of_the_results(tmp_path):
    page = ROOT / "docs" / "training-presets.md"
    copy = tmp_path / "page.md"
    copy.write_text(page.read_text())
    if FILE.is_file():
        assert main(["table", "--markdown", "--against", "reference-demo", "--into", str(copy)]) == 0
    assert copy.read_text() == page.read_text()
    (tmp_path / "other.md").write_text("nothing")
    assert main(["table", "--into", str(tmp_path / "other.md")]) == 2
