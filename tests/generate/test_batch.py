"""Many sequences at once: each is what it would be alone, whoever comes and leaves, and memory stays what it was."""

import random

import pytest
import torch

from packtrain.errors import UserError
from packtrain.generate.batch import FEW, Engine
from packtrain.generate.cache import cache_bytes
from packtrain.generate.settings import GenerateSettings

from .models import saying, scripted_model, theirs_of, tiny_model


def random_prompts(size: int, count: int, longest: int = 40) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(size) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def run(engine: Engine, *streams) -> None:
    while any(stream.finish_reason is None for stream in streams):
        engine.step()


def alone(model, tokenizer, prompt, settings) -> list[int]:
    engine = Engine(model, tokenizer, context_length=64)
    stream = engine.add(prompt, settings)
    run(engine, stream)
    return stream.token_ids


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4, "tie_word_embeddings": False, "qk_norm": True}])
def test_a_sequence_has_the_same_tokens_alone_and_in_company(byte_level, changes):
    model = tiny_model(byte_level.vocab_size, **changes)
    settings = [
        GenerateSettings(max_tokens=5 + 3 * i, temperature=(0.0, 0.7, 1.5)[i % 3], top_k=(0, 20)[i % 2], seed=i)
        for i in range(9)
    ]
    asked = list(zip(random_prompts(byte_level.vocab_size, 9), settings, strict=True))
    engine = Engine(model, byte_level, slots=4, context_length=64)
    waiting, seen, streams = list(asked), 0, []
    while waiting or engine.streams:
        # A new one joins in every other step, so that prompts are read while others continue.
        if waiting and engine.num_free and seen % 2 == 0:
            streams.append(engine.add(*waiting.pop(0)))
        engine.step()
        seen += 1
    assert [stream.token_ids for stream in streams] == [alone(model, byte_level, *pair) for pair in asked]


def test_one_that_leaves_in_the_middle_changes_nothing_for_the_others(byte_level):
    model = tiny_model(byte_level.vocab_size)
    prompts = random_prompts(byte_level.vocab_size, 4)
    settings = GenerateSettings(max_tokens=20, temperature=1.0, seed=1)
    engine = Engine(model, byte_level, slots=3, context_length=64)
    streams = [engine.add(prompt, settings) for prompt in prompts[:3]]
    for _ in range(6):
        engine.step()
    engine.remove(streams[1])
    engine.remove(streams[1])
    assert engine.num_free == 1
    streams.append(engine.add(prompts[3], settings))
    run(engine, streams[0], streams[2], streams[3])
    assert engine.num_free == 3
    for i in (0, 2, 3):
        assert streams[i].token_ids == alone(model, byte_level, prompts[i], settings)


def test_greedy_tokens_are_those_of_transformers_on_100_prompts(byte_level):
    model = tiny_model(byte_level.vocab_size, max_position_embeddings=64)
    theirs = theirs_of(model, byte_level)
    prompts = random_prompts(byte_level.vocab_size, 100)
    width, eos = max(map(len, prompts)), byte_level.eos_id
    padded = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
    attended = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    expected = theirs.generate(padded, attention_mask=attended, do_sample=False, max_new_tokens=12)[:, width:].tolist()
    engine = Engine(model, byte_level, slots=100, context_length=64)
    streams = [engine.add(prompt, GenerateSettings(max_tokens=12, temperature=0.0)) for prompt in prompts]
    run(engine, *streams)
    for stream, ids in zip(streams, expected, strict=True):
        assert stream.token_ids == ids[: len(stream.token_ids)]
        assert len(stream.token_ids) == 12 or stream.finish_reason == "eos"


def test_logits_from_the_cache_are_those_of_the_whole_text(byte_level):
    """To 1e-5 of logits of about 1, in pieces of a prompt and one by one."""
    model = tiny_model(byte_level.vocab_size)
    engine = Engine(model, byte_level, context_length=130)
    engine._piece = 24
    stream = engine.add(random_prompts(byte_level.vocab_size, 1, 60)[0] * 2, GenerateSettings(logprobs=3, max_tokens=9))
    while stream.finish_reason is None:
        for token in engine.step():
            before = [*stream.prompt_ids, *stream.token_ids[:-1]]
            with torch.no_grad():
                expected_V = model(torch.tensor([before]))[0, -1, : byte_level.vocab_size].log_softmax(-1)
            assert token.logprob == pytest.approx(float(expected_V[token.token_id]), abs=1e-5)
            best = expected_V.topk(3)
            assert [i for i, _ in token.alternatives] == best.indices.tolist()
            assert [p for _, p in token.alternatives] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_long_prompt_does_not_hold_up_the_others(byte_level):
    engine = Engine(tiny_model(byte_level.vocab_size), byte_level, slots=2, context_length=200)
    engine._piece = FEW
    first = engine.add([1, 2, 3], GenerateSettings(max_tokens=50, temperature=0.0))
    engine.step()
    second = engine.add(list(range(100)), GenerateSettings(max_tokens=5, temperature=0.0))
    for number in range(6):
        assert [token.stream for token in engine.step()] == [first], number
    assert {token.stream for token in engine.step()} == {first, second}


