"""RaT-BPTT: its step against independent code, windows and their rules, labels, memory, the recipe's batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.protocols import PROTOCOLS
from benchmarks.training import draw_balanced, train
from harness.measure.counters import count
from methods import rat_bptt
from methods._windows import Policy, Stages, changes, early_window, late_window
from methods.checks import tiny_task
from methods.rat_bptt import RaTBPTT, RaTBPTTConfig, clipped

SETTINGS: dict[str, Any] = {"unroll": 5, "window": 3, "change": 1, "batch_size": 40, "batch_syn": 4}


def method(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> RaTBPTT:
    return RaTBPTT(tiny_task(seed, dtype), RaTBPTTConfig(**{**SETTINGS, **changes}), total_steps=5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the step


class Smooth(torch.nn.Module):
    """Two layers without kinks, whose every gradient is far from 0: Adam magnifies the rounding of a small one."""

    first: Tensor
    bias: Tensor
    head: Tensor

    def __init__(self, draws: torch.Generator) -> None:
        super().__init__()
        shapes = {"first": (6, 64), "bias": (6,), "head": (3, 6)}
        for name, shape in shapes.items():
            values = 0.3 * torch.randn(shape, generator=draws, dtype=torch.float64)
            self.register_parameter(name, torch.nn.Parameter(values))

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(F.softplus(F.linear(images.flatten(1), self.first, self.bias)), self.head)

    def map_size(self, height: int, width: int) -> int:
        return 6


def adam_by_hand(
    net: torch.nn.Module, batches: list[tuple[Tensor, Tensor]], lr: float, before: int, faithful: bool
) -> dict[str, Tensor]:
    """Parameters after Adam on ``batches``, tensor by tensor; constants for the first ``before`` steps."""
    values = {name: parameter.detach().requires_grad_() for name, parameter in net.named_parameters()}
    mean = {name: torch.zeros_like(value) for name, value in values.items()}
    square = copy.deepcopy(mean)
    for index, (images, labels) in enumerate(batches):
        t = index + 1
        log_p = functional_call(net, values, (images,)).log_softmax(1)
        loss = -(labels * log_p).sum() / len(images)
        gradients = torch.autograd.grad(loss, list(values.values()), create_graph=True)
        for name, g in zip(values, gradients, strict=True):
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.999 * square[name] + 0.001 * g**2
            root = square[name] ** 0.5
            if faithful and index >= before:
                change = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * mean[name] / (root + 1e-8)
            else:
                change = lr * (mean[name] / (1 - 0.9**t)) / (root / (1 - 0.999**t) ** 0.5 + 1e-8)
            values[name] = values[name] - change
        if index < before:
            for state in (values, mean, square):
                state.update({name: tensor.detach() for name, tensor in state.items()})
            values = {name: value.requires_grad_() for name, value in values.items()}
    return values


@pytest.mark.parametrize("form", ["exact", "faithful"])
@pytest.mark.parametrize("rematerialize", [False, True])
def test_steps_are_those_of_code_that_shares_nothing(form: str, rematerialize: bool) -> None:
    """Draws in order, augmentation, M and W, Adam inside, the clip on the images alone, Adam outside, labels from 0."""
    made = method(
        inner_optimiser=form, rematerialize=rematerialize, learn_label=True, lr=0.03, lr_inner=0.01, batch_size=25
    )
    object.__setattr__(made.task, "network", Smooth)
    draws = torch.Generator()
    draws.set_state(made.task.generator.get_state())
    images, labels = made.images.clone().requires_grad_(), made.labels.clone().requires_grad_()
    outer = torch.optim.Adam([images, labels], lr=0.03)
    average, start, norms = None, 0, []
    for step in range(4):
        net = Smooth(draws)
        if step % 3 == 0:  # 60 real images are three batches
            start = int(torch.randint(3, (), generator=draws))
        rows = [draw_balanced(torch.tensor([0, 0, 1, 1, 2, 2]), 4, draws) for _ in range(start + 3)]
        angles = [draw_dsa((8, 8), 3, draws, flip=False, strategy="rotate")[1] for _ in rows]
        index = torch.randperm(60, generator=draws)[:25]
        real = apply_dsa(
            "rotate", made.task.images[index], draw_dsa((8, 8), 25, draws, flip=False, strategy="rotate")[1]
        )
        batches = [(apply_dsa("rotate", images[own], a), labels[own]) for own, a in zip(rows, angles, strict=True)]
        trained = adam_by_hand(net, batches, 0.01, start, form == "faithful")
        loss = F.cross_entropy(functional_call(net, trained, (real,)), made.task.labels[index])
        images.grad, labels.grad = torch.autograd.grad(loss, [images, labels])
        norm = float(images.grad.square().sum()) ** 0.5
        average = norm if average is None else average - 0.1 * (average - norm)
        norms.append((norm, average))
        images.grad *= min(1, 2 * average / (norm + 1e-6))
        outer.step()
        labels.data = labels.data.clip(min=0)
        torch.testing.assert_close(made.step()["loss"], loss.detach(), rtol=1e-8, atol=0)
    found = made.synthetic()
    torch.testing.assert_close(found.images, images.detach(), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.labels, labels.detach(), rtol=0, atol=1e-8)
    assert (
        found.label_space == "weighted" and (found.labels == 0).any() and (found.labels.sum(1) - 1).abs().max() > 0.01
    )


def test_the_clip_is_at_twice_the_average_of_the_norms() -> None:
    gradient = torch.full((4,), 0.5, dtype=torch.float64)  # of norm 1
    first, average = clipped(gradient, None)
    assert torch.equal(first, gradient) and float(average) == 1.0
    second, average = clipped(4 * gradient, average)
    assert float(average) == pytest.approx(1.3) and float(second.norm()) == pytest.approx(2.6, rel=1e-5)
    third, average = clipped(2 * gradient, average)
    assert float(average) == pytest.approx(1.37) and torch.equal(third, 2 * gradient)


def test_images_start_on_the_unit_sphere_or_from_real_ones() -> None:
    noise, real = method(), method(init="real")
    torch.testing.assert_close(noise.images.flatten(1).norm(dim=1), torch.ones(6, dtype=torch.float64))
    assert (real.images[:, None] == real.task.images).flatten(2).all(2).any(1).all()
    noise.step()
    assert (noise.images.flatten(1).norm(dim=1) - 1).abs().max() > 1e-4


def test_hard_labels_are_probabilities_and_stay() -> None:
    made = method()
    made.step()
    found = made.synthetic()
    assert found.label_space == "probability" and torch.equal(found.labels, F.one_hot(made.classes, 3).double())


def test_a_network_trained_on_the_images_becomes_better() -> None:
    made = method(dtype=torch.float32, unroll=8, window=4, lr=0.03, lr_inner=0.01, place="end", batch_size=60)
    losses = [float(made.step()["loss"]) for _ in range(20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses


def test_live_bytes_grow_by_the_states_of_the_window_alone() -> None:
    """Parameters and two moments of every step, which lie on the host; without rematerialising by activations."""

    def peak(window: int, rematerialize: bool) -> int:
        settings: dict[str, Any] = {"unroll": 8, "window": window, "place": "end", "rematerialize": rematerialize}
        return count(lambda: method(dtype=torch.float32, **settings), torch.device("cpu"), settle=False).peak_live_bytes

    state = 3 * 4 * sum(p.numel() for p in method().task.network(generator()).parameters())
    few, many = peak(2, True), peak(8, True)
    assert many - few <= 6 * state + 100
    assert peak(8, False) - peak(2, False) > 3 * (many - few)


# --- windows


def windows(made: RaTBPTT, steps: int) -> list[tuple[int, int]]:
    found = []
    for _ in range(steps):
        found.append(made.place(made.task.network(generator())))
    return found


def test_a_random_window_stays_for_a_pass_and_reaches_every_place() -> None:
    made = method(batch_size=25)  # 60 images: three batches
    found = windows(made, 90)
    passes = [found[i : i + 3] for i in range(0, 90, 3)]
    assert all(len(set(own)) == 1 for own in passes)
    assert {start for start, _ in found} == {0, 1, 2} and {width for _, width in found} == {3}


@pytest.mark.parametrize(("place", "expected"), [("end", (2, 3)), ("middle", (1, 3))])
def test_a_window_at_a_given_place(place: str, expected: tuple[int, int]) -> None:
    assert windows(method(place=place), 2) == [expected] * 2


def test_the_first_stage_keeps_windows_inside_and_the_third_begins_early() -> None:
    norms = torch.tensor([1.0, 1.5, 1.0, 9.0, 1.0, 60.0], dtype=torch.float64)
    assert changes(norms).tolist() == [0, 0.5, 0.5, 8, 8, 59]
    assert early_window(norms, 0.5, 3, 1) == (3, 3) and late_window(norms, 0.5, 3, 1) == (-1, 2)  # step 5, rank 5
    assert early_window(norms.flip(0), 0.5, 3, 1) == (0, 2) and late_window(norms.flip(0), 0.5, 3, 1) == (4, 2)
    flat = torch.ones(10, dtype=torch.float64)
    assert {late_window(flat, u, 4, 1)[0] for u in (0.0, 0.55, 0.9999999999999999)} == {7, 2, -2}


def test_stages_follow_one_another_when_the_accuracy_no_longer_rises() -> None:
    rule = Stages(40, 12, 4)
    norms: Callable[[], Tensor] = lambda: torch.ones(40, dtype=torch.float64)  # noqa: E731
    accuracy = 0.0
    for rise, passes, stage in ((0.1, 9, 1), (0.01, 5, 1), (0.1, 1, 1), (0.01, 6, 2), (0.011, 9, 2), (0.0, 5, 3)):
        for _ in range(passes):
            accuracy += rise
            rule.end_pass(accuracy)
        assert rule.stage == stage
        start, width = rule.choose(norms, generator())
        assert start >= 0 and start + width <= 40
        assert width in {1: range(8, 17), 2: [16], 3: [8]}[stage]
    rule.end_pass(accuracy)
    assert rule.stage == 3
    starts = {Stages(40, 12, 4, stage=2).choose(norms, generator(seed))[0] for seed in range(300)}
    assert starts == set(range(25))


def test_a_policy_is_a_new_window_for_every_step() -> None:
    made = method(place="policy", unroll=12, window=4, change=2, batch_size=10)
    found = windows(made, 12)
    assert len(set(found)) > 3 and all(start >= 0 and start + width <= 12 for start, width in found)
    rule = made.rule
    assert isinstance(rule, Policy) and rule.low < rule.high
    torch.testing.assert_close(rule.reference.sum(), torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("place", ["stages", "policy"])
def test_rules_see_the_gradients_of_a_plain_inner_training(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is trained afterwards starts from the weights that were drawn."""
    made = method(place=place, batch_syn=6)
    monkeypatch.setattr(rat_bptt, "apply_dsa", lambda op, images, draws: images)
    net = made.task.network(generator())
    before = copy.deepcopy(net.state_dict())
    seen: list[Tensor] = []
    choose = type(made.rule).choose

    def spy(rule: Any, norms: Callable[[], Tensor], draws: torch.Generator) -> tuple[int, int]:
        seen.append(norms())
        return choose(rule, norms, draws)

    monkeypatch.setattr(type(made.rule), "choose", spy)
    made.place(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    optimiser, expected = torch.optim.Adam(net.parameters(), lr=made.config.lr_inner), []
    for _ in range(5):
        optimiser.zero_grad()
        F.cross_entropy(net(made.images), made.classes).backward()  # type: ignore[no-untyped-call]
        squares = [p.grad.square().sum() for p in net.parameters() if p.grad is not None]
        expected.append(torch.stack(squares).sum().sqrt())
        optimiser.step()
    torch.testing.assert_close(seen[0], torch.stack(expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize("place", ["random", "stages", "policy"])
def test_a_saved_run_goes_on_as_if_it_had_not_been(place: str) -> None:
    """In the middle of a pass, and with whatever the rule remembers."""
    straight, resumed = (
        method(place=place, batch_size=25, learn_label=True),
        method(1, place=place, batch_size=25, learn_label=True),
    )
    for _ in range(4):
        straight.step()
    state = straight.state_dict()
    straight.step()
    resumed.load_state_dict(state)
    resumed.step()
    for _ in range(3):
        losses, again = straight.step(), resumed.step()
        assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert all(torch.equal(a, b) for a, b in zip(straight.learned, resumed.learned, strict=True))
    assert repr(straight.state_dict()) == repr(resumed.state_dict())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"window": 6}, "unroll is 5; it must be at least the widest window, 6"),
        ({"window": 5, "place": "stages"}, "widest window, 6"),
        ({"change": 3, "place": "policy"}, "change is 3"),
        ({"window": 0}, "window"),
        ({"lr_inner": 0.0}, "lr_inner"),
    ],
)
def test_windows_that_do_not_fit_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        RaTBPTTConfig(**{**SETTINGS, **change})
    assert "\n" not in str(caught.value)


