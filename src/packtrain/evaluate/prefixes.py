"""Decides how many continuations are scored at once: what they have in common is computed a single time.

The requests of a task begin alike: a question before each of its answers, examples before each question. Sorted by their tokens,
neighbours share their beginnings, and become trees: a token is a node, and attends to the nodes on its way from the root, itself
included. Several trees fill a row. A node is at the position that its token has in each of the sequences, so the result is that
of each sequence alone (Medusa, arXiv 2401.10774, section 2.1.2, uses such masks for candidates of one text).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from packtrain.evaluate.scores import hidden_states, rank_targets
from packtrain.model.llama import Llama

# Nodes of a row. Attention takes the square of it, and shorter rows cut more beginnings in two.
_ROW_NODES = 256
_PASS_NODES = 4096


class Request(NamedTuple):
    """A sequence of at least one input, and the targets that follow its last inputs."""

    inputs: Sequence[int]
    targets: Sequence[int]
    """The last of them follows the last input; there are at most as many as inputs."""


class Score(NamedTuple):
    log_probability: float
    """In nats, summed over the targets."""
    is_greedy: bool
    """Whether each target is the likeliest token at its place."""


@dataclass
class _Row:
    """Trees of a row: the token and position of each node, and whom it attends to."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    members: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """Each request by its number, with the nodes of its inputs."""
    spans: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    """Nodes first..last - 1 that continue a way from a root."""
    is_tree: bool = False
    """Whether anything but plain causal attention over one sequence is in it."""

    def add(self, number: int, inputs: Sequence[int], shared: int) -> None:
        """A request whose first `shared` inputs are those of the one before."""
        way = self.members[-1][1][:shared] if shared else np.zeros(0, dtype=np.int64)
        first = len(self.tokens)
        self.is_tree |= first > 0 and shared < len(self.members[-1][1]) and shared < len(inputs)
        self.is_tree |= first > 0 and not shared
        self.tokens += inputs[shared:]
        self.positions += range(shared, len(inputs))
        self.spans.append((first, len(self.tokens), way))
        self.members.append((number, np.concatenate([way, np.arange(first, len(self.tokens))])))

    def mask(self, size: int) -> np.ndarray:
        """Which nodes each attends to, bool[size, size]. One that is padding attends to itself."""
        sees = np.eye(size, dtype=bool)
        for first, last, way in self.spans:
            sees[first:last, way] = True
            sees[first:last, first:last] = np.tri(last - first, dtype=bool)
        return sees


def score_continuations(
    model: Llama, requests: Sequence[Request], *, on_progress: Callable[[int, int], None] | None = None
) -> list[Score]:
    """The score of each request, in their order. Draws no random number. Raises NonFiniteError for damaged weights."""
    scores: list[Score | None] = [None] * len(requests)
    done = 0
    for rows in _passes(_rows(requests)):
        for number, score in _score(model, rows, requests):
            scores[number] = score
            done += 1
        if on_progress is not None:
            on_progress(done, len(requests))
    return [score for score in scores if score is not None]


def _rows(requests: Sequence[Request]) -> list[_Row]:
    order = sorted(range(len(requests)), key=lambda number: tuple(requests[number].inputs))
    rows: list[_Row] = []
    before: Sequence[int] = ()
    for number in order:
        inputs = requests[number].inputs
        shared = _count_shared(before, inputs)
        row = rows[-1] if rows else None
        # A row grows beyond the usual only for sequences that would mostly be computed again elsewhere.
        most = _ROW_NODES if 2 * shared < len(inputs) else _ROW_NODES + 2 * len(inputs)
        if row is None or len(row.tokens) + len(inputs) - shared > most:
            row = _Row()
            rows.append(row)
            shared = 0
        row.add(number, inputs, shared)
        before = inputs
    return rows


def _count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def _passes(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of about the same length together, the longest first, so that a lack of memory shows at once."""
    waiting: list[_Row] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if waiting and (len(waiting) + 1) * len(waiting[0].tokens) > _PASS_NODES:
            yield waiting
            waiting = []
        waiting.append(row)
    if waiting:
        yield waiting


@torch.no_grad()
def _score(model: Llama, rows: list[_Row], requests: Sequence[Request]) -> Iterator[tuple[int, Score]]:
    device = model.lm_head.weight.device
    size = len(rows[0].tokens)
    tokens, positions = (np.zeros((len(rows), size), dtype=np.int64) for _ in range(2))
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = row.tokens
        positions[index, : len(row.tokens)] = row.positions
    tokens_BT = torch.from_numpy(tokens).to(device)
    if any(row.is_tree for row in rows):
        mask = torch.from_numpy(np.stack([row.mask(size) for row in rows])[:, None]).to(device)
        hidden_BTD = hidden_states(model, tokens_BT, positions_BT=torch.from_numpy(positions).to(device), mask=mask)
    else:
        hidden_BTD = hidden_states(model, tokens_BT)

    numbers = [number for row in rows for number, _ in row.members]
    places = [
        index * size + nodes[len(nodes) - len(requests[number].targets) :]
        for index, row in enumerate(rows)
        for number, nodes in row.members
    ]
    of_pair = np.repeat(np.arange(len(places)), [len(place) for place in places])
    place_P = np.concatenate(places)
    target_P = np.concatenate([np.asarray(requests[number].targets, dtype=np.int64) for number in numbers])
    order = np.argsort(place_P, kind="stable")
    # Only the places where something is asked for have logits, each once.
    needed, at_P = np.unique(place_P[order], return_inverse=True)
    hidden_ND = hidden_BTD.flatten(0, 1)[torch.from_numpy(needed).to(device)]
    logs_P, best_P = rank_targets(
        model, hidden_ND, torch.from_numpy(at_P).to(device), torch.from_numpy(target_P[order]).to(device)
    )
    sums = np.bincount(of_pair[order], weights=logs_P.double().numpy(), minlength=len(places))
    misses = np.bincount(of_pair[order], weights=(~best_P).numpy(), minlength=len(places))
    for number, total, missed in zip(numbers, sums.tolist(), misses.tolist(), strict=True):
        yield number, Score(total, missed == 0)
