"""The loop: cached equals uncached and equals Hugging Face, one position per token, and every way in which a text can end."""

import pytest
import torch

from packtrain.errors import NonFiniteError, TokenizerError, UserError
from packtrain.generate.decode import stream
from packtrain.generate.prompt import encode_prompt
from packtrain.generate.settings import GenerateSettings
from packtrain.model.llama import Llama

from .models import saying, theirs_of, tiny_model

GREEDY = GenerateSettings(temperature=0.0, max_tokens=30)


def complete(*arguments, **settings) -> str:
    return "".join(stream(*arguments, **settings))


def uncached_greedy(model: Llama, ids: list[int], num_tokens: int) -> list[int]:
    ids = list(ids)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-num_tokens:]


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4, "tie_word_embeddings": False}, {"qk_norm": True}])
def test_cached_tokens_are_the_uncached_ones(byte_level, changes):
    model = tiny_model(byte_level.vocab_size, **changes)
    generation = stream(model, byte_level, "The quick", GREEDY, add_bos=True)
    assert "".join(generation)
    assert generation.token_ids == uncached_greedy(model, generation.prompt_ids, len(generation.token_ids))


def test_each_token_costs_one_pass_of_one_position(byte_level, monkeypatch):
    monkeypatch.setattr("packtrain.generate.compiled.load_step", lambda: None)
    model = tiny_model(byte_level.vocab_size)
    widths = []
    model.model.register_forward_pre_hook(lambda _module, arguments: widths.append(arguments[0].shape[1]))
    generation = stream(model, byte_level, "The quick brown fox", GREEDY, add_bos=True)
    complete_text = "".join(generation)
    assert complete_text
    assert widths == [len(generation.prompt_ids), *[1] * (len(generation.token_ids) - 1)]


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_text_is_that_of_transformers(byte_level, penalty):
    model = tiny_model(byte_level.vocab_size, max_position_embeddings=512)
    theirs = theirs_of(model, byte_level)
    settings = GenerateSettings(temperature=0.0, max_tokens=60, repetition_penalty=penalty)
    generation = stream(model, byte_level, "def main", settings, add_bos=True)
    assert "".join(generation)
    prompt_BT = torch.tensor([generation.prompt_ids])
    output_BT = theirs.generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        do_sample=False,
        max_new_tokens=60,
        repetition_penalty=penalty,
    )
    assert output_BT[0, prompt_BT.shape[1] :].tolist() == generation.token_ids


def test_a_seed_gives_the_same_text_and_another_seed_another(byte_level):
    model = tiny_model(byte_level.vocab_size)
    texts = [
        complete(model, byte_level, "The", GenerateSettings(temperature=1.0, seed=seed), add_bos=True)
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_unset_seed_is_drawn_and_can_be_used_again(byte_level):
    model = tiny_model(byte_level.vocab_size)
    first = stream(model, byte_level, "The", GenerateSettings(temperature=1.0), add_bos=True)
    again = GenerateSettings(temperature=1.0, seed=first.seed)
    assert "".join(first) == complete(model, byte_level, "The", again, add_bos=True)


def test_training_state_is_left_alone(byte_level):
    model = tiny_model(byte_level.vocab_size).train()
    torch.manual_seed(3)
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    complete(model, byte_level, "The", GenerateSettings(seed=1), add_bos=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    tokens_BT = torch.tensor([[1, 2, 3, 4]])
    model(tokens_BT, tokens_BT).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is not None


def test_ids_beyond_the_tokenizer_are_never_chosen(byte_level):
    model = tiny_model(byte_level.vocab_size + 56, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[byte_level.vocab_size :] *= 100
    generation = stream(model, byte_level, "The", GenerateSettings(temperature=2.0, seed=0), add_bos=True)
    assert "".join(generation)
    assert max(generation.token_ids) < byte_level.vocab_size


def test_the_text_ends_at_the_end_token(tokenizer):
    generation = stream(saying(tokenizer, "a", "the 🙈é"), tokenizer, "a", GREEDY, add_bos=True)
    leading = " " if tokenizer.kind == "sentencepiece" else ""
    assert "".join(generation) == leading + "the 🙈é"
    assert generation.finish_reason == "eos"
    assert generation.token_ids[-1] == tokenizer.eos_id


@pytest.mark.parametrize(
    ("stop", "left"), [("🙈", "the "), (" 🙈é", "the"), ("e 🙈", "th"), ("t", ""), ("é", "the 🙈")]
)
def test_a_stop_string_over_token_borders_ends_the_text_and_is_not_in_it(byte_level, stop, left):
    settings = GenerateSettings(temperature=0.0, stop=("unseen", stop))
    generation = stream(saying(byte_level, "a", "the 🙈é"), byte_level, "a", settings, add_bos=True)
    assert "".join(generation) == left
    assert generation.finish_reason == "stop"


def test_the_beginning_of_a_stop_string_at_the_end_is_text(byte_level):
    settings = GenerateSettings(temperature=0.0, stop=("é!",))
    assert complete(saying(byte_level, "a", "the 🙈é"), byte_level, "a", settings, add_bos=True) == "the 🙈é"


def test_max_tokens_end_the_text(byte_level):
    generation = stream(tiny_model(byte_level.vocab_size), byte_level, "The", GREEDY, add_bos=True)
    assert "".join(generation)
    assert (len(generation.token_ids), generation.finish_reason) == (GREEDY.max_tokens, "length")


def test_a_full_context_ends_the_text_and_a_prompt_that_fills_it_is_refused(byte_level):
    model = tiny_model(byte_level.vocab_size, max_position_embeddings=12)
    generation = stream(model, byte_level, "abcdefgh", GREEDY, add_bos=True)
    assert "".join(generation)
    assert len(generation.prompt_ids) + len(generation.token_ids) == 12
    assert generation.finish_reason == "context"
    with pytest.raises(UserError, match=r"20 tokens long, .* holds 12, .* at most 11 tokens"):
        stream(model, byte_level, "z" * 19, GREEDY, add_bos=True)
    with pytest.raises(UserError, match="holds 5"):
        stream(model, byte_level, "abcdefgh", GREEDY, add_bos=True, context_length=5)


def test_an_empty_prompt_needs_a_begin_token(byte_level):
    model = tiny_model(byte_level.vocab_size)
    generation = stream(model, byte_level, "", GREEDY, add_bos=True)
    assert generation.prompt_ids == [byte_level.bos_id]
    assert "".join(generation)
    with pytest.raises(UserError, match="prompt is empty"):
        stream(model, byte_level, "", GREEDY, add_bos=False)


def test_control_tokens_written_in_a_prompt_are_text(byte_level):
    ids = encode_prompt(byte_level, "a</s>", add_bos=True)
    assert ids[0] == byte_level.bos_id
    assert byte_level.eos_id not in ids


def test_a_prompt_that_is_not_utf8_is_refused(byte_level):
    with pytest.raises(UserError, match="UTF-8"):
        encode_prompt(byte_level, "\udcff", add_bos=True)


def test_a_tokenizer_larger_than_the_model_is_refused(byte_level):
    with pytest.raises(TokenizerError, match="the model 100"):
        stream(tiny_model(100), byte_level, "The", GREEDY, add_bos=True)


def test_spoilt_weights_are_named_as_such(byte_level):
    model = tiny_model(byte_level.vocab_size)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite"):
        complete(model, byte_level, "The", GREEDY, add_bos=True)
