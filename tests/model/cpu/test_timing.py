"""The faster library is found at the model's shapes, in bounded time, and what was found is kept; nothing that is kept can do harm."""

import json
import threading

import pytest
import torch

from packtrain.config.cpu import KINDS
from packtrain.model.cpu import kept_rates, timing
from packtrain.model.cpu import name as name_file
from packtrain.model.cpu.kept_rates import describe_conditions, find_place, keep_rates, read_rates
from packtrain.model.cpu.products import has_onednn
from packtrain.model.cpu.timing import Product, Rates, choose, list_products, time_products
from packtrain.storage.json_file import seal

from ..tiny import tiny

WIDE = tiny(hidden_size=256, num_key_value_heads=2, intermediate_size=640, vocab_size=1000)


def test_every_layer_has_its_three_products_once():
    products = list_products(WIDE, 2048)
    assert {product.rows for product in products} == {1024}
    shapes = {(256, 256), (256, 128), (256, 640), (640, 256), (256, 1000)}
    assert {(p.kind, p.inputs, p.outputs) for p in products} == {(kind, *shape) for kind in KINDS for shape in shapes}
    assert len(products) == 15


def test_small_models_are_not_measured():
    assert list_products(tiny(), 512) == []
    assert dict(choose([])) == dict.fromkeys(KINDS, "torch")


def test_a_library_has_to_be_clearly_faster():
    products = list_products(WIDE, 1024)
    rates = {product: Rates(100.0, 102.0) for product in products}
    assert dict(choose(rates.items())) == dict.fromkeys(KINDS, "torch")
    for product in products:
        if product.kind == "outputs" or (product.kind == "weight_gradients" and product.inputs == 640):
            rates[product] = Rates(100.0, 110.0)
    chosen = choose(rates.items())
    assert dict(chosen) == {"outputs": "onednn", "input_gradients": "torch", "weight_gradients": "onednn 640x256"}


@pytest.mark.skipif(not has_onednn(), reason="torch without oneDNN")
def test_products_are_timed_without_a_trace(monkeypatch):
    monkeypatch.setattr(timing, "_ENOUGH_S", 0.0)
    products = [Product(kind, 64, 48, 32) for kind in KINDS]
    before = torch.get_rng_state(), torch.get_num_threads(), threading.active_count()
    rates = time_products(products, torch.float32, 1)
    assert set(rates) == {f"{kind} 64x48x32" for kind in KINDS}
    assert all(rate > 0 for pair in rates.values() for rate in pair)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), threading.active_count()) == before[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_product_is_cut_in_what_is_not_summed_over(kind):
    whole = Product(kind, 1024, 1024, 32_000)
    cut = timing._cut(whole)
    assert cut.flops < 0.2 * whole.flops
    assert cut.inputs == 1024
    assert cut.rows == (1024 if kind == "weight_gradients" else 128)
    assert timing._cut(Product(kind, 64, 64, 64)) == Product(kind, 64, 64, 64)


@pytest.fixture
def conditions(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return describe_conditions("float32", 1)


def test_rates_are_kept_and_added_to(conditions):
    assert read_rates(conditions) == {}
    keep_rates(conditions, {"a": Rates(1.0, 2.0)})
    keep_rates(conditions, {"b": Rates(3.0, 4.0)})
    assert keep_rates(conditions, {"a": Rates(5.0, 1.0)}) == {"a": Rates(5.0, 2.0), "b": Rates(3.0, 4.0)}
    assert read_rates(conditions) == {"a": Rates(5.0, 2.0), "b": Rates(3.0, 4.0)}
    assert read_rates(describe_conditions("float32", 2)) == {}
    assert read_rates(describe_conditions("bfloat16", 1)) == {}


def test_the_libraries_instructions_are_a_condition(conditions, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert describe_conditions("float32", 1) != conditions


def test_two_cpus_of_one_name_are_told_apart(monkeypatch, tmp_path):
    other = tmp_path / "cpuinfo"
    other.write_text("model name : AMD EPYC\ncpu family : 26\nmodel : 2\nflags : fpu avx avx512f\n\nmodel name : x\n")
    monkeypatch.setattr(name_file, "_INFO", other)
    told = describe_conditions("float32", 1)["cpu"]
    assert (told["name"], told["cpu family"], told["flags"]) == ("AMD EPYC", "26", "avx avx512f")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"content": {}, "hash": "0"}',
        json.dumps(seal({"conditions": {}, "rates": {"a": [1.0, 2.0]}})).encode(),
        json.dumps(seal({"rates": 3})).encode(),
    ],
)
def test_a_foreign_file_is_measured_again(conditions, content):
    place = find_place(conditions)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert read_rates(conditions) == {}
    keep_rates(conditions, {"a": Rates(1.0, 2.0)})
    assert read_rates(conditions) == {"a": Rates(1.0, 2.0)}


@pytest.mark.parametrize("rates", [{"a": [1.0]}, {"a": ["x", 2.0]}, {"a": 3}, [1], "text", {"a": None}])
def test_rates_of_another_form_are_measured_again(conditions, rates):
    place = find_place(conditions)
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(seal({"conditions": conditions, "rates": rates})))
    assert read_rates(conditions) == {}


def test_rates_that_cannot_be_are_measured_again(conditions):
    keep_rates(conditions, {"a": Rates(0.0, 2.0), "b": Rates(-1.0, 1.0), "c": Rates(1.0, 2.0)})
    assert set(read_rates(conditions)) == {"c"}


def test_a_place_that_cannot_be_written_is_no_error(conditions, tmp_path, monkeypatch):
    (tmp_path / "packtrain").write_text("a file, not a folder")
    keep_rates(conditions, {"a": Rates(1.0, 2.0)})
    assert read_rates(conditions) == {}
    find_place(conditions).parent.parent.unlink()
    find_place(conditions).mkdir(parents=True)
    keep_rates(conditions, {"a": Rates(1.0, 2.0)})
    assert read_rates(conditions) == {}
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(kept_rates.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    keep_rates(conditions, {"a": Rates(1.0, 2.0)})
    assert read_rates(conditions) == {}
