"""The counters: what can be counted by hand, and what a method does wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import methods
from benchmarks.networks import NetworkSpec
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import Task, generator_for
from harness.measure import counters
from harness.measure.counters import Counters, Uncounted, count
from methods.base import Method, Store, Synthetic

CPU = torch.device("cpu")
SPEC = NetworkSpec("convnet", 1, (8, 8), 2, width=2, depth=1, norm="none")
Step = Callable[["Toy"], object]


def task() -> Task:
    images, labels = torch.zeros(8, 1, 8, 8), torch.arange(8) % 2
    return Task(images, labels, 2, 1, SPEC.build, generator_for("test"), False)


class Toy(Method):
    """Does in a step what it is told."""

    def __init__(self, task: Task, do: Step, begin: Step) -> None:
        super().__init__(task, None, 10)
        self.do, self.kept = do, []
        begin(self)

    kept: list[Any]

    def step(self) -> dict[str, Tensor]:
        self.do(self)
        return {}

    def synthetic(self) -> Synthetic:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


def counted(do: Step, begin: Step = lambda method: None) -> Counters:
    given = task()
    return count(lambda: Toy(given, do, begin), CPU)


# --- operations

POINTS, PATCH = 5 * 5, 3 * 3
"""Of a 3×3 convolution of 7×7 images without padding."""
CONVOLUTION = 2 * (4 * 6 * POINTS) * (3 * PATCH)


def convolve(passes: int) -> Step:
    def do(method: Toy) -> None:
        images, weight = torch.ones(4, 3, 7, 7, requires_grad=True), torch.ones(6, 3, 3, 3, requires_grad=True)
        out = F.conv2d(images, weight)
        if passes == 1:
            return
        first = torch.autograd.grad(out.square().sum(), weight, create_graph=passes > 2)
        if passes > 2:
            torch.autograd.grad(first[0].square().sum(), images)

    return do


def linear(method: Toy) -> None:
    out = F.linear(torch.ones(4, 3, requires_grad=True), torch.ones(5, 3, requires_grad=True), torch.ones(5))
    out.sum().backward()  # type: ignore[no-untyped-call]


def square(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize(
    ("do", "flops"),
    [
        (linear, 3 * 2 * 4 * 3 * 5),
        (convolve(1), CONVOLUTION),
        (convolve(2), 2 * CONVOLUTION),  # and back to the weight
        (lambda m: torch.linalg.cholesky_ex(square(6)), 6**3 / 3),
        (lambda m: torch.cholesky_solve(torch.ones(6, 2).double(), square(6)), 2 * 6 * 6 * 2),
        (lambda m: torch.linalg.solve(square(6), torch.ones(6, 2).double()), 2 / 3 * 6**3 + 2 * 6 * 6 * 2),
        (lambda m: torch.linalg.solve(square(6), torch.ones(6).double()), 2 / 3 * 6**3 + 2 * 6 * 6),
        (lambda m: torch.linalg.solve_triangular(square(6), torch.ones(6, 2).double(), upper=True), 6 * 6 * 2),
        (lambda m: torch.linalg.inv(torch.eye(6).expand(3, 6, 6)), 3 * 2 * 6**3),
        (lambda m: torch.linalg.eigh(square(6)), 9 * 6**3),
        (lambda m: torch.ones(3, 4, 5) @ torch.ones(3, 5, 2), 3 * 2 * 4 * 5 * 2),
        (lambda m: torch.ones(4, 5) @ torch.ones(5), 2 * 4 * 5),
        (lambda m: torch.ones(5) @ torch.ones(5), 2 * 5),
        (lambda m: torch.ones(1000).exp().sum(), 0),
    ],
)
def test_operations_are_those_counted_by_hand(do: Step, flops: float) -> None:
    assert counted(do).flops == pytest.approx(flops, rel=1e-12)


def test_the_second_derivative_of_a_convolution_is_counted() -> None:
    """Back through the gradient of the weight to the images: it depends on the output and on the images themselves.

    Forward, back to the weight; then from that gradient g to the images: once through the output's gradient, which asks
    for the convolution with g and the transposed one, and once directly, transposed.
    """
    assert counted(convolve(3)).flops == 5 * CONVOLUTION


def test_what_a_step_does_is_the_mean_over_its_steps() -> None:
    """Integers drawn singly take all their values in turn, each as often."""

    def do(method: Toy) -> None:
        rows = int(torch.randint(4, (), generator=method.task.generator))
        method.kept.append(torch.empty(1))  # never settles: every value is seen
        torch.ones(rows, 3) @ torch.ones(3, 3)

    seen = counted(do)
    assert seen == counted(do)
    assert seen.flops == pytest.approx(2 * 9 * (1 + 2 + 3 + 0 + 1 + 2) / 6)


# --- memory


def test_bytes_saved_are_those_made_in_the_step_every_storage_once() -> None:
    def do(method: Toy) -> None:
        leaf = torch.ones(10, requires_grad=True)  # made in the step: 40 bytes
        squared = leaf * leaf  # saves the leaf, twice
        (squared.view(2, 5) * method.kept[0]).exp().sum()  # two factors and the result; of the factors, one is old

    assert counted(do, lambda method: method.kept.append(torch.ones(2, 5, requires_grad=True))).saved_bytes == 3 * 40


def test_the_peak_is_that_of_a_sequence_made_by_hand() -> None:
    def begin(method: Toy) -> None:
        method.kept.append(torch.ones(100))  # 400 bytes, for good
        torch.ones(10_000)  # gone before the first step

    def do(method: Toy) -> None:
        first = torch.ones(1000)  # 4400
        view = first[:10].view(2, 5)  # nothing new
        second = first + 1  # 8400: the peak
        del first
        second.mul_(2)  # in place
        del second  # the view holds 4000 bytes
        third = torch.ones(500)  # 6400
        del view, third

    assert counted(do, begin).peak_live_bytes == 8400


def test_memory_that_was_there_before_is_not_the_methods() -> None:
    images = torch.ones(1000)

    def do(method: Toy) -> None:
        images.view(10, 100).t()[3:].detach()
        images[:250].clone()

    assert counted(do).peak_live_bytes == 1000


def test_a_store_is_in_nobodys_memory() -> None:
    def begin(method: Toy) -> None:
        store: Store = Uncounted({})
        store["entry"] = {"t": torch.empty(0)}
        method.kept.append(store)

    def do(method: Toy) -> None:
        assert "entry" in method.kept[0] and len(method.kept[0]) == 1
        method.kept[0]["entry"]["t"].view(-1).clone()

    assert counted(do, begin).peak_live_bytes == 0


def pool(method: Toy) -> None:
    method.kept = [[] for _ in range(5)]


def grow(method: Toy) -> None:
    own = method.kept[int(torch.randint(5, (), generator=method.task.generator))]
    if not own:
        own.append(torch.empty(100))


def test_steps_are_taken_until_all_of_a_pool_has_its_state() -> None:
    assert counted(grow, pool).peak_live_bytes == 5 * 400 + 8  # and the integer


def test_parameters_are_those_of_the_tasks_network() -> None:
    assert counted(lambda method: None).parameters == 2 * 9 + 2 + 2 * 36 * 2 + 2  # 8² padded by 3, pooled: 6²


# --- the counted program is the one that runs

aten = torch.ops.aten
WATCHED = ("convolution", "convolution_backward", "native_group_norm", "native_batch_norm", "avg_pool2d", "mm", "addmm")


def does_its_own_work(event: Any) -> bool:
    """Whether an operator computed, and not only those of its name that it called.

    Vectorised over cotangents it calls itself once for each of its gradients. Along a tangent, whose size it compares
    with its own, it does so besides.
    """
    called = list(event.cpu_children)
    for child in called:  # grows
        called += child.cpu_children
    alone = event.name not in {child.name for child in called}
    return alone or "aten::is_same_size" in {child.name for child in event.cpu_children}


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).iterative])
def test_the_operators_counted_are_those_of_a_step_that_nobody_counts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profiler sees what runs, and is no mode that code could notice: it must see as many in a cycle."""
    cls, store = methods.get(name), Uncounted({})
    network = PROTOCOLS[cls.PROTOCOL].network
    spec = NetworkSpec(network, 3, (8, 8), CLASSES, width=4, depth=2, norm=PROTOCOLS[cls.PROTOCOL].distill_norm)
    options = {key: value for key, value in cls.BUDGETS["smoke"].items() if key != "steps"}
    options |= {"online_updates": 1} if name == "rcig" else {}  # else their number is drawn

    def make() -> Method:
        method = cls(
            distillation_task(spec),
            cls.Config(**{**options, **cls.BUDGETS.get("forecast", cls.BUDGETS.get("cost", {}))}),
            9,
        )
        method.prepare(store)
        return method

    method = make()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(method.steps_per_cycle):
            method.step()
    ran = Counter(event.name for event in seen.events() if does_its_own_work(event))
    found = Counter[str]()

    def tally(operator: str) -> Callable[..., int]:
        return lambda *_, **__: found.update([operator]) or 1

    monkeypatch.setattr(counters, "FORMULAS", {getattr(aten, operator): tally(operator) for operator in WATCHED})
    count(make, CPU, settle=False)
    assert found == Counter({operator: ran[f"aten::{operator}"] for operator in WATCHED})


