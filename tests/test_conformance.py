"""What every method of the registry must do, whoever wrote it: a new file is tested the moment it exists.

Each check is a function of the method class. The last part holds them against methods that are broken on purpose.
"""

# ruff: noqa: RUF012  (a method may write PAPER and BUDGETS as plain dictionaries)
from __future__ import annotations

import ast
import dataclasses
import functools
import gc
import inspect
import io
import itertools
import pickle
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import methods
from benchmarks import DATASETS
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec
from benchmarks.task import Task
from methods import checks
from methods.base import Method, Store, Synthetic

CLASSES, IPC, STEPS = 3, 2, 5


def tiny_task(seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    """60 random 8×8 images of 3 classes, each class with a mean of its own; the data do not depend on ``seed``."""
    generator = torch.Generator().manual_seed(123)
    labels = torch.arange(60) % CLASSES
    means = torch.randn(CLASSES, 1, 8, 8, generator=generator)
    images = means[labels] + torch.randn(60, 1, 8, 8, generator=generator)
    spec = NetworkSpec("convnet", 1, (8, 8), CLASSES, width=4)
    return Task(
        images=images.to(dtype),
        labels=labels,
        num_classes=CLASSES,
        ipc=IPC,
        network=functools.partial(spec.build, dtype=dtype),
        generator=torch.Generator().manual_seed(seed),
        flip=False,
    )


def prepared(
    cls: type[Method],
    seed: int = 0,
    store: Store | None = None,
    dtype: torch.dtype = torch.float32,
    task: Task | None = None,
) -> Method:
    """The method under its smoke budget on the tiny task, ready for the first step."""
    smoke = {key: value for key, value in cls.BUDGETS.get("smoke", {}).items() if key != "steps"}
    method = cls(task or tiny_task(seed, dtype), cls.Config(**smoke), total_steps=STEPS)
    method.prepare({} if store is None else store)
    return method


def run(method: Method, steps: int) -> None:
    for _ in range(steps if method.iterative else 0):
        method.step()


def content(synthetic: Synthetic) -> bytes:
    """All that a synthetic set holds, as bytes."""
    tensors = [synthetic.images, synthetic.labels] + ([] if synthetic.lr is None else [synthetic.lr])
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


# --- the checks


def check_synthetic(cls: type[Method]) -> None:
    """What the harness asks of a set, and sums of labels to rounding; before the first step and after the last."""
    for dtype in (torch.float32, torch.float64):
        method = prepared(cls, dtype=dtype)
        for steps in (0, 3):
            run(method, steps)
            found = method.synthetic()
            checks.check_synthetic(
                found,
                cls.__name__,
                classes=CLASSES,
                ipc=IPC,
                image=(1, 8, 8),
                dtype=dtype,
                device=method.task.device,
                initial=steps == 0,
            )
            sums = {"probability": 1.0, "centred": 0.0}[found.label_space]
            if found.label_space == "probability" or steps == 0:
                expected = torch.full((CLASSES * IPC,), sums, dtype=dtype)
                torch.testing.assert_close(found.labels.sum(1), expected, rtol=0, atol=1e-5)


def check_steps(cls: type[Method]) -> None:
    """Losses are finite, detached and 0-d on the device; images move, and labels where they are learned."""
    method = prepared(cls)
    if not cls.iterative:
        return
    assert method.steps_per_cycle >= 1
    first = method.synthetic()
    for _ in range(3):
        before = method.synthetic()
        losses = method.step()
        checks.check_losses(losses, cls.__name__, method.task.device)
        assert all(loss.isfinite() for loss in losses.values())
        assert not torch.equal(method.synthetic().images, before.images), "every step updates the images"
    if getattr(method.config, "learn_label", first.label_space == "centred"):
        assert not torch.equal(method.synthetic().labels, first.labels)


def check_copy(cls: type[Method]) -> None:
    """What ``synthetic`` returns is the caller's: to overwrite it changes nothing, and no later step changes it."""
    method, other = prepared(cls), prepared(cls)
    mine = method.synthetic()
    kept = content(mine)
    run(method, 1)
    assert content(mine) == kept
    for tensor in tensors_in(vars(mine)):
        tensor.zero_()
    run(method, 1)
    run(other, 2)
    assert content(method.synthetic()) == content(other.synthetic())


def check_nothing_is_held(cls: type[Method]) -> None:
    """No graph survives a step, and memory does not grow with the steps.

    What is made on first use (an optimiser's state, say) may grow for a while; a leak grows in every window.
    """

    def held() -> int:
        gc.collect()
        tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
        assert all(tensor.grad_fn is None for tensor in tensors), "a graph is held"
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    gc.collect()
    gc.freeze()  # what other tests left is not looked at
    try:
        method = prepared(cls)
        sizes = []
        for _ in range(4):
            run(method, 10)
            sizes.append(held())
        assert any(later <= earlier for earlier, later in itertools.pairwise(sizes)), f"memory grows: {sizes}"
    finally:
        gc.unfreeze()
    assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in tensors_in(method.state_dict()))


