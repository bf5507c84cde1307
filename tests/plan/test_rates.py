"""A measured rate is kept for a day, for the same work on the same machine, and a damaged one is as good as none."""

import time

import pytest

from packtrain.config.load import load_run_config
from packtrain.plan.rates import keep_rate, rate_key, read_rate


def config(*settings):
    return load_run_config("demo", settings).config


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def rate(age_s=0.0):
    return {"tokens_per_s": 100.0, "memory_bytes": 8, "measured_at": time.time() - age_s}


def test_a_rate_is_kept_for_a_day():
    assert read_rate(config()) is None
    keep_rate(config(), rate(age_s=3600))
    found = read_rate(config())
    assert found is not None and found["tokens_per_s"] == 100.0
    assert 3600 <= found["age_s"] < 3700
    keep_rate(config(), rate(age_s=25 * 3600))
    assert read_rate(config()) is None


@pytest.mark.parametrize(
    "setting", ["model.hidden_size=64", "train.micro_batch_size=2", "optim.name=adamw", "train.precision=bf16"]
)
def test_other_work_has_a_rate_of_its_own(setting):
    assert rate_key(config(setting)) != rate_key(config())


def test_what_changes_no_step_shares_the_rate(monkeypatch):
    assert rate_key(config("train.steps=7", "optim.lr=1e-5", "log.every=3")) == rate_key(config())
    before = rate_key(config())
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert rate_key(config()) != before


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"measured_at": "now"}', '{"measured_at": 1e999}'])
def test_a_damaged_rate_is_none(cache, content):
    keep_rate(config(), rate())
    (place,) = (cache / "packtrain" / "rates").iterdir()
    place.write_text(content)
    assert read_rate(config()) is None


def test_a_folder_that_cannot_be_written_costs_nothing(cache):
    (cache / "packtrain").write_text("a file")
    keep_rate(config(), rate())
    assert read_rate(config()) is None
