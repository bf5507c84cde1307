"""cpu.*=auto is decided once in a run's life, by a measurement, and the run keeps what it found."""

import dataclasses

import pytest
import torch

from packtrain.config.cpu import ALL_TORCH, KINDS, CpuConfig
from packtrain.config.load import load_run_config
from packtrain.errors import ConfigError
from packtrain.model.cpu import measured as measured_rates
from packtrain.model.cpu.timing import Rates
from packtrain.parallel.ranks import Channel, Ranks
from packtrain.train import cpu_libraries
from packtrain.train.cpu_libraries import resolve_cpu_libraries
from packtrain.train.step import Placement, Precision

CONFIG = load_run_config("llama2-110m", ["model.vocab_size=32000", "data.seq_len=256"]).config
BLOCKS = "onednn 768x768 768x2048 2048x768"


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Counts measurements, in which oneDNN is faster at weights' gradients alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_libraries, "can_use_onednn", lambda _: True)
    calls = []

    def measure(products, dtype, num_threads):
        calls.append((len(products), dtype, num_threads))
        return {p.name: Rates(1.0, 2.0 if p.kind == "weight_gradients" else 0.5) for p in products}

    monkeypatch.setattr(measured_rates, "time_products", measure)
    return calls


def placement(name="fp32", ranks=None):
    precision = Precision(name, "cpu", torch.amp.GradScaler("cpu", enabled=False))
    return Placement(torch.device("cpu"), precision, 4, ranks or Ranks())


def resolve(config=CONFIG, before=None, place=None, num_lanes=1):
    return resolve_cpu_libraries(config, before, place or placement(), num_lanes=num_lanes).cpu


def with_cpu(**settings):
    return CONFIG.model_copy(update={"cpu": CpuConfig(**settings)})


def test_a_new_run_measures_once_on_a_machine(measured):
    found = resolve()
    assert dict(found) == {"outputs": "torch", "input_gradients": "torch", "weight_gradients": "onednn"}
    assert resolve() == found and len(measured) == 1
    assert resolve(place=placement("bf16")) == found
    assert [dtype for _, dtype, _ in measured] == [torch.float32, torch.bfloat16]


def test_only_new_shapes_are_measured(measured):
    resolve()
    wider = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"vocab_size": 50_000})})
    resolve(wider)
    assert [count for count, *_ in measured] == [12, 3]


def test_lanes_share_the_threads(measured, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    resolve(num_lanes=2)
    assert measured[0][2] == 4


def test_a_resumed_run_keeps_what_it_had(measured):
    before = CpuConfig(outputs="onednn 768x768", input_gradients="torch", weight_gradients="torch")
    assert resolve(before=before) == before
    assert not measured


def test_a_setting_counts_more_than_a_measurement(measured):
    found = resolve(with_cpu(weight_gradients="torch", outputs="onednn"))
    assert found == CpuConfig(outputs="onednn", input_gradients="torch", weight_gradients="torch")
    resolve(with_cpu(**dict(ALL_TORCH)))
    assert len(measured) == 1


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_run_of_an_older_version_stays_as_it_was(measured, monkeypatch, is_wanted):
    wins = "onednn" if is_wanted else "torch"
    rule = CpuConfig(outputs=wins, input_gradients=wins, weight_gradients="torch")
    monkeypatch.setattr(cpu_libraries, "maker_rule", lambda: rule)
    found = resolve(before=CpuConfig())
    blocks = "onednn 768x768 768x2048 2048x768" if is_wanted else "torch"
    assert (found.outputs, set(found.input_gradients.split())) == (wins, set(blocks.split()))
    assert found.weight_gradients == "torch" and not measured
    assert resolve(before=CpuConfig(), place=placement("bf16")) == ALL_TORCH


def test_the_main_rank_decides_for_all(measured):
    @dataclasses.dataclass(eq=False)
    class Fixed(Channel):
        """Gives what the ranks of a fast and of a slow machine say."""

        def gather(self, value):
            return [CpuConfig(outputs="onednn", input_gradients="torch", weight_gradients="torch"), value]

    ranks = Ranks(rank=1, world_size=2, channel=Fixed())
    assert resolve(place=placement(ranks=ranks)).outputs == "onednn"
    assert not measured


def test_a_missing_library_is_said(monkeypatch, caplog):
    monkeypatch.setattr(cpu_libraries, "can_use_onednn", lambda _: False)
    assert resolve() == ALL_TORCH
    assert not caplog.messages
    kept = CpuConfig(outputs=BLOCKS, input_gradients="torch", weight_gradients="torch")
    assert resolve(before=kept) == kept
    assert "cpu.outputs=onednn 768x768" in caplog.text and "last digits" in caplog.text


@pytest.mark.parametrize(
    "value",
    ["mkl", "", "onednn 768", "onednn 0x4", "torch 4x4", "auto 4x4", "onednn 4x-4", "onednn 4X4", "onednn ４x4"],
)
def test_what_is_not_a_library_is_refused(value):
    with pytest.raises(ConfigError, match="write auto, torch, onednn"):
        load_run_config("demo", [f"cpu.outputs={value}"])


@pytest.mark.parametrize("value", ["auto", "torch", "onednn", "onednn 4x4 32000x768"])
@pytest.mark.parametrize("kind", KINDS)
def test_libraries_can_be_set(kind, value):
    assert getattr(load_run_config("demo", [f"cpu.{kind}={value}"]).config.cpu, kind) == value