def test_a_prompt_that_another_has_read_is_not_read_again(byte_level):
    model = tiny_model(byte_level.vocab_size)
    prompt = list(range(3, 40))
    reads = []
    model.model.register_forward_pre_hook(lambda _module, inputs: reads.append(inputs[0].shape[1]))
    engine = Engine(model, byte_level, slots=3, context_length=64)
    reads.clear()
    settings = [GenerateSettings(max_tokens=10, temperature=1.0, seed=seed) for seed in range(3)]
    streams = [engine.add(prompt, each) for each in settings]
    run(engine, *streams)
    assert reads.count(len(prompt)) == 1
    assert [s.token_ids for s in streams] == [alone(model, byte_level, prompt, each) for each in settings]


def test_memory_is_allocated_once(byte_level):
    model = tiny_model(byte_level.vocab_size)
    engine = Engine(model, byte_level, slots=2, context_length=64)
    address = engine.cache.keys.data_ptr()
    assert engine.num_bytes == cache_bytes(model.config, 2, 64)
    for prompt in random_prompts(byte_level.vocab_size, 6):
        run(engine, engine.add(prompt, GenerateSettings(max_tokens=30)))
    assert engine.cache.keys.data_ptr() == address
    assert engine.num_bytes == cache_bytes(model.config, 2, 64)


def test_the_text_and_the_reason_come_with_the_tokens(byte_level):
    model = saying(byte_level, "a", "the 🙈é")
    prompt = [byte_level.bos_id, *byte_level.encode("a")]
    engine = Engine(model, byte_level, slots=3, context_length=64)
    asked = {"eos": {}, "stop": {"stop": (" 🙈",)}, "length": {"max_tokens": 3}}
    texts = {engine.add(prompt, GenerateSettings(temperature=0.0, **given)): "" for given in asked.values()}
    while engine.streams:
        for token in engine.step():
            texts[token.stream] += token.text
    assert [stream.finish_reason for stream in texts] == list(asked)
    whole, stopped, _ = texts.values()
    assert (whole, stopped) == ("the 🙈é", "the")


def test_a_stop_token_ends_the_text_but_not_before_min_tokens(byte_level):
    ids = byte_level.encode("abcd")
    model = scripted_model(byte_level, *ids, ids[0])
    settings = GenerateSettings(temperature=0.0, stop_token_ids=(ids[2],), max_tokens=10)
    assert alone(model, byte_level, ids[:1], settings) == ids[1:3]
    later = GenerateSettings(temperature=0.0, stop_token_ids=(ids[2],), max_tokens=10, min_tokens=5)
    assert ids[2] not in alone(model, byte_level, ids[:1], later)[:5]


def test_past_the_context_the_text_ends_or_slides(byte_level):
    model = tiny_model(byte_level.vocab_size)
    prompt = random_prompts(byte_level.vocab_size, 1, 20)[0]
    engine = Engine(model, byte_level, slots=2, context_length=32)
    bos = byte_level.bos_id
    settings = {"temperature": 0.0, "max_tokens": 90, "logit_bias": {byte_level.eos_id: -100}}
    ended = engine.add([bos, *prompt], GenerateSettings(**settings))
    slid = engine.add([bos, *prompt], GenerateSettings(**settings, beyond="slide"))
    run(engine, ended, slid)
    assert (ended.finish_reason, len(ended.prompt_ids) + len(ended.token_ids)) == ("context", 32)
    assert (slid.finish_reason, len(slid.token_ids)) == ("length", 90)
    # What it says after a slide is what it says to a prompt of what was kept.
    text = [*slid.prompt_ids, *slid.token_ids]
    kept = [bos, *text[32 - 15 : 32]]
    again = alone(model, byte_level, kept, GenerateSettings(**(settings | {"max_tokens": 10})))
    assert again == text[32:42]


@pytest.mark.parametrize("beyond", ["truncate", "slide"])
def test_the_last_part_of_a_longer_prompt_is_read(byte_level, beyond):
    engine = Engine(tiny_model(byte_level.vocab_size), byte_level, context_length=32)
    prompt = [byte_level.bos_id, *random_prompts(byte_level.vocab_size, 1, 9)[0] * 30]
    with pytest.raises(UserError, match="holds 32"):
        engine.add(prompt, GenerateSettings())
    stream = engine.add(prompt, GenerateSettings(beyond=beyond, max_tokens=8, temperature=0.0))
    assert stream.prompt_ids == [byte_level.bos_id, *prompt[-23:]]
    run(engine, stream)
    assert len(stream.token_ids) == 8


@pytest.mark.parametrize(("ids", "what"), [([], "no token"), ([-1], "outside"), ([5, 10**6], "outside")])
def test_ids_that_do_not_fit_are_refused(byte_level, ids, what):
    engine = Engine(tiny_model(byte_level.vocab_size), byte_level, context_length=32)
    with pytest.raises(UserError, match=what):
        engine.add(ids, GenerateSettings())
    assert engine.num_free == 1
