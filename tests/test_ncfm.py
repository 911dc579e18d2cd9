"""NCFM: a whole step against plain code, its networks, and its step size."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.augment import apply_dsa, draw_dsa
from benchmarks.errors import UserError
from benchmarks.task import Task
from methods import _pairs, checks
from methods._optim import AdamW, after_plateau
from methods._pairs import Pairs
from methods._unroll import flatten, unflatten
from methods.base import Store
from methods.checks import CLASSES, IPC, tiny_task
from methods.ncfm import NCFM, NCFMConfig

SETTINGS: dict[str, Any] = {"num_freqs": 16, "batch_real": 7, "num_premodel": 2, "pretrain_steps": 4}


def method(store: Store | None = None, *, dtype: torch.dtype = torch.float32, **changes: Any) -> NCFM:
    running = NCFM(tiny_task(0, dtype), NCFMConfig(**{**SETTINGS, **changes}), 10)
    running.prepare({} if store is None else store)
    return running


# A whole step


class Plain:
    """The official loop in plain code: an optimiser of the whole tensor, which takes a step after every class."""

    def __init__(self, running: NCFM) -> None:
        self.config, self.pixels, self.done = running.config, running.pixels.clone(), 0
        self.first, self.second = torch.zeros_like(self.pixels), torch.zeros_like(self.pixels)
        task, generator = running.task, torch.Generator()
        generator.set_state(task.generator.get_state())
        self.task: Task = dataclasses.replace(task, generator=generator)
        self.low, self.high = (getattr(task.images, end)((0, 2, 3), keepdim=True) for end in ("amin", "amax"))
        self.network, self.store, self.names = running.network, running.pairs.store, running.pairs.names

    def decoded(self, pixels: Tensor) -> Tensor:
        images = pixels * self.high + (1 - pixels) * self.low
        half = images.shape[-1] // 2
        quarters = [images[:, :, i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
        enlarged = [F.interpolate(q, size=(2 * half, 2 * half), mode="bilinear") for q in quarters]
        return torch.stack(enlarged, 1).flatten(0, 1)

    def augmented(self, *batches: Tensor) -> list[Tensor]:
        for name in ("color", "crop", "cutout"):
            op, draws = draw_dsa((8, 8), 1, self.task.generator, flip=False, strategy=name)
            batches = tuple(apply_dsa(op, batch, draws) for batch in batches)
        return list(batches)

    def matching(self, place: int, synthetic: Tensor, flat: Tensor) -> Tensor:
        rows = torch.nonzero(self.task.labels == place).flatten()
        real = self.task.images[rows[torch.randperm(len(rows), generator=self.task.generator)[:7]]]
        real, synthetic = self.augmented(real, synthetic)
        seed = int(torch.randint(2**62, (), generator=self.task.generator))
        named = {name: value for name, value in unflatten(self.network, flat).items() if name.startswith("body.")}
        body = {name.removeprefix("body."): value for name, value in named.items()}
        features = [functional_call(self.network.body, body, (x,)).flatten(1) for x in (real, synthetic)]
        real, synthetic = (x / x.square().sum(1, keepdim=True).sqrt() for x in features)
        t = torch.randn(16, real.shape[1], generator=torch.Generator().manual_seed(seed), dtype=real.dtype)
        # φ as complex numbers: amplitude and phase of equal weight are the distance in the plane
        real_phi, phi = (torch.exp(1j * (t @ x.T)).mean(1) for x in (real.detach(), synthetic))
        return 300 * ((real_phi - phi).abs() / math.sqrt(2)).mean()

    def calibration(self, place: int, synthetic: Tensor, flat: Tensor) -> Tensor:
        (synthetic,) = self.augmented(synthetic)
        logits = functional_call(self.network, unflatten(self.network, flat), (synthetic,))
        mean: Tensor = -logits.log_softmax(1)[:, place].mean()
        return mean

    def step(self) -> None:
        pair = self.store[self.names[int(torch.randint(2, (), generator=self.task.generator))]]
        share = float(torch.rand((), generator=self.task.generator))
        between = share * pair["initial"] + (1 - share) * pair["trained"]
        for loss, flat in ((self.matching, between), (self.calibration, pair["trained"])):
            for place in range(CLASSES):
                own = self.pixels[place * IPC : (place + 1) * IPC].clone().requires_grad_()
                gradient = torch.zeros_like(self.pixels)
                value = loss(place, self.decoded(own), flat)
                gradient[place * IPC : (place + 1) * IPC] = torch.autograd.grad(value, own)[0]
                self.adamw(gradient)
        self.pixels = self.pixels.clamp(0, 1)

    def adamw(self, gradient: Tensor) -> None:
        self.done += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean, square = self.first / (1 - 0.9**self.done), self.second / (1 - 0.999**self.done)
        lr = self.config.lr_img
        self.pixels = (1 - lr * self.config.weight_decay) * self.pixels - lr * mean / (square.sqrt() + 1e-8)


def test_steps_in_float64_are_those_of_plain_code() -> None:
    """Two iterations. Pixels that no gradient reaches move by the moments of others alone, so all are compared."""
    running = method(dtype=torch.float64, lr_img=0.01, weight_decay=0.1)
    plain, before = Plain(running), running.pixels.clone()
    torch.testing.assert_close(plain.decoded(before), running.synthetic().decoded().images, rtol=0, atol=1e-12)
    for _ in range(2):
        running.step()
        plain.step()
    moved = (running.pixels - before).abs().max()
    assert moved > 0.02
    torch.testing.assert_close(running.pixels, plain.pixels, rtol=0, atol=1e-7 * float(moved))
    assert torch.equal(running.task.generator.get_state(), plain.task.generator.get_state())


def test_pixels_lie_between_the_darkest_and_the_lightest_real_ones() -> None:
    task = tiny_task()
    running = method(lr_img=1.0)
    for _ in range(2):
        running.step()
    images = running.synthetic().images
    assert bool((images >= task.images.min() - 1e-5).all()) and bool((images <= task.images.max() + 1e-5).all())
    assert float(images.max() - images.min()) > 0.9 * float(task.images.max() - task.images.min())


@pytest.mark.parametrize(("factor", "decoded"), [(1, 6), (2, 24), (3, 54)])
def test_images_start_from_real_ones(factor: int, decoded: int) -> None:
    """Small ones at factor 2 and 3."""
    running = method(factor=factor)
    synthetic, task = running.synthetic(), tiny_task()
    assert synthetic.images.shape == (6, 1, 8, 8) and synthetic.factor == factor
    assert len(synthetic.decoded().images) == decoded
    # The first column of the first tile is every 1st, 2nd or 3rd pixel of the first column of a real image.
    height = -(-8 // factor)
    for image, label in zip(synthetic.images, synthetic.labels.argmax(1), strict=True):
        columns = task.images[task.labels == label][:, 0, :, 0]
        picked = columns[:, [row * 8 // height for row in range(height)]]
        assert float((picked - image[0, :height, 0]).abs().amax(1).min()) < 1e-5


def test_a_channel_of_one_level_stays_as_it_is() -> None:
    task = tiny_task()
    task = dataclasses.replace(task, images=torch.full_like(task.images, 0.7))
    running = NCFM(task, NCFMConfig(**SETTINGS), 10)
    torch.testing.assert_close(running.synthetic().images, torch.full((6, 1, 8, 8), 0.7))


def test_the_step_size_is_halved_on_a_plateau_as_torch_does_it() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = 1 + torch.rand(200, generator=generator) * torch.linspace(1, 0.2, 200)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=7)
    lr, best, idle = torch.tensor(1.0), torch.tensor(math.inf), torch.tensor(0.0)
    seen = set()
    for loss in losses:
        scheduler.step(float(loss))
        lr, best, idle = after_plateau(loss, lr, best, idle, 7)
        assert float(lr) == optimiser.param_groups[0]["lr"]
        seen.add(float(lr))
    assert len(seen) > 3


def test_adamw_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    ours, theirs = start.clone(), start.clone()
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimisers = AdamW([ours], lr, 0.3), torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3)
    for step in range(6):
        gradient = torch.randn(5, 3, generator=generator, dtype=torch.float64) * (step % 2)
        for tensor, optimiser in zip((ours, theirs), optimisers, strict=True):
            tensor.grad = gradient
            optimiser.step()
        if step == 3:
            lr.copy_(lr / 2)
            optimisers[1].param_groups[0]["lr"] = 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert float((ours - start).abs().min()) > 1e-3


def test_the_optimiser_follows_the_plateau_also_after_a_checkpoint() -> None:
    store: Store = {}
    running = method(store, patience=1)
    for _ in range(12):
        running.step()
    assert float(running.lr) < NCFMConfig.lr_img
    resumed = method(store, patience=1)
    resumed.load_state_dict(copy.deepcopy(running.state_dict()))
    for each in (running, resumed):
        assert each.optimiser.param_groups[0]["lr"] is each.lr
        for _ in range(6):
            each.step()
    assert torch.equal(running.pixels, resumed.pixels) and torch.equal(running.lr, resumed.lr)


# Pairs of networks


def test_a_pair_is_a_network_before_and_after_training() -> None:
    task, store = tiny_task(), dict[str, Any]()
    pairs = Pairs(task, count=3, epochs=60, steps=None)
    drops = pairs.recipe.drop_wait + pairs.recipe.drop_after, pairs.recipe.drop_wait + 2 * pairs.recipe.drop_after
    assert drops == (40, 50) and pairs.recipe.epochs == 60
    pairs = Pairs(task, count=3, epochs=2, steps=None)
    pairs.prepare(store)
    assert sorted(store) == sorted(pairs.names) and len(set(pairs.names)) == 3
    for entry in store.values():
        assert entry["initial"].shape == entry["trained"].shape == flatten(tiny_network().parameters()).shape
        assert not torch.equal(entry["initial"], entry["trained"])
    drawn = {float(pairs.draw()[1].sum()) for _ in range(40)}
    assert drawn == {float(entry["trained"].sum()) for entry in store.values()}


def tiny_network() -> torch.nn.Module:
    return tiny_task().network(torch.Generator().manual_seed(0))


def test_pairs_of_other_settings_are_other_entries() -> None:
    task = tiny_task()
    settings: list[dict[str, Any]] = [
        {"count": 1, "epochs": 60, "steps": None},
        {"count": 1, "epochs": 80, "steps": None},
        {"count": 1, "epochs": 60, "steps": 5},
    ]
    names = [name for each in settings for name in Pairs(task, **each).names]
    assert len(set(names)) == 3
    assert Pairs(tiny_task(0, torch.float64), **settings[0]).names[0] not in names


def test_training_makes_a_pair_better(monkeypatch: pytest.MonkeyPatch) -> None:
    task, store = tiny_task(), dict[str, Any]()
    monkeypatch.setattr(_pairs, "RECIPE", dataclasses.replace(_pairs.RECIPE, batch_size=20))
    Pairs(task, count=1, epochs=20, steps=None).prepare(store)
    (entry,), network = store.values(), task.network(torch.Generator().manual_seed(0))
    losses = [
        float(F.cross_entropy(functional_call(network, unflatten(network, entry[part]), (task.images,)), task.labels))
        for part in ("initial", "trained")
    ]
    assert losses[1] < 0.6 * losses[0]


# Settings


@pytest.mark.parametrize(
    "check", [checks.check_set, checks.check_classes, checks.check_resume, checks.check_no_waiting]
)
def test_without_a_decoder_everything_holds_as_well(check: Any) -> None:
    budgets = {budget: {**changes, "factor": 1} for budget, changes in NCFM.BUDGETS.items()}
    check("ncfm", type("NCFM", (NCFM,), {"BUDGETS": budgets, "__module__": NCFM.__module__}))


@pytest.mark.parametrize(("wrong", "said"), [({"factor": 0}, "above 0"), ({"lr_img": 0.0}, "lr_img is 0.0")])
def test_a_setting_out_of_range_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        NCFMConfig(**wrong)


def test_more_tiles_than_pixels_are_refused() -> None:
    """With 5 × 5 tiles of 2 pixels the last ones lie outside of 8 × 8 pixels."""
    for factor in (5, 9):
        with pytest.raises(UserError, match=f"factor is {factor}, too large for images of 8×8 pixels"):
            NCFM(tiny_task(), NCFMConfig(factor=factor), 10)


def test_the_defaults_are_published() -> None:
    config = NCFMConfig()
    assert (config.scale, config.alpha, config.beta, config.num_freqs, config.factor) == (300, 0.5, 0.5, 4096, 2)
    assert (config.lr_img, config.weight_decay, config.batch_real, config.num_premodel) == (1e-3, 5e-4, 1024, 20)
    assert {changes["steps"] for changes in NCFM.PAPER.values()} == {20_000}