CLASSES, IPC, REAL, INNER = 3, 2, 7, 4


def distillation_task(spec: NetworkSpec) -> Task:
    images = torch.randn(30, spec.in_channels, *spec.image_size, generator=generator_for("images"))
    return Task(images, torch.arange(30) % CLASSES, CLASSES, IPC, spec.build, generator_for("task"), True)


def convolutions(spec: NetworkSpec) -> tuple[int, int]:
    """Operations of one image in the first convolution, and in all others."""
    side, channels, found = spec.image_size[0], spec.in_channels, []
    for block in range(spec.blocks):
        out = spec.width * 2**block if spec.name == "convnet_doubling" else spec.width
        found.append(2 * side**2 * out * channels * 3**2)
        side, channels = side // 2, out
    return found[0], sum(found[1:])


def frepo_convolutions(first: int, rest: int) -> int:
    """Real images forward; synthetic ones and their mirrors forward and back to themselves; the network trained once.

    Back through a layer to its weights and to its input is a convolution each; nothing asks for the input of the first.
    """
    synthetic = CLASSES * IPC
    return REAL * (first + rest) + 2 * synthetic * 2 * (first + rest) + synthetic * (2 * first + 3 * rest)


def dm_convolutions(first: int, rest: int) -> int:
    """Real images of every class forward; synthetic ones forward and back."""
    return CLASSES * (REAL + 2 * IPC) * (first + rest)


