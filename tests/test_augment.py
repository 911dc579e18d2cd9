"""Augmentations: ranges of the draws, gradients of every operation, siamese and per image."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import augment
from benchmarks.augment import DSA_STRATEGY, FREPO_OPERATIONS, apply_dsa, apply_frepo, draw_dsa, draw_frepo

DSA_OPERATIONS = DSA_STRATEGY.split("_")
SAMPLER_TWICE = torch.__version__ >= "2.13"
"""Whether torch can differentiate its sampler twice."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def draws_of(op: str, image_size: tuple[int, int], count: int, seed: int = 0) -> Tensor:
    return draw_dsa(image_size, count, generator(seed), flip=True, strategy=op)[1]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("op", DSA_OPERATIONS)
def test_dsa_gradients(op: str, count: int) -> None:
    images = random_images(2, 2, 4, 5).requires_grad_()
    draws = draws_of(op, (4, 5), count)
    assert torch.autograd.gradcheck(lambda x: apply_dsa(op, x, draws), images)
    if SAMPLER_TWICE or op not in ("scale", "rotate"):
        assert torch.autograd.gradgradcheck(lambda x: apply_dsa(op, x, draws).pow(3), images)


@pytest.mark.parametrize("op", FREPO_OPERATIONS)
def test_frepo_gradients(op: str) -> None:
    images = random_images(2, 2, 4, 5).requires_grad_()
    draws = torch.rand(3, 2, generator=generator())
    assert torch.autograd.gradcheck(lambda x: apply_frepo(op, x, draws), images)
    if SAMPLER_TWICE or op not in ("crop", "rotate", "translate"):
        assert torch.autograd.gradgradcheck(lambda x: apply_frepo(op, x, draws).pow(3), images)


@pytest.mark.parametrize("op", DSA_OPERATIONS)
def test_gradients_of_weights_can_be_differentiated_again(op: str) -> None:
    draws = draws_of(op, (4, 5), 2)
    weight = random_images(40, 3, seed=1).requires_grad_()

    def slope(images: Tensor) -> Tensor:
        loss = (apply_dsa(op, images, draws).flatten(1) @ weight).pow(3).sum()
        return torch.autograd.grad(loss, weight, create_graph=True)[0]

    assert torch.autograd.gradcheck(slope, random_images(2, 2, 4, 5).requires_grad_())


@pytest.mark.parametrize("op", DSA_OPERATIONS)
def test_a_batch_is_augmented_as_its_images_are(op: str) -> None:
    images = random_images(4, 3, 9, 7)
    draws = draws_of(op, (9, 7), 4)
    together = apply_dsa(op, images, draws)
    one_by_one = [apply_dsa(op, images[i : i + 1], draws[:, i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(one_by_one))
    assert together.shape == images.shape and not torch.equal(together, images)


@pytest.mark.parametrize("op", DSA_OPERATIONS)
def test_one_draw_serves_batches_of_any_size(op: str) -> None:
    op, draws = draw_dsa((8, 8), 1, generator(), flip=True, strategy=op)
    images = random_images(6, 3, 8, 8)
    torch.testing.assert_close(apply_dsa(op, images, draws)[:2], apply_dsa(op, images[:2], draws))


def test_siamese_treats_equal_images_alike_and_per_image_does_not() -> None:
    images = random_images(1, 3, 8, 8).expand(5, -1, -1, -1)
    for op in DSA_OPERATIONS:
        alike = apply_dsa(op, images, draws_of(op, (8, 8), 1))
        torch.testing.assert_close(alike, alike[:1].expand(5, -1, -1, -1))
        own = apply_dsa(op, images, draws_of(op, (8, 8), 5))
        assert not torch.equal(own[0], own[3])


@pytest.mark.parametrize("size", [8, 15, 28, 32])
def test_draws_stay_in_their_ranges_and_reach_the_ends(size: int) -> None:
    crop, half = int(0.125 * size + 0.5), int(0.5 * size + 0.5)
    draws = draws_of("crop", (size, size), 2000)
    assert (int(draws.min()), int(draws.max())) == (-crop, crop)
    draws = draws_of("cutout", (size, size), 2000)
    assert (int(draws.min()), int(draws.max())) == (0, size - half % 2)
    for op, parameters in (("color", 3), ("scale", 2), ("rotate", 1), ("flip", 1)):
        draws = draws_of(op, (size, size), 2000)
        assert draws.shape == (parameters, 2000) and 0 <= draws.min() < 0.01 and 0.99 < draws.max() < 1
    rows, columns = draws_of("crop", (size, 4 * size), 2000)
    assert int(columns.max()) == int(0.5 * size + 0.5) > int(rows.max())


def test_every_operation_is_drawn_and_flip_only_where_allowed() -> None:
    source = generator()
    drawn = {draw_dsa((8, 8), 1, source, flip=True)[0] for _ in range(200)}
    assert drawn == set(DSA_OPERATIONS)
    drawn = {draw_dsa((8, 8), 1, source, flip=False)[0] for _ in range(200)}
    assert drawn == set(DSA_OPERATIONS) - {"flip"}


def test_frepo_flips_only_where_allowed() -> None:
    source = generator()
    for flip, expected in ((True, set(FREPO_OPERATIONS)), (False, set(FREPO_OPERATIONS) - {"flip"})):
        drawn = [draw_frepo(2, source, flip=flip) for _ in range(200)]
        assert {op for op, _ in drawn} == expected
        values = torch.stack([draws for _, draws in drawn])
        assert values.shape == (200, 3, 2) and 0 <= values.min() < 0.01 and 0.99 < values.max() < 1


@pytest.mark.parametrize(
    "draw", [lambda source: draw_dsa((8, 8), 3, source, flip=True), lambda source: draw_frepo(3, source, flip=True)]
)
def test_the_generator_decides_everything(draw: Callable[[torch.Generator], tuple[str, Tensor]]) -> None:
    before = torch.get_rng_state()
    found = [[draw(generator(seed)) for seed in range(8)] for _ in range(2)]
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(*found, strict=True))
    assert len({(op, tuple(draws.flatten().tolist())) for op, draws in found[0]}) == 8
    assert torch.equal(before, torch.get_rng_state())


def test_shift_brings_in_zeros() -> None:
    images = torch.arange(1.0, 10).view(1, 1, 3, 3)
    moved = augment.shift(images, torch.tensor([1]), torch.tensor([-1]))
    assert moved[0, 0].tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]