class Waiting(TorchFunctionMode):
    """Once ``armed``, refuses what would wait for a device: copies to it that block, and reading from it.

    Tensors that were there before are taken for those on the device, and so is what is computed with them or is moved;
    the others, random draws and counts, would be on the host, where they may be read.
    """

    READS = {
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.equal, torch.equal, torch.allclose),
        *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
        *(Tensor.nonzero, torch.nonzero, torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique),
    }

    def __init__(self) -> None:
        super().__init__()
        self.armed = False
        self.host: dict[int, Tensor] = {}

    def on_host(self, value: object) -> bool:
        return all(id(tensor) in self.host for tensor in tensors_in(value))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = (*args, *kwargs.values())
        device = any(isinstance(value, torch.device) for value in given)
        if self.armed and func == Tensor.to and device:
            assert any(value is True for value in given), "a step moves tensors with non_blocking=True"
        if self.armed and not self.on_host(given):
            assert func not in self.READS, f"a step reads from the device: {func.__name__}"
            if func == Tensor.__getitem__:
                masks = any(index.dtype == torch.bool for index in tensors_in([args[1]]))
                assert not masks, "how many entries a mask picks is read from the device"
        made = func(*args, **kwargs)
        if device and isinstance(made, Tensor) and self.on_host([made]):
            made = made.view_as(made)  # on the device it would be another
        elif not device and self.on_host(given):
            self.host |= {id(tensor): tensor for tensor in tensors_in([made])}
        return made


def check_no_waiting(cls: type[Method]) -> None:
    """What a step draws on the CPU reaches the device without a synchronisation, and nothing comes back."""
    task = tiny_task()
    with Waiting() as waiting:
        method = prepared(cls, task=task)
        waiting.armed = True
        run(method, 3)


def check_seeds(cls: type[Method]) -> None:
    """Same seed, same bytes, whether the store is empty or full; another seed, other bytes."""
    results = []
    store: Store = {}
    for seed in (0, 0, 1):
        method = prepared(cls, seed, store)
        run(method, 3)
        results.append(content(method.synthetic()))
    assert results[0] == results[1]
    assert results[0] != results[2]


def check_resume(cls: type[Method]) -> None:
    """Saved after two steps and continued elsewhere: bit for bit the run that was never interrupted."""
    store: Store = {}
    straight = prepared(cls, store=store)
    run(straight, 2)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    run(straight, 3)

    file.seek(0)
    resumed = prepared(cls, store=store)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, 3)
    assert content(resumed.synthetic()) == content(straight.synthetic())


def check_global_state(cls: type[Method]) -> None:
    """The random states of torch, numpy and Python stay as they are."""

    def state() -> tuple[object, ...]:
        numpy_state = np.random.get_state(legacy=False)
        return torch.get_rng_state().tolist(), repr(numpy_state), random.getstate(), torch.get_default_dtype()

    before = state()
    run(prepared(cls), 2)
    assert state() == before


def check_config(cls: type[Method]) -> None:
    """A frozen dataclass, every field documented; PAPER and BUDGETS name its fields."""
    checks.check_class(cls, cls.__name__)
    config = cls.Config
    names = {field.name for field in dataclasses.fields(config)}
    undocumented = names.difference(*(documented(part) for part in config.__mro__ if dataclasses.is_dataclass(part)))
    assert not undocumented, f"fields without a word: {undocumented}"
    assert cls.BUDGETS.keys() <= {"smoke", "quick", "cost", "forecast"}
    for (dataset, ipc), changes in cls.PAPER.items():
        assert dataset in DATASETS
        assert ipc >= 1
        config(**{key: value for key, value in changes.items() if key != "steps"})
    if cls.iterative:
        assert cls.BUDGETS.keys() >= {"smoke", "quick"}
        timed = ("cost", "forecast")  # their steps come from the time, or there are none
        long = [changes for budget, changes in cls.BUDGETS.items() if budget not in timed]
        assert all(changes.get("steps", 0) >= 1 for changes in (*cls.PAPER.values(), *long))
        assert not any("steps" in cls.BUDGETS.get(budget, {}) for budget in timed)


