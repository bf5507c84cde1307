"""The filters against naive numpy versions and against Hugging Face's, and how `choose` applies them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packtrain.errors import ConfigError
from packtrain.generate.sample import (
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_frequency,
    penalize_repetition,
    repeats,
)
from packtrain.generate.settings import GenerateSettings

SEEDS = st.integers(0, 2**31)


def random_logits(seed: int, size: int = 50) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def kept(logits_V: torch.Tensor) -> set[int]:
    return set(logits_V.isfinite().nonzero()[:, 0].tolist())


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33, 1000, 32000, 151936])
def test_of_equal_logits_greedy_takes_the_lower_id(size):
    generator, greedy = torch.Generator(), GenerateSettings(temperature=0.0)
    for seed in range(6):
        logits_V = random_logits(seed, size).clamp(max=3.0)
        # Where the ties are: as they fall, at both ends, and everywhere.
        if seed > 3:
            logits_V[[0, -1]] = 3.0
        if seed == 5:
            logits_V.fill_(-1.0)
        lowest = int((logits_V == logits_V.max()).nonzero()[0])
        assert choose(logits_V, [], [], greedy, generator) == lowest
        # A penalty may move the highest.
        assert (
            choose(logits_V, [], [], GenerateSettings(temperature=0.0, logit_bias={size - 1: 0.0}), generator) == lowest
        )


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, k=st.integers(1, 60))
def test_top_k_keeps_the_k_largest_unchanged(seed, k):
    logits_V = random_logits(seed)
    result_V = keep_top_k(logits_V, k)
    assert kept(result_V) == set(np.argsort(-logits_V.numpy())[:k].tolist())
    assert torch.equal(result_V[result_V.isfinite()], logits_V[result_V.isfinite()])


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, p=st.floats(0.001, 0.999))
@pytest.mark.parametrize(("size", "spread"), [(50, 1.0), (5000, 1.0), (5000, 0.1)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(size, spread, seed, p):
    logits_V = random_logits(seed, size).double() * spread
    probabilities = softmax(logits_V.numpy().astype(np.float64))
    order = np.argsort(-probabilities)
    expected, total = set(), 0.0
    for token in order:
        expected.add(int(token))
        total += probabilities[token]
        if total >= p:
            break
    assert kept(keep_top_p(logits_V, p)) == expected


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, p=st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(seed, p):
    logits_V = random_logits(seed)
    probabilities = softmax(logits_V.numpy())
    expected = {i for i, value in enumerate(probabilities) if value >= np.float32(p) * probabilities.max()}
    assert kept(keep_min_p(logits_V, p)) ^ expected <= {
        i for i, value in enumerate(probabilities) if np.isclose(value, p * probabilities.max(), rtol=1e-5)
    }


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, penalty=st.floats(0.1, 5.0), history=st.lists(st.integers(0, 49), max_size=20))
def test_repetition_penalty_is_that_of_ctrl(seed, penalty, history):
    logits_V = random_logits(seed)
    before = logits_V.clone()
    expected = logits_V.numpy().copy()
    for token in set(history):
        expected[token] = expected[token] / penalty if expected[token] > 0 else expected[token] * penalty
    np.testing.assert_allclose(penalize_repetition(logits_V, history, penalty).numpy(), expected, rtol=1e-6)
    assert torch.equal(logits_V, before), "the logits given are not changed"


def test_a_certain_token_survives_every_filter():
    logits_V = torch.full((10,), -torch.inf)
    logits_V[3] = 1.0
    for result_V in (keep_top_k(logits_V, 1), keep_top_p(logits_V, 1e-6), keep_min_p(logits_V, 1.0)):
        assert kept(result_V) == {3}


def test_the_filters_together_are_hugging_faces():
    from transformers.generation import logits_process

    options = GenerateSettings(temperature=0.7, top_k=30, top_p=0.9, min_p=0.02, repetition_penalty=1.3)
    for seed in range(20):
        logits_V, history = random_logits(seed, 200), [seed, 3, 3, 199]
        theirs_BV, ids_BT = logits_V[None].clone(), torch.tensor([history])
        for process in (
            logits_process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
            logits_process.TemperatureLogitsWarper(options.temperature),
            logits_process.TopKLogitsWarper(options.top_k),
            logits_process.TopPLogitsWarper(options.top_p),
            logits_process.MinPLogitsWarper(options.min_p),
        ):
            theirs_BV = process(ids_BT, theirs_BV)
        drawn = torch.multinomial(theirs_BV[0].softmax(-1), 1, generator=torch.Generator().manual_seed(seed))
        assert choose(logits_V, history, [], options, torch.Generator().manual_seed(seed)) == int(drawn)


def test_every_control_together_is_hugging_faces():
    from transformers.generation import logits_process

    bias = {4: 3.0, 5: -2.5}
    options = GenerateSettings(
        temperature=0.8,
        top_p=1.0,
        typical_p=0.7,
        repetition_penalty=1.2,
        no_repeat_ngram=3,
        logit_bias=bias,
        min_tokens=4,
    )
    for seed in range(20):
        prompt, answer = [7, 8, 9, seed, 3], [7, 8]
        # Token 9 would repeat three tokens, and is the likeliest.
        logits_V = random_logits(seed, 200).index_fill(0, torch.tensor([9]), 20.0)
        theirs_BV, ids_BT = logits_V[None].clone(), torch.tensor([[*prompt, *answer]])
        for process in (
            logits_process.SequenceBiasLogitsProcessor([[[i], value] for i, value in bias.items()]),
            logits_process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty),
            logits_process.NoRepeatNGramLogitsProcessor(options.no_repeat_ngram),
            logits_process.MinNewTokensLengthLogitsProcessor(len(prompt), options.min_tokens, [199, 198]),
            logits_process.TemperatureLogitsWarper(options.temperature),
            logits_process.TypicalLogitsWarper(options.typical_p),
        ):
            theirs_BV = process(ids_BT, theirs_BV)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(theirs_BV[0].softmax(-1), 1, generator=generator)
        ours = choose(logits_V, prompt, answer, options, torch.Generator().manual_seed(seed), [199, 198])
        assert ours == int(drawn)


def test_frequency_and_presence_count_the_continuation():
    logits_V = torch.tensor([1.0, 2.0, 3.0])
    expected = torch.tensor([1.0, 2.0 - 0.25 - 0.5, 3.0 - 2 * 0.25 - 0.5])
    assert torch.equal(penalize_frequency(logits_V, [2, 1, 2], 0.25, 0.5), expected)
    greedy = GenerateSettings(temperature=0.0, presence_penalty=2.0)
    generator = torch.Generator()
    assert choose(logits_V, [2], [], greedy, generator) == 2
    assert choose(logits_V, [], [2], greedy, generator) == 1


@pytest.mark.parametrize(
    ("ids", "length", "banned"),
    [([1, 2, 1], 2, [2]), ([1, 2, 3, 1, 2], 3, [3]), ([1, 2], 3, []), ([5, 5], 1, [5]), ([1, 2, 1, 3, 1], 2, [2, 3])],
)
def test_what_would_repeat_is_found(ids, length, banned):
    assert repeats(ids, length) == banned


def test_a_text_continues_when_everything_is_banned():
    logits_V = torch.tensor([0.5, 1.0])
    settings = GenerateSettings(temperature=0.0, no_repeat_ngram=1)
    assert choose(logits_V, [0, 1], [], settings, torch.Generator()) == 1


def test_a_bias_for_an_id_that_is_not_there_has_no_effect():
    logits_V = torch.tensor([0.5, 1.0])
    settings = GenerateSettings(temperature=0.0, logit_bias={0: 5.0, 7: 100.0})
    assert choose(logits_V, [], [], settings, torch.Generator()) == 0


def test_temperature_zero_is_greedy_after_the_penalty():
    logits_V = torch.tensor([1.0, 5.0, 4.9])
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert choose(logits_V, [], [], GenerateSettings(temperature=0.0), generator) == 1
    assert choose(logits_V, [1], [], GenerateSettings(temperature=0.0, repetition_penalty=1.5), generator) == 2
    assert torch.equal(generator.get_state(), state), "greedy draws nothing"


def test_draws_follow_the_probabilities():
    logits_V = torch.tensor([0.6, 0.3, 0.1]).log()
    options = GenerateSettings(temperature=1.0, top_p=1.0)
    generator = torch.Generator().manual_seed(0)
    counts = np.bincount([choose(logits_V, [], [], options, generator) for _ in range(3000)], minlength=3)
    np.testing.assert_allclose(counts / 3000, [0.6, 0.3, 0.1], atol=0.03)


@pytest.mark.parametrize(
    "value",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"typical_p": 0.0},
        {"frequency_penalty": 2.1},
        {"presence_penalty": float("nan")},
        {"no_repeat_ngram": -1},
        {"logit_bias": {3: 101.0}},
        {"logit_bias": {-3: 1.0}},
        {"min_tokens": 201},
        {"stop_token_ids": (-1,)},
        {"n": 0},
        {"beyond": "ignore"},
        {"logprobs": 21},
        {"stop": ("", "x")},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=next(iter(value))):
        GenerateSettings(**value)