def test_cutout_is_clipped_at_the_border() -> None:
    ones = torch.ones(2, 1, 4, 4)
    cut = augment.cutout(ones, torch.tensor([0, 2]), torch.tensor([4, 1]), (2, 2))
    assert cut[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert cut[1, 0].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]


def test_frepo_translate_and_zoom_by_hand() -> None:
    images = torch.arange(64.0, dtype=torch.float64).view(1, 1, 8, 8)
    right = torch.tensor([[1.0], [0.5], [0.5]])  # an eighth of eight pixels, and no rows
    torch.testing.assert_close(apply_frepo("translate", images, right)[..., :7], images[..., 1:])
    ramp = torch.linspace(-7, 7, 8, dtype=torch.float64).expand(1, 1, 8, 8)
    closer = apply_frepo("crop", ramp, torch.tensor([[1.0], [1.0], [0.5]]))  # zoom 1.25 at the right border
    torch.testing.assert_close(closer[0, 0, 4, :7], 0.8 * ramp[0, 0, 4, :7] + 8 * 0.2)
    farther = apply_frepo("crop", torch.ones_like(ramp), torch.tensor([[0.0], [0.5], [0.5]]))
    assert float(farther[0, 0, 4, 4]) == pytest.approx(1) and farther[0, 0, 0, 0] < 0.9


def test_frepo_colour_ranges() -> None:
    images = random_images(1, 3, 4, 4)
    high, low = torch.ones(3, 1), torch.zeros(3, 1)
    for draws, sign in ((high, 1), (low, -1)):
        changed = apply_frepo("color", images, draws)
        assert float(changed.mean() - images.mean()) == pytest.approx(0.25 * sign)
        gray, before = changed.mean(1), images.mean(1)
        ratio = (gray - gray.mean()) / (before - before.mean())
        torch.testing.assert_close(ratio, torch.full_like(ratio, math.exp(0.25 * sign)))


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_aligned_corners_would_sample_the_same_points(name: str) -> None:
    images = random_images(4, 3, 16, 16)
    u = torch.rand(2, 4, dtype=torch.float64, generator=generator())
    zero = torch.zeros_like(u[0])
    if name == "scale":
        x, y = u + 0.5
        ours, theta = augment.scale(images, x, y), (x, zero, zero, zero, y, zero)
    else:
        sin, cos = torch.sin(u[0]), torch.cos(u[0])
        ours, theta = augment.rotate(images, u[0]), (cos, -sin, zero, sin, cos, zero)
    grid = F.affine_grid(torch.stack(theta, 1).view(-1, 2, 3), [4, 3, 16, 16], align_corners=True)
    torch.testing.assert_close(ours, F.grid_sample(images, grid, align_corners=True))


def test_rotation_is_in_coordinates_along_either_side() -> None:
    """As the official code has it: what is turned by 90° in an oblong image takes on the image's proportions."""
    images = torch.zeros(1, 1, 16, 32, dtype=torch.float64)
    images[0, 0, 6:10, :] = 1  # the middle quarter of the rows
    turned = augment.rotate(images, torch.tensor([math.pi / 2], dtype=torch.float64))
    expected = torch.zeros_like(images)
    # It becomes the middle quarter of the columns, interpolated at its edges.
    expected[..., 11:21] = torch.tensor([0.25, 0.75, 1, 1, 1, 1, 1, 1, 0.75, 0.25], dtype=torch.float64)
    torch.testing.assert_close(turned, expected)