def documented(config: type) -> set[str]:
    """The fields of a dataclass that a string below, or a comment beside or above, explains."""
    source = inspect.cleandoc("\n" + inspect.getsource(config))
    lines = source.splitlines()
    tree = ast.parse(source)
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    found = set()
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            beside = "  # " in lines[node.lineno - 1]
            above = lines[node.lineno - 2].lstrip().startswith("#")
            if below or beside or above:
                found.add(node.target.id)
    return found


def check_source(source: str) -> None:
    """A method knows the benchmark and the shared mathematics; no other method, no harness, no clock, log or shell."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    for name in imported:
        top, _, rest = name.partition(".")
        assert top not in {"harness", "tests", "time", "logging", "random", "argparse", "os", "pathlib"}, name
        if top == "methods":
            assert rest.startswith(("base.", "_")), f"{name}: a method imports no other method"


def check_citation(docstring: str | None, iterative: bool = True) -> None:
    assert docstring
    assert not iterative or re.search(r"\b(19|20)\d\d\b", docstring), "which paper, and of which year?"


CHECKS: list[Callable[[type[Method]], None]] = [
    check_synthetic,
    check_steps,
    check_copy,
    check_nothing_is_held,
    check_no_waiting,
    check_seeds,
    check_resume,
    check_global_state,
    check_config,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", methods.names())
def test_method(name: str, check: Callable[[type[Method]], None]) -> None:
    check(methods.get(name))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("bptt", "rematerialize"),
        ("mtt", "rematerialize"),
        ("bptt", "learn_label"),
        ("kip", "learn_label"),
        ("kip", "solve_label"),
    ],
)
def test_method_with_an_option(name: str, option: str, check: Callable[[type[Method]], None]) -> None:
    """Less memory, or labels that move: whatever an option changes, nothing that is checked."""
    cls = methods.get(name)
    budgets = {budget: {**changes, option: True} for budget, changes in cls.BUDGETS.items()}
    check(type(cls.__name__, (cls,), {"BUDGETS": budgets}))


@pytest.mark.parametrize("name", methods.names())
def test_module(name: str) -> None:
    cls = methods.get(name)
    module = sys.modules[cls.__module__]
    check_source(inspect.getsource(module))
    check_citation(module.__doc__, cls.iterative)


def test_a_task_shows_no_test_images_and_no_name() -> None:
    fields = {field.name for field in dataclasses.fields(Task)}
    assert fields == {"images", "labels", "num_classes", "ipc", "network", "generator", "flip"}


# --- the checks can fail


@dataclass(frozen=True)
class Rate:
    """Hyper-parameters."""

    rate: float = 0.1
    """Step size."""


class Sound(Method):
    """Draws the images towards random real ones; a sound method, from which the broken ones below derive."""

    Config = Rate
    BUDGETS = {"smoke": {"steps": 3}, "quick": {"steps": 30, "rate": 0.2}}

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


class LossWithGraph(Sound):
    def step(self) -> dict[str, Tensor]:
        super().step()
        return {"distance": self.loss(self.images.clone().requires_grad_())}


class LossNotFinite(Sound):
    def step(self) -> dict[str, Tensor]:
        return {"distance": super().step()["distance"] / 0}


class LossOfWrongShape(Sound):
    def step(self) -> dict[str, Tensor]:
        return {"distance": super().step()["distance"][None]}


class ImagesStandStill(Sound):
    def step(self) -> dict[str, Tensor]:
        return {"distance": self.loss(self.images)}


class LabelsStandStill(Sound):
    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels - 1 / CLASSES, "centred")


class Interleaved(Sound):
    def __init__(self, task: Task, config: Rate, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.labels = self.labels.roll(1, 0)


class FixedDtype(Sound):
    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.float().clone(), self.labels.float().clone(), "probability")


class LabelsOfWrongSpace(Sound):
    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels - 1 / CLASSES, "probability")


class NoCopy(Sound):
    def synthetic(self) -> Synthetic:
        return Synthetic(self.images, self.labels, "probability")


class InPlaceWithoutCopy(NoCopy):
    def step(self) -> dict[str, Tensor]:
        images, losses = self.images, super().step()
        self.images = images.copy_(self.images)
        return losses


class KeepsGraph(Sound):
    def loss(self, images: Tensor) -> Tensor:
        self.last = super().loss(images)
        return self.last


class Grows(Sound):
    def step(self) -> dict[str, Tensor]:
        self.history = [*getattr(self, "history", []), self.images.clone()]
        return super().step()


class Waits(Sound):
    def loss(self, images: Tensor) -> Tensor:
        chosen = torch.randperm(len(self.task.images), generator=self.task.generator)[: len(images)]
        return (images - self.task.images[chosen.to(self.task.device)]).square().sum()


class Reads(Sound):
    def loss(self, images: Tensor) -> Tensor:
        return super().loss(images) / float(images.detach().square().mean())


class Decides(Sound):
    def loss(self, images: Tensor) -> Tensor:
        loss = super().loss(images)
        return loss if loss > 1 else 2 * loss


class Masks(Sound):
    def loss(self, images: Tensor) -> Tensor:
        return super().loss(images) + images[images > 0].sum()


class IgnoresSeed(Sound):
    def __init__(self, task: Task, config: Rate, total_steps: int) -> None:
        super().__init__(dataclasses.replace(task, generator=torch.Generator().manual_seed(0)), config, total_steps)


class StoreChangesResult(Sound):
    def prepare(self, store: Store) -> None:
        if "something" not in store:
            store["something"] = {"drawn": torch.rand(1, generator=self.task.generator)}


class ForgetsGenerator(Sound):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images = state["images"].clone()


class StateIsCode(Sound):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "config": self.config}


class GlobalTorch(Sound):
    def step(self) -> dict[str, Tensor]:
        torch.nn.Linear(1, 1)
        return super().step()


class GlobalNumpy(Sound):
    def step(self) -> dict[str, Tensor]:
        np.random.rand()
        return super().step()


class GlobalPython(Sound):
    def prepare(self, store: Store) -> None:
        random.random()


class MutableConfig(Sound):
    @dataclass
    class Config:
        rate: float = 0.1
        """Step size."""


class UndocumentedConfig(Sound):
    @dataclass(frozen=True)
    class Config:
        rate: float = 0.1
        other: float = 0.1
        """Documented."""


class UnknownFieldInBudget(Sound):
    BUDGETS = {"smoke": {"steps": 3}, "quick": {"steps": 30, "rates": 3}}


class UnknownBudget(Sound):
    BUDGETS = {**Sound.BUDGETS, "fast": {"steps": 3}}


class BudgetWithoutSteps(Sound):
    BUDGETS = {"smoke": {"steps": 3}, "quick": {}}


class UnknownDataset(Sound):
    PAPER = {("cifar11", 1): {"steps": 3}}


class UnknownProtocol(Sound):
    PROTOCOL = "nobody's"


BROKEN: list[tuple[type[Method], Callable[[type[Method]], None]]] = [
    (LossWithGraph, check_steps),
    (LossNotFinite, check_steps),
    (LossOfWrongShape, check_steps),
    (ImagesStandStill, check_steps),
    (LabelsStandStill, check_steps),
    (Interleaved, check_synthetic),
    (FixedDtype, check_synthetic),
    (LabelsOfWrongSpace, check_synthetic),
    (NoCopy, check_copy),
    (InPlaceWithoutCopy, check_copy),
    (KeepsGraph, check_nothing_is_held),
    (Grows, check_nothing_is_held),
    (Waits, check_no_waiting),
    (Reads, check_no_waiting),
    (Decides, check_no_waiting),
    (Masks, check_no_waiting),
    (IgnoresSeed, check_seeds),
    (StoreChangesResult, check_seeds),
    (ForgetsGenerator, check_resume),
    (StateIsCode, check_resume),
    (GlobalTorch, check_global_state),
    (GlobalNumpy, check_global_state),
    (GlobalPython, check_global_state),
    (MutableConfig, check_config),
    (UndocumentedConfig, check_config),
    (UnknownFieldInBudget, check_config),
    (UnknownBudget, check_config),
    (BudgetWithoutSteps, check_config),
    (UnknownDataset, check_config),
    (UnknownProtocol, check_config),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_sound_method_passes(check: Callable[[type[Method]], None]) -> None:
    check(Sound)


@pytest.mark.parametrize(("cls", "check"), BROKEN, ids=lambda value: value.__name__)
def test_a_broken_method_is_seen(cls: type[Method], check: Callable[[type[Method]], None]) -> None:
    with pytest.raises((AssertionError, UserError, pickle.UnpicklingError)):
        check(cls)


@pytest.mark.parametrize(
    "source",
    [
        "import harness.records.record",
        "from harness import record",
        "import time",
        "from methods import dsa",
        "from methods.dsa import match_loss",
        "import methods.dsa",
        "from .dsa import match_loss",
        "def step():\n    import logging",
    ],
)
def test_a_forbidden_import_is_seen(source: str) -> None:
    check_source("from methods._unroll import unroll\nfrom methods.base import Method\nimport torch\n")
    with pytest.raises(AssertionError):
        check_source(source)


@pytest.mark.parametrize("docstring", [None, "", "A method that nobody published."])
def test_a_missing_citation_is_seen(docstring: str | None) -> None:
    with pytest.raises(AssertionError):
        check_citation(docstring)
