"""The compiled step: the model's logits, for every shape and kind of weights, and what happens where it cannot be built."""

import logging

import pytest
import torch

from packtrain.generate import compiler
from packtrain.generate.batch import Engine
from packtrain.generate.cache import SlotCache
from packtrain.generate.compiled import CompiledPasses, build_passes
from packtrain.generate.passes import ModelPasses, Work
from packtrain.generate.settings import GenerateSettings
from packtrain.generate.weights import narrow_weights

from ..model.tiny import VARIANTS, built, tiny, with_cpu_kernels

needs_compiler = pytest.mark.skipif(compiler.find_compiler() is None, reason="there is no C compiler")
POSITIONS = 40


def logits_of(passes: ModelPasses, cache: SlotCache, *pieces: list[int], slot: int = 0) -> torch.Tensor:
    """Logits after each piece of one sequence."""
    cache.lengths[slot] = 0
    return torch.cat([passes.extend([Work(slot, piece)]) for piece in pieces])


@needs_compiler
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_logits_are_those_of_the_model(changes, weights):
    # Sizes that are not multiples of what the kernel takes at a time.
    model = with_cpu_kernels(built(tiny(**({"intermediate_size": 101} | changes))))
    narrow_weights(model, weights)
    cache = SlotCache(model.config, 2, POSITIONS)
    passes = build_passes(model, cache)
    assert isinstance(passes, CompiledPasses)
    pieces = [[5, 6, 7], [8], [0, 210], [11]]
    found_BV = logits_of(passes, cache, *pieces, slot=1)
    tokens = torch.tensor([[token for piece in pieces for token in piece]])
    with torch.no_grad():
        expected_BV = model(tokens)[0, [2, 3, 5, 6]]
    torch.testing.assert_close(found_BV, expected_BV, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_each_row_is_bitwise_the_same_in_any_company():
    model = built(tiny(intermediate_size=101))
    cache = SlotCache(model.config, 20, POSITIONS)
    passes = build_passes(model, cache)
    work = [Work(slot, [slot + i for i in range(1 + slot % 7)]) for slot in range(20)]
    together_BV = passes.extend(work)
    for piece, logits_V in zip(work, together_BV, strict=True):
        assert torch.equal(logits_of(passes, cache, list(piece.ids), slot=piece.slot)[0], logits_V)
        # One by one, too.
        assert torch.equal(logits_of(passes, cache, *([i] for i in piece.ids), slot=piece.slot)[-1], logits_V)


@needs_compiler
def test_threads_change_nothing():
    model = built(tiny())
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            cache = SlotCache(model.config, 1, POSITIONS)
            found.append(logits_of(build_passes(model, cache), cache, [1, 2, 3], [4], [5]))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(*found)


def test_int8_weights_are_within_half_a_step_of_the_float32_ones():
    model = built(tiny(tie_word_embeddings=False))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    narrow_weights(model, "int8")
    for name, weight in before.items():
        module = model.get_submodule(name.rpartition(".")[0])
        step = weight.abs().amax(-1, keepdim=True) / 127
        assert ((module.weight - weight).abs() <= step * 0.501).all() or "norm" in name


@pytest.mark.parametrize("broken", ["no compiler", "does not compile", "unreadable model"])
def test_without_it_the_model_itself_computes_the_same_text(byte_level, broken, monkeypatch, tmp_path):
    from .models import tiny_model

    model = tiny_model(byte_level.vocab_size)
    settings = GenerateSettings(temperature=0.0, max_tokens=12)

    def run():
        engine = Engine(model, byte_level, slots=2, context_length=64)
        streams = [engine.add(prompt, settings) for prompt in ([1, 2, 3], [9])]
        while engine.streams:
            engine.step()
        return type(engine._passes), [stream.token_ids for stream in streams]

    _, expected = run()
    compiler.load_step.cache_clear()
    if broken == "no compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif broken == "does not compile":
        (tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("CC", str(tmp_path / "cc"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    else:
        model.lm_head.register_parameter("bias", torch.nn.Parameter(torch.zeros(byte_level.vocab_size)))
    try:
        assert run() == (ModelPasses, expected)
    finally:
        compiler.load_step.cache_clear()


@needs_compiler
def test_a_step_that_computes_something_else_is_not_used(caplog, monkeypatch):
    model = built(tiny())
    cache = SlotCache(model.config, 1, POSITIONS)
    # A block that step.c knows nothing of.
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: output * 2)
    # The command line takes packtrain's messages off the root logger.
    monkeypatch.setattr(logging.getLogger("packtrain"), "propagate", True)
    assert type(build_passes(model, cache)) is ModelPasses
    assert "not give the model's logits" in caplog.text


@needs_compiler
@pytest.mark.slow
def test_the_library_is_built_once_and_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times = set()
    for _ in range(2):
        compiler.load_step.cache_clear()
        assert compiler.load_step() is not None
        (library,) = (tmp_path / "packtrain").iterdir()
        times.add(library.stat().st_mtime_ns)
    compiler.load_step.cache_clear()
    assert len(times) == 1
