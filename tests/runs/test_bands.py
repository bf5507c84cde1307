"""Is a loss placed rightly among the runs that are known, and is it said when none is?"""

import json
import math
from importlib import resources

import pytest

from packtrain.config.load import load_run_config, to_toml
from packtrain.config.shipped import shipped
from packtrain.report.collect import RunRecord
from packtrain.report.standing import standing
from packtrain.runs.bands import describe_standing, interpolate, judge
from packtrain.runs.layout import RunLayout

STDLIB = [{"source": {"kind": "stdlib", "repo": None}}]
KNOWN = json.loads(resources.files("packtrain.runs").joinpath("bands.json").read_text(encoding="utf-8"))
DEMO = next(entry for entry in KNOWN if entry["preset"] == "demo")


def stand(bits_per_byte, *settings, recipes=STDLIB, tokens=2_048_000, preset="demo"):
    config = load_run_config(preset, list(settings)).config
    return judge(config, recipes, tokens=tokens, bits_per_byte=bits_per_byte, loss=bits_per_byte * 2.5)


@pytest.mark.parametrize(
    ("share", "state"), [(-0.2, "below"), (0.0, "within"), (0.5, "within"), (1.0, "within"), (1.2, "above")]
)
def test_a_loss_is_within_above_or_below_the_band(share, state):
    tokens, low, high = DEMO["points"][-1]
    standing = stand(low + share * (high - low), tokens=tokens)
    assert standing.state == state
    assert f"{low:.3f} to {high:.3f}" in standing.says and DEMO["source"] in standing.says
    assert "not quite" not in standing.says


def test_the_band_is_straight_in_the_logarithm_of_tokens_and_ends():
    points = [[100, 3.0, 4.0], [10_000, 1.0, 2.0]]
    assert interpolate(points, 1_000) == pytest.approx((2.0, 3.0))
    assert interpolate(points, 100) == (3.0, 4.0)
    assert interpolate(points, 99) is None and interpolate(points, 10_001) is None


def test_a_run_that_differs_is_told_so():
    standing = stand(1.64, "optim.lr=1e-3", "train.steps=500", "train.seed=7", "log.every=1")
    assert "optim.lr=0.001, its length is 500 steps, not 1000" in standing.says


@pytest.mark.parametrize(
    ("settings", "recipes"),
    [(["model.hidden_size=64"], STDLIB), ([], [{"source": {"kind": "jsonl"}}]), ([], STDLIB * 2), ([], [])],
)
def test_where_no_band_is_known_it_says_so(settings, recipes):
    standing = stand(1.64, *settings, recipes=recipes)
    assert standing.state == "unknown" and standing.sample is None
    assert "neither a run of ours nor a publication is known" in standing.says
    assert "demo on Python's standard library" in standing.says


def test_a_published_loss_is_compared_only_in_the_same_tokens():
    stories = [{"source": {"kind": "hf", "repo": "roneneldan/TinyStories"}}]
    same = stand(0.5, preset="llama2-15m", recipes=stories)
    assert "published: 1.072" in same.says and "karpathy/llama2.c" in same.says
    other = stand(0.5, "model.vocab_size=4096", preset="llama2-15m", recipes=stories)
    assert "cannot be compared" in other.says


def test_the_sample_is_that_of_the_nearest_loss():
    assert len(DEMO["samples"]) >= 3
    for sample in DEMO["samples"]:
        shown = stand(sample["bits_per_byte"] + 0.001).sample
        assert f"{sample['bits_per_byte']:.2f} bits per byte" in shown and sample["prompt"].strip() in shown


def test_what_is_shipped_is_sound():
    for entry in KNOWN:
        assert entry["preset"] in shipped("presets") and entry["source"]
        points = entry.get("points", [])
        assert points or entry["published"] > 0
        assert points == sorted(points) and all(0 < low < high and math.isfinite(high) for _, low, high in points)


def test_a_run_without_validation_or_without_files_is_told_in_a_sentence(tmp_path):
    assert describe_standing(RunLayout(tmp_path))[0].startswith("where the loss stands is not known: ")


def test_a_run_of_the_report_is_judged_without_torch(tmp_path):
    (tmp_path / "config.toml").write_text(to_toml(load_run_config("demo").config))
    record = RunRecord(tmp_path, "run", [], {"dataset": {"recipe": STDLIB[0]}}, [], [], [], [], {})
    assert standing(record) is None
    record.validation.append({"step": 1000, "val_loss": 3.46, "val_bpb": 1.39})
    assert "normal, within the band of" in str(standing(record))
    record.validation[0]["val_bpb"] = "rubbish"
    assert standing(record) is None
