"""Decides whether a model learns: its first loss, the gradient of each parameter, and one batch learned by heart."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from packtrain.config.data import IGNORE_INDEX
from packtrain.config.model import ModelConfig
from packtrain.doctor.finding import Finding, fault
from packtrain.doctor.trial import MOST_STEPS, Trial
from packtrain.model.llama import Llama
from packtrain.optim.build import set_learning_rate
from packtrain.train.step import Precision, train_step

TOLERANCE = 0.05
"""How far from ln(vocabulary) the first loss may be, as a share of it."""
GRADIENT_STEPS = 3
_NAMED = 4


@dataclass
class Lesson:
    """What happened while one batch was learned."""

    target: float
    """The loss to fall below: half the entropy of the batch's own tokens, in nats per token."""
    losses: list[float] = field(default_factory=list)
    with_gradient: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    """Parameters that the first update changed."""
    names: list[str] = field(default_factory=list)
    skipped: str | None = None

    @property
    def is_learned(self) -> bool:
        return bool(self.losses) and self.losses[-1] < self.target


@torch.no_grad()
def measure_loss(model: Llama, trial: Trial, precision: Precision) -> float:
    """The mean loss of a model on the trial's batch, in nats per token."""
    device = next(model.parameters()).device
    rows = trial.batch.rows.to(device)
    with precision.autocast():
        total = model(rows.inputs_BT, rows.targets_BT, segments_BT=rows.segments_BT, positions_BT=rows.positions_BT)
    return float(total) / trial.batch.num_targets


def check_first_loss(loss: float, model: ModelConfig, shape: str) -> Finding:
    """A new model knows nothing, so it must lose what a uniform guess loses: ln(vocabulary)."""
    name, expected = "loss at step 0", math.log(model.vocab_rows)
    says = f"{loss:.3f} on {shape}; ln({model.vocab_rows:,}) is {expected:.3f}"
    if abs(loss - expected) <= TOLERANCE * expected:
        return Finding(name, "ok", f"{says}, {loss / expected - 1:+.1%}")
    if loss < expected:
        fix = "look for a model that sees its targets, or weights that are not initial ones"
    else:
        fix = _advise_on_range(model)
    return fault(name, f"{says}: {loss / expected - 1:+.1%}, and more than {TOLERANCE:.0%} apart", fix)


def _advise_on_range(model: ModelConfig) -> str:
    """Which setting makes the first logits large: the one that the output projection's standard deviation comes from."""
    own = model.embedding_range if model.tie_word_embeddings else None
    name, size = ("initializer_range", model.initializer_range) if own is None else ("embedding_range", own)
    advice = f"lower model.{name}={size:g} (0.02 is usual), or look at the initial weights"
    if model.init == "zero_out" and model.tie_word_embeddings:
        # Every block begins as the identity, so the last hidden state is the embedding of the token that was read.
        return f"write model.tie_word_embeddings=false, because with model.init=zero_out it predicts what it reads, or {advice}"
    return advice


def learn_batch(trial: Trial) -> Lesson:
    """Trains on one batch at the run's highest learning rate, until it is learned or MOST_STEPS are over."""
    parts, config = trial.parts, trial.parts.config
    lesson = Lesson(entropy(trial.batch.rows.targets_BT) / 2)
    parameters = dict(parts.model.named_parameters())
    lesson.names = list(parameters)
    before: dict[str, Tensor] | None = {name: p.detach().clone() for name, p in parameters.items()}

    def note_gradients() -> None:
        if len(lesson.losses) < GRADIENT_STEPS:
            lesson.with_gradient |= {n for n, p in parameters.items() if p.grad is not None and bool(p.grad.any())}

    set_learning_rate(parts.optimizer, config.optim.lr)
    while len(lesson.losses) < MOST_STEPS and not lesson.is_learned:
        result = train_step(
            parts.trained,
            parts.optimizer,
            trial.batch,
            parts.placement,
            grad_clip=config.train.grad_clip,
            z_loss=config.train.z_loss,
            before_update=note_gradients,
        )
        if not result.is_applied:
            lesson.skipped = (
                f"loss {result.loss:g}, gradient norm {result.grad_norm:g} at step {len(lesson.losses) + 1}"
            )
            break
        lesson.losses.append(result.loss)
        if before is not None:
            lesson.moved = {name for name, p in parameters.items() if not torch.equal(p.detach(), before[name])}
            before = None
    return lesson


def check_gradients(lesson: Lesson) -> Finding:
    """Whether each parameter had a gradient that is not zero within the first steps."""
    name, steps = "gradients", min(GRADIENT_STEPS, max(1, len(lesson.losses)))
    if lesson.skipped and not lesson.with_gradient:
        return fault(
            name,
            f"loss or gradient is not finite ({lesson.skipped})",
            "lower optim.lr, or write train.precision=fp32 to see whether the precision is why",
        )
    dead = [each for each in lesson.names if each not in lesson.with_gradient]
    if dead:
        return fault(
            name,
            f"{len(dead)} of {len(lesson.names)} parameters had no gradient, or only zeros, in {steps} steps: {_list(dead)}",
            "look for weights that are frozen (requires_grad), detached from the loss, or multiplied by zero",
        )
    return Finding(name, "ok", f"each of {len(lesson.names)} parameters has one that is not zero within {steps} steps")


def check_overfit(lesson: Lesson, trial: Trial) -> Finding:
    """Whether one batch was learned by heart: a model that ignores its input reaches only the entropy of the batch's tokens."""
    name, lr = "one batch", trial.parts.config.optim.lr
    goal = f"below {lesson.target:.2f} nats, half the entropy of its tokens"
    first = lesson.losses[0] if lesson.losses else math.nan
    if lesson.skipped:
        return fault(
            name,
            f"not learned: {lesson.skipped}, on {trial.shape}",
            f"lower optim.lr={lr:g}, or write train.precision=fp32 to see whether the precision is why",
        )
    steps, last = len(lesson.losses), lesson.losses[-1]
    if lesson.is_learned:
        return Finding(
            name, "ok", f"learned by heart in {steps} steps: loss {first:.2f} to {last:.2f}, {goal}; {trial.shape}"
        )
    still = [each for each in lesson.names if each not in lesson.moved]
    says = f"not learned in {steps} steps: loss {first:.2f} to {last:.2f}, and not {goal}; {trial.shape}"
    if still:
        says += f"; the optimizer left {len(still)} of {len(lesson.names)} parameters as they were: {_list(still)}"
        return fault(name, says, f"raise optim.lr={lr:g}, or look at what the optimizer is given")
    change = "lower" if last > first else "raise"
    return fault(name, says, f"{change} optim.lr={lr:g}; the preset nearest in size has one that works")


def entropy(targets_BT: Tensor) -> float:
    """Entropy of the targets' own frequencies, in nats: what is lost by a guess that knows only how often each occurs."""
    counts = torch.unique(targets_BT[targets_BT != IGNORE_INDEX], return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log()).sum())


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