def mtt_convolutions(first: int, rest: int) -> int:
    """Of every inner step forward, backward, and backward through both.

    In all layers but the first: forward 1; its gradient 2; back through the gradient, to what arrived there 2, to input
    and weights 1 each; and back through the forward pass 2. The first layer has no gradient of its input on the way,
    which is 3 less. Nothing asks for the weights to start from, and torch leaves out one of their two gradients.
    """
    synthetic = CLASSES * IPC
    return synthetic * (INNER * (6 * first + 9 * rest) - (first + rest))


@pytest.mark.parametrize("network", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize(
    ("name", "config", "by_hand"),
    [
        ("frepo", {"batch_size": REAL, "pool_size": 2}, frepo_convolutions),
        ("dm", {"batch_real": REAL}, dm_convolutions),
        ("mtt", {"syn_steps": INNER}, mtt_convolutions),
    ],
)
def test_the_convolutions_of_a_step_are_those_counted_by_hand(
    name: str,
    config: Mapping[str, Any],
    by_hand: Callable[[int, int], int],
    network: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = NetworkSpec(network, 3, (8, 8), CLASSES, width=4, depth=2, norm="instance")
    chosen = (aten.convolution, aten.convolution_backward)
    monkeypatch.setattr(counters, "FORMULAS", {packet: counters.FORMULAS[packet] for packet in chosen})
    cls, store = methods.get(name), Uncounted({})

    def make() -> Method:
        method = cls(distillation_task(spec), cls.Config(**config, **cls.BUDGETS.get("forecast", {})), 9)
        method.prepare(store)
        return method

    make()  # fills the store
    assert count(make, CPU).flops == by_hand(*convolutions(spec))


# --- regressions


def train(method: Toy) -> Tensor:
    return F.cross_entropy(method.kept[0](method.task.images), method.task.labels)


def network(method: Toy) -> None:
    method.kept = [method.task.network(method.task.generator)]


def plain(method: Toy) -> None:
    torch.autograd.grad(train(method), list(method.kept[0].parameters()))


def test_an_extra_forward_pass_is_caught() -> None:
    def extra(method: Toy) -> None:
        with torch.no_grad():
            method.kept[0](method.task.images)
        plain(method)

    usual, more = counted(plain, network), counted(extra, network)
    assert more.flops > 1.2 * usual.flops
    assert more.saved_bytes == usual.saved_bytes and more.peak_live_bytes <= usual.peak_live_bytes + 8


def test_a_graph_kept_alive_is_caught() -> None:
    def leaking(method: Toy) -> None:
        loss = train(method)
        torch.autograd.grad(loss, list(method.kept[0].parameters()), retain_graph=True)
        method.kept.append(loss)

    usual, more = counted(plain, network), counted(leaking, network)
    assert more.flops == usual.flops and more.saved_bytes == usual.saved_bytes
    assert more.peak_live_bytes > 1.3 * usual.peak_live_bytes


def test_counting_changes_no_gradient_and_no_global_random_number() -> None:
    def second(method: Toy) -> None:
        images = method.task.images.clone().requires_grad_()
        parameters = list(method.kept[0].parameters())
        loss = F.cross_entropy(method.kept[0](images + 1), method.task.labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        method.kept.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), images)[0])

    made: list[Toy] = []

    def make() -> Toy:
        made.append(Toy(task(), second, network))
        return made[-1]

    before = torch.get_rng_state()
    count(make, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    alone = make()
    alone.step()
    assert alone.kept[1].abs().sum() > 0 and torch.equal(made[0].kept[1], alone.kept[1])
