"""DATM beyond its mathematics: flat experts and what is kept of them, the initial set, the range of starts, a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from benchmarks.protocols import PROTOCOLS, Recipe
from benchmarks.training import Row, Stack, train_together
from methods import _experts, _trajectories
from methods._experts import Experts
from methods._gsam import GSAM
from methods._unroll import flatten, minibatches, unflatten
from methods.base import Store
from methods.checks import CLASSES, IPC, tiny_task
from methods.datm import DATM, DATMConfig, initial_logits

SETTINGS: dict[str, Any] = {
    "syn_steps": 3,
    "expert_epochs": 1,
    "max_start_epoch": 2,
    "threshold": 10.0,
    "num_experts": 2,
    "train_epochs": 3,
    "batch_train": 25,
    "lr_expert": 0.1,
    "lr_init": 0.1,
    "lr_img": 1.0,
    "lr_y": 1.0,
    "lr_lr": 1e-3,
    "rho": 0.1,
}


def method(store: Store | None = None, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> DATM:
    made = DATM(tiny_task(seed, dtype), DATMConfig(**{**SETTINGS, **changes}), total_steps=5)
    made.prepare({} if store is None else store)
    return made


# Experts


def test_only_snapshots_that_can_be_touched_are_kept_and_the_last() -> None:
    whole: Store = {}
    kept: Store = {}
    every: dict[str, Any] = {"min_start_epoch": 0, "max_start_epoch": 6, "expert_epochs": 1}
    some: dict[str, Any] = {"min_start_epoch": 2, "max_start_epoch": 4, "expert_epochs": 1}
    all_of = method(whole, train_epochs=6, num_experts=1, **every)
    part_of = method(kept, train_epochs=6, num_experts=1, **some)
    (full,), (part,) = (list(store.values()) for store in (whole, kept))
    assert len(full["parameters"]) == 7 and len(part["parameters"]) == 4
    assert part["parameters"].untyped_storage().nbytes() == part["parameters"].nbytes
    for row, epoch in enumerate((2, 3, 4, 6)):
        assert torch.equal(part["parameters"][row], full["parameters"][epoch])
        snapshots = (made.experts.snapshot(store, 0, epoch) for made, store in ((all_of, whole), (part_of, kept)))
        assert torch.equal(*snapshots)


def test_the_names_of_experts_tell_everything() -> None:
    """Those of plain experts are as they always were, so that what is stored is not trained again."""
    task = tiny_task()
    plain: dict[str, Any] = {"epochs": 3, "lr": 0.1, "batch_size": 25, "steps_per_epoch": None}
    assert Experts(task, **plain).name(1) == "mtt-expert-epochs3-lr0.1-batch25-float32-cpu-1"
    forms: list[dict[str, Any]] = [
        {},
        {"kept": range(2)},
        {"kept": range(1, 2)},
        *({"flat": GSAM(*values)} for values in ((0.1, 0.3, True), (0.1, 0.3, False), (0.2, 0.3, True))),
        {"flat": GSAM(0.1, 0.4, True)},
        {"flat": GSAM(0.1, 0.4, True), "kept": range(2)},
    ]
    assert len({Experts(task, **plain, **form).name(0) for form in forms}) == len(forms)


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_expert_follows_gsam_step_by_step(adaptive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formulas written out per tensor, on all real images without augmentation."""
    monkeypatch.setattr("benchmarks.training.apply_dsa", lambda op, images, draws: images)
    store: Store = {}
    made = method(store, batch_train=60, num_experts=1, adaptive=adaptive, alpha=0.4, dtype=torch.float64)
    (entry,) = store.values()
    trajectory, task = entry["parameters"], made.task

    def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
        names = [name for name, _ in made.student.named_parameters()]
        leaves = [tensor.clone().requires_grad_() for tensor in parameters]
        logits = functional_call(made.student, dict(zip(names, leaves, strict=True)), (task.images,))
        return list(torch.autograd.grad(F.cross_entropy(logits, task.labels), leaves))

    def product(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
        return sum(float((a * b).sum()) for a, b in zip(first, second, strict=True))

    weights = list(unflatten(made.student, trajectory[0]).values())
    for epoch in range(3):
        first = gradients(weights)
        units = [w.abs() if adaptive else torch.ones_like(w) for w in weights]
        length = product(*2 * [[u * g for u, g in zip(units, first, strict=True)]]) ** 0.5
        ahead = [w + 0.1 * u * u * g / length for w, u, g in zip(weights, units, first, strict=True)]
        second = gradients(ahead)
        share = product(first, second) / product(second, second)
        for w, g1, g2 in zip(weights, first, second, strict=True):
            w -= 0.1 * (g2 - 0.4 * (g1 - share * g2))
        torch.testing.assert_close(trajectory[epoch + 1], flatten(weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("form", "norm"), [(Stack, "instance"), (Stack, "batch"), (Row, "none")])
def test_flat_experts_trained_together_are_those_trained_alone(
    form: type, norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has norms of its own, although in a stack their parameters are one."""
    if form is Row:
        monkeypatch.setattr(Stack, "holds", lambda network: False)
    task = tiny_task(dtype=torch.float64)
    spec = NetworkSpec("convnet", 1, (8, 8), CLASSES, width=4, norm=norm)
    task = dataclasses.replace(task, network=lambda generator: spec.build(generator, dtype=torch.float64))

    def trained(together: int) -> list[Tensor]:
        monkeypatch.setattr(_experts, "CPU_TOGETHER", together)
        store: Store = {}
        flat = GSAM(0.1, 0.4, True)
        experts = Experts(task, epochs=3, lr=0.1, batch_size=25, steps_per_epoch=None, flat=flat)
        experts.prepare(store, 3)
        return [store[experts.name(index)]["parameters"] for index in range(3)]

    for alone, beside in zip(trained(1), trained(3), strict=True):
        torch.testing.assert_close(beside, alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2])
def test_both_passes_see_the_same_batch_with_the_same_augmentation(count: int) -> None:
    task = tiny_task()
    networks = [task.network(torch.Generator().manual_seed(seed)) for seed in range(count)]
    recipe = Recipe("cross_entropy", "sgd", 0.1, 25, True, epochs=2, augment="dsa")
    seen: list[Tensor] = []

    def descent(networks: Sequence[Network], backward: Callable[[], None]) -> None:
        GSAM(0.1, 0.4, True)(networks, backward)

    with pytest.MonkeyPatch.context() as patch:
        forward = torch.nn.Conv2d.forward

        def watched(layer: torch.nn.Conv2d, images: Tensor) -> Tensor:
            if images.shape[1] in (1, count):
                seen.append(images.clone())
            return forward(layer, images)

        patch.setattr(torch.nn.Conv2d, "forward", watched)
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        train_together(
            networks,
            task.images,
            task.labels,
            "probability",
            recipe,
            flip=False,
            generators=generators,
            descent=descent,
        )
    assert len(seen) == 2 * 6
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert not torch.equal(seen[0], seen[2])


# The initial set


def experts_logits(made: DATM, images: Tensor) -> list[Tensor]:
    parameters = [made.experts.snapshot(made.store, expert, 3) for expert in range(2)]
    return [functional_call(made.student, unflatten(made.student, own), (images,)).detach() for own in parameters]


def test_the_first_images_that_an_expert_gets_right_are_taken() -> None:
    store: Store = {}
    for seed in range(3):
        task = tiny_task(seed, torch.float64)
        task.draw_per_class()  # as the constructor does
        order = torch.randperm(60, generator=task.generator)
        made = method(store, seed, torch.float64)
        right = experts_logits(made, task.images)[0].argmax(1) == task.labels
        assert not right.all() and all(int(right[task.labels == c].sum()) >= IPC for c in range(CLASSES))
        rows = [[row for row in order.tolist() if right[row] and task.labels[row] == c][:IPC] for c in range(CLASSES)]
        assert torch.equal(made.images, task.images[torch.tensor(rows).flatten()])


def test_labels_are_the_mean_logits_of_the_experts_that_are_right() -> None:
    made = method(dtype=torch.float64)
    first, second = experts_logits(made, made.images)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        right = [logits for logits in (a, b) if logits.argmax() == made.classes[row]]
        torch.testing.assert_close(made.logits[row], torch.stack(right).mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(made.synthetic().labels, made.logits.softmax(1), rtol=0, atol=0)


def test_the_label_of_an_image_that_no_expert_gets_right() -> None:
    logits = [torch.tensor([[1.0, 5.0, 0.0], [4.0, 0.0, 2.0]]), torch.tensor([[2.0, 3.0, 0.0], [0.0, 2.0, 6.0]])]
    found = initial_logits(logits, torch.tensor([0, 2]))
    torch.testing.assert_close(found, torch.tensor([[4.1, 4.0, 0.0], [0.0, 2.0, 6.0]]))


def test_the_next_expert_is_asked_where_the_first_finds_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first knows class 0 alone, the second classes 0 and 1: for class 2 any image has to do."""
    made = method(batch_train=10)
    task, asked = made.task, list[int]()

    def logits(expert: int, images: Tensor) -> Tensor:
        asked.append(expert)
        rows = (images[:, None] == task.images).flatten(2).all(2).float().argmax(1)
        known = torch.where(task.labels[rows] <= expert, task.labels[rows], 0)
        return F.one_hot(known, CLASSES).float()

    monkeypatch.setattr(made, "expert_logits", logits)
    rows = made.classified()
    assert asked == 6 * [0] + 6 * [1]
    assert task.labels[rows].tolist() == [0, 0, 1, 1, 2, 2] and len(set(rows.tolist())) == 6


def test_random_real_images_have_the_logits_of_the_first_expert() -> None:
    made = method(pix_init="real", dtype=torch.float64)
    images, classes = tiny_task(dtype=torch.float64).draw_per_class()
    assert torch.equal(made.images, images)
    first = experts_logits(made, images)[0]
    right = first.argmax(1) == classes
    assert right.any()
    torch.testing.assert_close(made.logits[right], first[right], rtol=0, atol=1e-12)


# Steps


def test_start_epochs_come_from_a_range_that_grows_and_experts_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "min_start_epoch": 1,
        "current_max_start_epoch": 2,
        "max_start_epoch": 4,
        "expansion_end_epoch": 20,
    }
    made = method(train_epochs=4, num_experts=3, syn_steps=1, **settings)
    seen: list[tuple[int, int]] = []
    segment = DATM.segment

    def noted(self: DATM, expert: int, epoch: int) -> tuple[Tensor, Tensor]:
        seen.append((expert, epoch))
        return segment(self, expert, epoch)

    monkeypatch.setattr(DATM, "segment", noted)
    for _ in range(60):
        made.step()
    assert [expert for expert, _ in seen] == 20 * [0, 1, 2]
    epochs = [epoch for _, epoch in seen]
    assert set(epochs[:10]) == {1} and set(epochs[10:20]) == {1, 2} and set(epochs[20:]) == {1, 2, 3}


def test_a_step_is_sgd_on_images_labels_and_step_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a student written out here; one of the steps is above the threshold, and moves nothing."""
    monkeypatch.setattr(_trajectories, "draw_dsa", lambda *args, **kwargs: ("none", None))
    monkeypatch.setattr(_trajectories, "apply_dsa", lambda op, images, draws: images)
    plain: dict[str, Any] = {"dtype": torch.float64, "num_experts": 1, "max_start_epoch": 3, "batch_syn": 4}
    free = method(**plain)
    losses = sorted(float(free.step()["matching"]) for _ in range(4))
    store: Store = {}
    bound = (losses[1] + losses[2]) / 2
    made = method(store, **plain, threshold=bound)
    images, logits, lr = (tensor.clone() for tensor in made.learned)
    velocities = [torch.zeros_like(tensor) for tensor in (images, logits, lr)]
    generator = torch.Generator()
    generator.set_state(made.task.generator.get_state())
    taken = []
    for _ in range(4):
        epoch = int(torch.randint(0, 3, (), generator=generator))
        start, target = (made.experts.snapshot(store, 0, at) for at in (epoch, epoch + 1))
        leaves = [tensor.clone().requires_grad_() for tensor in (images, logits, lr)]
        student = start.clone().requires_grad_()
        for index in minibatches(6, 4, 3, generator):
            out = functional_call(made.student, unflatten(made.student, student), (leaves[0][index],))
            inner = -(leaves[1][index].softmax(1) * out.log_softmax(1)).sum(1).mean()
            student = student - leaves[2] * torch.autograd.grad(inner, student, create_graph=True)[0]
        loss = (student - target).square().sum() / (start - target).square().sum()
        found = made.step()["matching"]
        torch.testing.assert_close(found, loss.detach(), rtol=1e-10, atol=0)
        taken.append(bool(loss <= bound))
        if taken[-1]:
            gradients = torch.autograd.grad(loss, leaves)
            for velocity, gradient, momentum in zip(velocities, gradients, (0.5, 0.9, 0.5), strict=True):
                velocity.mul_(momentum).add_(gradient)
            images, logits, lr = (
                tensor - rate * velocity
                for tensor, rate, velocity in zip((images, logits, lr), (1.0, 1.0, 1e-3), velocities, strict=True)
            )
    assert True in taken and False in taken
    for ours, expected in zip(made.learned, (images, logits, lr), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_above_the_threshold_nothing_moves_ever() -> None:
    made = method(threshold=0.0)
    before = [tensor.clone() for tensor in made.learned]
    for _ in range(3):
        made.step()
    assert all(map(torch.equal, before, made.learned)) and made.iteration == 3
    assert not any(state["momentum_buffer"].any() for state in made.optimiser.state.values())


@pytest.mark.parametrize("rematerialize", [False, True])
def test_the_meta_gradient_agrees_with_finite_differences(rematerialize: bool) -> None:
    """Of the loss of a whole step, augmentation included, in images, logits and step size."""
    made = method(dtype=torch.float64, lr_lr=1.0, rematerialize=rematerialize)
    start = made.state_dict()

    def loss_at(*learned: Tensor) -> Tensor:
        made.load_state_dict({**start, "learned": learned})
        return made.step()["matching"]

    first = start["learned"]
    loss_at(*first)
    gradients = [old - new for old, new in zip(first, made.learned, strict=True)]  # one update of SGD at a rate of 1
    generator = torch.Generator().manual_seed(0)
    h = 1e-7  # ReLU: inner gradients jump at kinks, so the step must be tiny
    for along in range(3):
        move = [torch.zeros_like(tensor) for tensor in first]
        move[along] = torch.randn(move[along].shape, generator=generator, dtype=torch.float64)
        ahead, behind = (
            loss_at(*(tensor + sign * h * direction for tensor, direction in zip(first, move, strict=True)))
            for sign in (1, -1)
        )
        expected = (gradients[along] * move[along]).sum()
        assert abs(float(expected)) > 1e-4
        torch.testing.assert_close((ahead - behind) / (2 * h), expected, rtol=1e-5, atol=1e-8)


def test_matching_becomes_better() -> None:
    made = method(num_experts=1, max_start_epoch=1, lr_img=10.0)
    losses = [float(made.step()["matching"]) for _ in range(20)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


# Settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"min_start_epoch": 20}, "must ascend"),
        ({"min_start_epoch": 5, "current_max_start_epoch": 5}, "must ascend"),
        ({"current_max_start_epoch": 21}, "must ascend"),
        ({"train_epochs": 20}, "datm: max_start_epoch 20 .* train_epochs is 20"),
        ({"min_start_epoch": -1}, "min_start_epoch"),
        ({"expansion_end_epoch": 0}, "expansion_end_epoch"),
        ({"rho": -0.1}, "rho"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_a_value_out_of_range_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        DATMConfig(**change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", ["smoke", "quick", "cost", "forecast"])
@pytest.mark.parametrize("published", [None, *DATM.PAPER], ids=str)
def test_every_resolved_setting_can_run(published: tuple[str, int] | None, budget: str) -> None:
    """Defaults, then what the paper changes, then what the budget changes: the pieces must fit."""
    paper = DATM.PAPER[published] if published else {}
    for changes in (paper, {**paper, **DATM.BUDGETS[budget]}):
        DATMConfig(**{key: value for key, value in changes.items() if key != "steps"})


def test_the_published_settings() -> None:
    assert len(DATM.PAPER) == 12 and all(changes["steps"] == 10_000 for changes in DATM.PAPER.values())
    config = DATMConfig(**{key: value for key, value in DATM.PAPER["cifar100", 50].items() if key != "steps"})
    assert dataclasses.asdict(config) == {
        "syn_steps": 80,
        "expert_epochs": 2,
        "max_start_epoch": 70,
        "batch_syn": 1000,
        "lr_img": 1000.0,
        "lr_lr": 1e-5,
        "lr_init": 0.01,
        "momentum": 0.5,
        "num_experts": 100,
        "train_epochs": 100,
        "lr_expert": 0.01,
        "batch_train": 256,
        "steps_per_epoch": None,
        "rematerialize": False,
        "min_start_epoch": 20,
        "current_max_start_epoch": None,
        "expansion_end_epoch": 1,
        "threshold": 1.0,
        "lr_y": 10.0,
        "momentum_y": 0.9,
        "pix_init": "real",
        "rho": 0.01,
        "alpha": 0.3,
        "adaptive": True,
    }
    protocol = PROTOCOLS[DATM.PROTOCOL]
    assert protocol.recipe == PROTOCOLS["mtt"].recipe
    assert all(protocol.preprocess(dataset, ipc) == "zca_kornia" for dataset, ipc in DATM.PAPER)
