"""The counters: what can be counted by hand, and what a method does wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import methods
from benchmarks.networks import NetworkSpec
from benchmarks.task import Task, generator_for
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


# --- whole steps


BATCH, IPC, CLASSES = 6, 2, 2
BLOCK1, BLOCK2 = 2 * 9 * 3 * 4 * 8 * 8, 2 * 9 * 4 * 4 * 4 * 4
"""Operations of the two convolutions of ``convnet`` of width 4 on one image of 3×8×8."""
HEAD = 2 * (4 * 2 * 2) * CLASSES


def step_flops(name: str, **config: Any) -> float:
    """Counted in a step of the method ``name``, on so few images that the batches can be counted by hand."""
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    spec = NetworkSpec("convnet", 3, (8, 8), CLASSES, width=4, depth=2, norm="instance")
    data = Task(images, torch.arange(16) % CLASSES, CLASSES, IPC, spec.build, generator_for("test"), False)
    method_class, store = methods.get(name), Uncounted({})

    def make() -> Method:
        method = method_class(data, method_class.Config(**config), 3)
        method.prepare(store)
        return method

    make()  # fills the store
    return count(make, CPU).flops


def test_a_step_of_dm_is_counted() -> None:
    """Real images pass once; the synthetic ones pass, and their gradient comes back through both convolutions."""
    real, synthetic = CLASSES * BATCH, CLASSES * IPC
    assert step_flops("dm", batch_real=BATCH) == (real + 2 * synthetic) * (BLOCK1 + BLOCK2)


def test_an_inner_step_of_mtt_is_counted() -> None:
    """Of one more inner step and every image: the loss, the gradient of the parameters, and the derivatives of both.

    The loss takes one product with each weight. The gradient takes one for the weight and, but for the first layer, one
    for the input. A product has two derivatives, so these three have six; those of the first layer's two have four.
    """
    short = {"num_experts": 1, "expert_epochs": 1, "max_start_epoch": 1, "train_epochs": 1, "batch_train": 8}
    two, three = (step_flops("mtt", syn_steps=steps, **short) for steps in (2, 3))
    assert three - two == CLASSES * IPC * ((2 + 4) * BLOCK1 + (3 + 6) * BLOCK2 + (3 + 6) * HEAD)