# --- batches and recipe


def test_balanced_batches_have_equally_many_of_each_class() -> None:
    classes = torch.tensor([2, 0, 1, 1, 0, 2, 1, 2, 0, 1])
    seen = torch.zeros(10)
    for seed in range(60):
        index = draw_balanced(classes, 7, generator(seed))
        assert len(set(index.tolist())) == 6 and classes[index].bincount().tolist() == [2, 2, 2]
        seen[index] += 1
    assert (seen > 15).all(), "every image has its turn"
    assert torch.equal(draw_balanced(classes, 10, generator()), torch.arange(10))
    some = {tuple(classes[draw_balanced(classes, 2, generator(seed))].sort().values.tolist()) for seed in range(30)}
    assert some == {(0, 1), (0, 2), (1, 2)}


def test_the_recipe_is_the_inner_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 steps of Adam on balanced, augmented batches, with labels as they are."""
    recipe = PROTOCOLS["rat_bptt"].recipe
    assert all(recipe.steps(count) == 1000 for count in (10, 100, 5000))
    made = method(learn_label=True)
    net: Network = made.task.network(generator())
    expected = copy.deepcopy(net)
    images, labels = torch.cat([made.images] * 40), 0.7 * torch.cat([made.labels] * 40) + 0.1
    train(net, images, labels, "weighted", recipe, flip=False, generator=generator(3), max_steps=4)
    optimiser, draws = torch.optim.Adam(expected.parameters(), lr=1e-3), generator(3)
    for _ in range(4):
        index = draw_balanced(labels.argmax(1), 100, draws)
        op, angles = draw_dsa((8, 8), 99, draws, flip=False, strategy="flip_rotate")
        assert op == "rotate"
        logits = expected(apply_dsa(op, images[index], angles))
        optimiser.zero_grad()
        (-(labels[index] * logits.log_softmax(1)).sum() / 99).backward()
        optimiser.step()
    # A bias before a norm has no gradient but rounding, and does not matter.
    torch.testing.assert_close(net(images[:6]), expected(images[:6]), rtol=0, atol=1e-6)
