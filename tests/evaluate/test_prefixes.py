"""Whether sequences that share their beginnings have the scores that each of them has alone."""

import random

import pytest
import torch

from packtrain.evaluate import prefixes
from packtrain.evaluate.prefixes import Request, Score, score_continuations
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.llama import Llama


def naive(model: Llama, request: Request) -> Score:
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([list(request.inputs)]))[0].double(), -1)
    logs = logs[len(logs) - len(request.targets) :]
    targets = torch.tensor(list(request.targets), dtype=torch.long)
    return Score(float(logs.gather(1, targets[:, None]).sum()), bool((logs.argmax(-1) == targets).all()))


def requests_of_tasks(size: int) -> list[Request]:
    """Questions with a few examples in common, four answers each, some of one token and some alike; texts without a context."""
    draw = random.Random(1)

    def words(count: int) -> list[int]:
        return [draw.randrange(size) for _ in range(count)]

    examples, made = words(20), []
    for _ in range(12):
        question = [*examples, *words(draw.randint(1, 9))]
        answers = [words(draw.choice((1, 1, 3, 7))) for _ in range(3)]
        for answer in [*answers, answers[0]]:
            made.append(Request([*question, *answer][:-1], answer))
    for length in (1, 2, 40, 90):
        text = words(length)
        made.append(Request([0, *text[:-1]], text))
    return made


@pytest.mark.parametrize("row_nodes", [1, 50, 4096])
def test_scores_are_those_of_each_sequence_alone(model: Llama, monkeypatch: pytest.MonkeyPatch, row_nodes: int) -> None:
    monkeypatch.setattr(prefixes, "_ROW_NODES", row_nodes)
    monkeypatch.setattr(prefixes, "_PASS_NODES", 300)
    use_cpu_kernels(model)
    given = requests_of_tasks(model.config.vocab_rows)
    # So that some answers are the likeliest ones.
    with torch.no_grad():
        likeliest = int(model(torch.tensor([list(given[0].inputs)]))[0, -1].argmax())
    given.append(Request(given[0].inputs, [likeliest]))
    reports: list[tuple[int, int]] = []
    found = score_continuations(model, given, on_progress=lambda done, total: reports.append((done, total)))
    expected = [naive(model, request) for request in given]
    assert [score.log_probability for score in found] == pytest.approx([e.log_probability for e in expected], abs=1e-4)
    assert [score.is_greedy for score in found] == [e.is_greedy for e in expected]
    assert found[-1].is_greedy
    assert reports[-1] == (len(given), len(given))


def test_what_is_shared_is_computed_once(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    whole = prefixes.hidden_states

    def count(model, tokens_BT, **options):
        computed.append(tokens_BT.numel())
        return whole(model, tokens_BT, **options)

    monkeypatch.setattr(prefixes, "hidden_states", count)
    shared = list(range(100))
    score_continuations(model, [Request([*shared, first, 7], [7]) for first in range(30)])
    assert sum(computed) == 100 + 30 * 2
