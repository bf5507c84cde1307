"""Optimizers: equal to their references, decaying only what should, and restored bit for bit."""

import weakref

import pytest
import torch

from packtrain.config.optim import OptimConfig
from packtrain.optim.build import build_optimizer, export_state, import_state, set_learning_rate, set_pace

NAMES = ["adamw", "adamw8bit", "adamw4bit", "muon", "normuon"]


@pytest.fixture(autouse=True)
def _libraries(request):
    for name, library in (("adamw8bit", "bitsandbytes"), ("adamw4bit", "torchao")):
        if name in request.node.name:
            pytest.importorskip(library)


def make(name, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.Linear(256, 64))
    roles = {n: "matrix" if n.endswith("weight") else "bias" for n, _ in model.named_parameters()}
    return model, build_optimizer(OptimConfig(name=name, **settings), dict(model.named_parameters()), roles)


def step(model, optimizer, seed):
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def state_bytes(optimizer):
    return sum(tensor.nbytes for tensor in export_state(optimizer)[0].values())


def test_adamw_is_the_paper():
    model, optimizer = make("adamw", lr=0.01, weight_decay=0.1)
    theta = {n: p.detach().clone() for n, p in model.named_parameters()}
    mean = {n: torch.zeros_like(p) for n, p in theta.items()}
    square = {n: torch.zeros_like(p) for n, p in theta.items()}
    for t in range(1, 6):
        x = torch.randn(8, 128, generator=torch.Generator().manual_seed(t))
        model(x).square().mean().backward()
        for n, p in model.named_parameters():
            mean[n] = 0.9 * mean[n] + 0.1 * p.grad
            square[n] = 0.95 * square[n] + 0.05 * p.grad**2
            decay = 0.1 if n.endswith("weight") else 0.0
            update = (mean[n] / (1 - 0.9**t)) / ((square[n] / (1 - 0.95**t)).sqrt() + 1e-8)
            theta[n] = theta[n] - 0.01 * (decay * theta[n] + update)
        optimizer.step()
        optimizer.zero_grad()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), theta[n], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_only_matrices_decay(name):
    model, optimizer = make(name, lr=0.1, weight_decay=0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in model.named_parameters():
        expected = before[n] * 0.95 if n.endswith("weight") else before[n]
        torch.testing.assert_close(p.detach(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back_bit_for_bit(name):
    model, optimizer = make(name)
    for seed in range(10):
        step(model, optimizer, seed)
    other, first = make(name)
    for seed in range(5):
        step(other, first, seed)
    tensors, numbers = export_state(first)
    saved = {key: value.clone() for key, value in tensors.items()}
    again, second = make(name)
    again.load_state_dict(other.state_dict())
    import_state(second, saved, numbers)
    for seed in range(5, 10):
        step(again, second, seed)
    assert torch.equal(weights(model), weights(again))


@pytest.mark.parametrize(("name", "share", "likeness"), [("adamw8bit", 0.27, 0.99), ("adamw4bit", 0.15, 0.95)])
def test_low_bits_take_a_part_of_the_memory_and_go_the_same_way(name, share, likeness):
    model, optimizer = make("adamw")
    small, low = make(name)
    start = weights(model).clone()
    for seed in range(20):
        step(model, optimizer, seed)
        step(small, low, seed)
    assert state_bytes(low) < share * state_bytes(optimizer)
    moved, moved_low = weights(model) - start, weights(small) - start
    assert torch.cosine_similarity(moved, moved_low, dim=0) > likeness


def test_slices_of_an_8_bit_update_change_no_bit():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from packtrain.optim.adamw8bit import SlicedAdamW8bit
    from packtrain.optim.blocks import SLICE

    start = torch.randn(1100, 1001, generator=torch.Generator().manual_seed(0))
    assert start.numel() > SLICE
    whole, sliced = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizers = bitsandbytes.optim.AdamW8bit([whole], **settings), SlicedAdamW8bit([sliced], **settings)
    for seed in range(3):
        gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
        for parameter, optimizer in zip((whole, sliced), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(whole, sliced)
    states = [optimizer.state[parameter] for parameter, optimizer in zip((whole, sliced), optimizers, strict=True)]
    for entry in ("state1", "state2", "absmax1", "absmax2"):
        assert torch.equal(states[0][entry], states[1][entry])
    assert states[0]["step"] == states[1]["step"]


def test_slices_of_a_4_bit_update_change_no_bit(monkeypatch):
    pytest.importorskip("torchao")
    from packtrain.optim import blocks

    whole, first = make("adamw4bit", lr=0.01)
    sliced, second = make("adamw4bit", lr=0.01)
    for seed in range(3):
        step(whole, first, seed)
        monkeypatch.setattr(blocks, "SLICE", 1280)  # the last slice of 128 x 256 is shorter
        step(sliced, second, seed)
        monkeypatch.undo()
    assert torch.equal(weights(whole), weights(sliced))
    states, others = export_state(first)[0], export_state(second)[0]
    assert states.keys() == others.keys() and "0.weight/exp_avg.codes" in states
    assert all(torch.equal(tensor, others[key]) for key, tensor in states.items())


@pytest.mark.very_slow
@pytest.mark.filterwarnings("ignore:OptimState4bit does not implement")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_4_bit_update_that_is_compiled_as_on_a_gpu_is_the_eager_one():
    """By this machine's compiler, but for float32's rounding."""
    pytest.importorskip("torchao")
    from torchao.optim.adam import single_param_adam

    compiled = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
    ends = []
    for update in (single_param_adam, compiled):
        model, optimizer = make("adamw4bit", lr=0.01)
        for seed in range(3):
            model(torch.randn(8, 128, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
            with torch.no_grad():
                for group in optimizer.param_groups:
                    for p in group["params"]:
                        optimizer._step_one(p, group, update)
            optimizer.zero_grad()
        ends.append((weights(model), export_state(optimizer)[0]))
    (eager, states), (other, others) = ends
    torch.testing.assert_close(other, eager, rtol=0, atol=1e-6)
    for key, tensor in states.items():
        if tensor.dtype == torch.uint8:
            # One that lies on the border of two codes may fall into either.
            assert (others[key] != tensor).float().mean() < 0.01
        else:
            torch.testing.assert_close(others[key], tensor, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "updated_before"),
    [
        ("adamw8bit", [1, 2, 3, 4]),
        ("adamw4bit", [1, 2, 3, 4]),
        ("muon", [0, 1, 2, 3]),
        ("normuon", [0, 1, 2, 3]),
    ],  # Muon's: with the momentum
)
def test_a_gradient_goes_when_its_parameter_is_updated(name, updated_before):
    parameters = {f"matrix{n}": torch.nn.Parameter(torch.randn(64, 64)) for n in range(4)}
    optimizer = build_optimizer(OptimConfig(name=name), parameters, dict.fromkeys(parameters, "matrix"))
    start = {key: p.detach().clone() for key, p in parameters.items()}
    updated = []

    def gone():
        updated.append(sum(not torch.equal(p, start[key]) for key, p in parameters.items()))

    for p in parameters.values():
        p.grad = torch.ones_like(p)
        weakref.finalize(p.grad, gone)
    optimizer.step()
    assert updated == updated_before


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_reaches_every_group(name):
    _, optimizer = make(name)
    set_learning_rate(optimizer, 0.123)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.123, 0.123])


def test_what_is_left_of_an_earlier_state_goes():
    model, optimizer = make("adamw")
    step(model, optimizer, 0)
    import_state(optimizer, {}, {})
    assert export_state(optimizer) == ({}, {})


@pytest.mark.parametrize("name", NAMES)
def test_states_made_early_are_those_of_the_first_step(name):
    model, optimizer = make(name)
    early_model, early = make(name)
    early.make_states()
    assert bool(early.state) == (name == "adamw")
    for seed in range(3):
        step(model, optimizer, seed)
        step(early_model, early, seed)
    assert torch.equal(weights(model), weights(early_model))
    tensors, numbers = export_state(optimizer)
    early_tensors, early_numbers = export_state(early)
    assert early_tensors.keys() == tensors.keys() and early_numbers == numbers
    assert all(torch.equal(early_tensors[key], tensors[key]) for key in tensors)
    assert all(early_tensors[key].dtype == tensors[key].dtype for key in tensors)


ROLES = {"e": "embedding", "m": "matrix", "o": "output", "n": "norm", "b": "bias"}


@pytest.mark.parametrize("name", NAMES)
def test_each_role_has_its_learning_rate_and_decay(name):
    """With a gradient of zeros, a step only decays: by the product of both."""
    rates, decays = (
        {"matrix": 1.5, "embedding": 2, "output": 0.5, "norm": 3},
        {"embedding": 0, "output": 4, "norm": 0.5},
    )
    config = OptimConfig(
        name=name, lr=0.1, weight_decay=0.2, decay_schedule="cosine", lr_scale=rates, decay_scale=decays
    )
    parameters = {key: torch.nn.Parameter(torch.ones(8, 16)) for key in ROLES}
    optimizer = build_optimizer(config, parameters, ROLES)
    set_pace(optimizer, config, 5, 10, lr=0.05)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    # Half of the decay is left in the middle of the run.
    products = {"e": 2 * 0, "m": 1.5 * 1, "o": 0.5 * 4, "n": 3 * 0.5, "b": 3 * 0.5}
    for key, p in parameters.items():
        torch.testing.assert_close(p.detach(), torch.full((8, 16), 1 - 0.05 * 0.2 / 2 * products[key]))


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon"])
@pytest.mark.parametrize("role", ["matrix", "embedding"])
def test_cautious_decay_is_where_update_and_weight_agree(name, role):
    """Against an optimizer without decay, whose move is the update."""
    cautious, plain = (
        OptimConfig(name=name, lr=0.01, weight_decay=decay, cautious_decay=decay > 0) for decay in (0.5, 0.0)
    )
    weights = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    expected, agreed = weights.clone(), []
    ours = torch.nn.Parameter(weights.clone())
    optimizer = build_optimizer(cautious, {"w": ours}, {"w": role})
    other = torch.nn.Parameter(weights.clone())
    reference = build_optimizer(plain, {"w": other}, {"w": role})
    for seed in range(4):
        gradient = torch.randn(16, 24, generator=torch.Generator().manual_seed(seed + 1))
        ours.grad, other.grad = gradient.clone(), gradient.clone()
        before = other.detach().clone()
        optimizer.step()
        reference.step()
        move = other.detach() - before
        agrees = -move * expected >= 0
        expected = expected - 0.01 * 0.5 * expected * agrees + move
        agreed.append(agrees.float().mean().item())
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-5, atol=1e-6)
    assert all(0.2 < share < 0.8 for share in agreed)


def test_cautious_decay_needs_whole_states():
    with pytest.raises(ValueError, match=r"optim\.cautious_decay=true needs float32 states.*write optim\.name=adamw"):
        OptimConfig(name="adamw8bit", cautious_decay=True)
