"""Every method of the registry passes every conformance check, and every check fails for a planted mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import methods
from benchmarks import NETWORKS
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec, usual_norm
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import Task
from methods import checks
from methods.base import Method, Range, Store, Synthetic
from methods.checks import CHECKS, CLASSES, IPC

Check = Callable[[str, type[Method]], None]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods.names())
def test_method(name: str, check: Check) -> None:
    check(name, methods.get(name))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bptt", {"rematerialize": True}),
        ("mtt", {"rematerialize": True}),
        ("rat_bptt", {"rematerialize": True}),
        ("rat_bptt", {"learn_label": True}),
        ("bptt", {"learn_label": True}),
        ("kip", {"learn_label": True}),
        ("kip", {"solve_label": True}),
        ("rcig", {"solver": "faithful", "lr_inner": 1e-3, "lr_hessian": 1e-2}),
    ],
)
def test_method_with_an_option(name: str, options: dict[str, Any], check: Check) -> None:
    """Less memory, or labels that move: whatever an option changes, nothing that is checked."""
    method = methods.get(name)
    budgets = {budget: {**changes, **options} for budget, changes in method.BUDGETS.items()}
    check(name, type(method.__name__, (method,), {"BUDGETS": budgets, "__module__": method.__module__}))


ITERATIVE = [name for name in methods.names() if methods.get(name).iterative and name not in ("dc", "datm", "kip")]
"""Methods with steps; DC and DATM do to a network what DSA and MTT do, and KIP uses none."""


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ITERATIVE)
def test_a_method_distils_on_every_network(name: str, network: str) -> None:
    """One step moves the images, with the norm that the method's own protocol gives to the network."""
    norm = usual_norm(network, PROTOCOLS[methods.get(name).PROTOCOL].distill_norm)
    distils(name, NetworkSpec(network, 1, (28, 28), CLASSES, width=8, norm=norm), steps=1)


@pytest.mark.parametrize("network", ["resnet18", "frepo_vgg11"])
@pytest.mark.parametrize("name", ITERATIVE)
def test_a_method_distils_with_batch_norm_in_deep_networks(name: str, network: str) -> None:
    distils(name, NetworkSpec(network, 3, (32, 32), CLASSES, width=8, norm="batch"), steps=2)


def distils(name: str, spec: NetworkSpec, steps: int) -> None:
    shape, generator = (8, spec.in_channels, *spec.image_size), torch.Generator().manual_seed(0)
    labels = torch.arange(8) % CLASSES
    images = torch.randn(shape, generator=generator) + labels.view(-1, 1, 1, 1)
    task = Task(images, labels, CLASSES, IPC, spec.build, generator, flip=True)
    running = checks.prepared(methods.get(name), task=task)
    before = running.synthetic().images
    for _ in range(steps):
        assert all(bool(loss.isfinite()) for loss in running.step().values())
    after = running.synthetic().images
    assert bool(after.isfinite().all()) and not torch.equal(before, after)


def test_a_task_shows_no_test_images_and_no_name() -> None:
    fields = {field.name for field in dataclasses.fields(Task)}
    assert fields == {"images", "labels", "num_classes", "ipc", "network", "generator", "flip"}


@dataclass(frozen=True)
class Rate:
    rate: float = 0.1
    """Step size."""


@dataclass
class MutableRate:
    rate: float = 0.1
    """Step size."""


@dataclass(frozen=True)
class SilentRate:
    rate: float = 0.1
    other: float = 0.1
    """Documented."""


@dataclass(frozen=True)
class Bounded:
    rate: float = 0.1
    """Below 1."""
    many: int | None = None
    """A number."""
    word: str = "a"
    """No number."""

    def __post_init__(self) -> None:
        if self.rate >= 1:
            raise UserError("rate must be below 1")


class Sound(Method):
    """Draws the images towards random real ones; a sound method, from which the broken ones below derive."""

    Config = Rate
    BUDGETS = {"smoke": {"steps": 3}, "quick": {"steps": 30, "rate": 0.2}}  # noqa: RUF012

    def __init__(self, task: Task, config: Rate, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.images, targets = task.draw_per_class()
        self.labels = torch.nn.functional.one_hot(targets, task.num_classes).to(task.dtype)

    def step(self) -> dict[str, Tensor]:
        images = self.images.detach().requires_grad_()
        loss = self.loss(images)
        self.images = images.detach() - self.config.rate * torch.autograd.grad(loss, images)[0]
        return {"distance": loss.detach()}

    def loss(self, images: Tensor) -> Tensor:
        return (images - self.task.sample(len(images))[0]).square().sum()

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "generator": self.task.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images = state["images"].clone()
        self.task.generator.set_state(state["generator"])


def step_in_place(self: Sound) -> dict[str, Tensor]:
    images, losses = self.images, Sound.step(self)
    self.images = images.copy_(self.images)
    return losses


def step_with_history(self: Sound) -> dict[str, Tensor]:
    self.history = [*getattr(self, "history", []), self.images.clone()]
    return Sound.step(self)


def loss_that_stays(self: Sound, images: Tensor) -> Tensor:
    self.last = Sound.loss(self, images)
    return self.last


def loss_of_blocking_copy(self: Sound, images: Tensor) -> Tensor:
    index = torch.randperm(len(self.task.images), generator=self.task.generator)[: len(images)]
    return (images - self.task.images[index.to(self.task.device)]).square().sum()


def init_of_one_seed(self: Sound, task: Task, config: Rate, total_steps: int) -> None:
    Sound.__init__(self, dataclasses.replace(task, generator=torch.Generator().manual_seed(0)), config, total_steps)


def prepare_by_seed(self: Sound, store: Store) -> None:
    if "drawn" not in store:
        store["drawn"] = {"number": torch.rand(1, generator=self.task.generator)}


def as_set(change: Callable[[Tensor], Tensor], space: str = "probability") -> Callable[[Sound], Synthetic]:
    return lambda self: Synthetic(self.images.clone(), change(self.labels), space)


def of_all_classes(self: Sound) -> Synthetic:
    images = self.images.repeat(CLASSES, 1, 1, 1)[: CLASSES * self.task.ipc]
    return Synthetic(images, torch.eye(CLASSES).repeat_interleave(self.task.ipc, 0), "probability")


def as_loss(change: Callable[[Sound, Tensor], Any]) -> Callable[[Sound, Tensor], Tensor]:
    return lambda self, images: Sound.loss(self, images) + 0 * change(self, images)


def as_step(change: Callable[[Tensor], Tensor]) -> Callable[[Sound], dict[str, Tensor]]:
    return lambda self: {"distance": change(Sound.step(self)["distance"])}


MISTAKES: list[tuple[Check, str, dict[str, Any]]] = [
    (checks.check_config, "expected a frozen dataclass", {"Config": MutableRate}),
    (checks.check_config, "says nothing about rate;", {"Config": SilentRate}),
    (checks.check_config, "changes rates", {"BUDGETS": {"smoke": {"steps": 3}, "quick": {"steps": 30, "rates": 3}}}),
    (checks.check_config, "BUDGETS has fast", {"BUDGETS": {**Sound.BUDGETS, "fast": {"steps": 3}}}),
    (checks.check_config, "BUDGETS lacks quick", {"BUDGETS": {"smoke": {"steps": 3}}}),
    (checks.check_config, "'quick' has no steps", {"BUDGETS": {"smoke": {"steps": 3}, "quick": {}}}),
    (checks.check_config, "'cost' has 3 steps", {"BUDGETS": {**Sound.BUDGETS, "cost": {"steps": 3}}}),
    (checks.check_config, "cifar11", {"PAPER": {("cifar11", 1): {"steps": 3}}}),
    (checks.check_config, "unknown protocol", {"PROTOCOL": "nobody's"}),
    (checks.check_config, "TUNE\\['rates'\\]: Config does not have it", {"TUNE": {"rates": Range(0.1, 1.0)}}),
    (checks.check_config, "5 fields; expected at most 4", {"TUNE": dict.fromkeys("abcde", Range(0.1, 1.0))}),
    (checks.check_config, "of the field's type", {"TUNE": {"rate": Range(1, 2)}}),
    (checks.check_config, "of the field's type", {"TUNE": {"rate": (0.1, 1.0)}}),
    (checks.check_config, "of the field's type", {"Config": Bounded, "TUNE": {"word": Range(0.1, 1.0)}}),
    (checks.check_config, "low below high", {"TUNE": {"rate": Range(0.5, 0.1)}}),
    (checks.check_config, "above 0 where log", {"TUNE": {"rate": Range(0.0, 0.5)}}),
    (checks.check_config, "the quick setting within, which is 0.2", {"TUNE": {"rate": Range(0.3, 0.5)}}),
    (checks.check_config, "within, which is None", {"Config": Bounded, "TUNE": {"many": Range(3, 5)}}),
    (checks.check_config, "rate must be below 1", {"Config": Bounded, "TUNE": {"rate": Range(0.1, 2.0)}}),
    (checks.check_set, "class-major", {"synthetic": as_set(lambda labels: labels.roll(1, 0))}),
    (checks.check_set, "expected detached float64", {"synthetic": as_set(lambda labels: labels.float())}),
    (checks.check_set, "sums of 1", {"synthetic": as_set(lambda labels: labels - 1 / CLASSES)}),
    (checks.check_set, "wrong by 0.0001", {"synthetic": as_set(lambda labels: labels * 1.0001)}),
    (checks.check_classes, "classes \\[0, 2\\] .* expected", {"synthetic": of_all_classes}),
    (checks.check_steps, "part of a graph", {"step": as_step(lambda loss: loss.clone().requires_grad_())}),
    (checks.check_steps, "is inf", {"step": as_step(lambda loss: loss / 0)}),
    (checks.check_steps, "0-d", {"step": as_step(lambda loss: loss[None])}),
    (checks.check_steps, "images stay", {"step": lambda self: {"distance": self.loss(self.images)}}),
    (checks.check_steps, "labels stay", {"synthetic": as_set(lambda labels: labels - 1 / CLASSES, "centred")}),
    (checks.check_steps, "steps_per_cycle", {"steps_per_cycle": 0}),
    (checks.check_copy, "overwriting", {"synthetic": lambda self: Synthetic(self.images, self.labels, "probability")}),
    (
        checks.check_copy,
        "a step changed",
        {"step": step_in_place, "synthetic": lambda self: Synthetic(self.images, self.labels, "probability")},
    ),
    (checks.check_task, "task.images", {"loss": as_loss(lambda self, images: self.task.images.mul_(2).sum())}),
    (checks.check_task, "task.labels", {"loss": as_loss(lambda self, images: self.task.labels.zero_().sum())}),
    (checks.check_memory, "holds its graph", {"loss": loss_that_stays}),
    (checks.check_memory, "grow", {"step": step_with_history}),
    (checks.check_memory, "state_dict", {"state_dict": lambda self: {"x": torch.ones(1, requires_grad=True)}}),
    (checks.check_no_waiting, "non_blocking", {"loss": loss_of_blocking_copy}),
    (checks.check_no_waiting, "__float__", {"loss": as_loss(lambda self, images: float(images.detach().sum()))}),
    (checks.check_no_waiting, "__bool__", {"loss": as_loss(lambda self, images: 1 if images.sum() > 1 else 2)}),
    (checks.check_no_waiting, "a mask", {"loss": as_loss(lambda self, images: images[images > 0].sum())}),
    (checks.check_seeds, "another seed gives the same", {"__init__": init_of_one_seed}),
    (checks.check_seeds, "its store filled", {"prepare": prepare_by_seed}),
    (checks.check_store, "another seed stores", {"prepare": prepare_by_seed}),
    (checks.check_store, "stored again", {"prepare": lambda self, store: store.update(x={"y": torch.ones(1)})}),
    (
        checks.check_store,
        "with a graph",
        {"prepare": lambda self, store: store.update(x={"y": torch.ones(1, requires_grad=True)})},
    ),
    (
        checks.check_resume,
        "lacks something",
        {"load_state_dict": lambda self, state: setattr(self, "images", state["images"].clone())},
    ),
    (checks.check_resume, "holds objects", {"state_dict": lambda self: {**vars(self)}}),
    (checks.check_global_state, "state of torch", {"loss": as_loss(lambda self, images: torch.rand(()))}),
    (checks.check_global_state, "state of numpy", {"loss": as_loss(lambda self, images: np.random.rand())}),
    (checks.check_global_state, "state of Python", {"loss": as_loss(lambda self, images: random.random())}),
]


@pytest.mark.parametrize("check", [check for check in CHECKS if check is not checks.check_source])
def test_a_sound_method_passes(check: Check) -> None:
    check("sound", Sound)


@pytest.mark.parametrize(("check", "says", "changes"), MISTAKES, ids=[f"{m[0].__name__}-{m[1]}" for m in MISTAKES])
def test_a_mistake_is_seen(check: Check, says: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^mistaken.*{says}"):
        check("mistaken", type("Mistaken", (Sound,), changes))


@pytest.mark.parametrize(
    ("docstring", "line", "says"),
    [
        ("A paper, 2020.", "from methods import _unroll, base", None),
        ("A paper, 2020.", "from .part import x", None),
        ("A method that nobody published.", "", "does not begin with its paper"),
        (None, "", "does not begin with its paper"),
        ("A paper, 2020.", "import harness.cell", "imports harness.cell; a method knows no harness"),
        ("A paper, 2020.", "import methods", "imports methods; a method imports no other method"),
        ("A paper, 2020.", "from methods.dsa import DSA", "imports methods.dsa.DSA; a method imports no other method"),
        ("A paper, 2020.", "def f(x):\n    print(x)", "calls print; a method writes no log"),
        ("A paper, 2020.", "torch.save(x, 'x')", "calls torch.save; a method touches no disk"),
    ],
)
def test_the_source_of_a_method(
    docstring: str | None, line: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("package.method", docstring)
    module.__package__, module.__file__ = "package", str(tmp_path / "method.py")
    (tmp_path / "method.py").write_text(f"{line}\n")
    monkeypatch.setitem(sys.modules, "package.method", module)
    with contextlib.nullcontext() if says is None else pytest.raises(UserError, match=f"^mine: the file {says}"):
        checks.check_source("mine", type("Mine", (Sound,), {"__module__": "package.method"}))
