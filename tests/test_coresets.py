"""Selections by k-means and k-centre: the rules, against their definitions on small problems."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.errors import UserError
from benchmarks.task import generator_for
from methods._coresets import RULES, k_centre, k_means
from methods.checks import CLASSES, prepared
from methods.k_centre import KCentre
from methods.k_means import KMeans, KMeansConfig


def points(count: int = 40, size: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def blobs(sizes: tuple[int, ...], far: float = 50.0) -> tuple[Tensor, Tensor]:
    """Clusters far from each other, shuffled, and the cluster of each row."""
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    cluster = cluster[torch.randperm(len(cluster), generator=generator_for("order"))]
    return points(len(cluster)) + far * torch.eye(6, dtype=torch.float64)[cluster], cluster


@pytest.mark.parametrize("seed", range(5))
def test_k_centre_takes_the_farthest_of_all_that_are_left(seed: int) -> None:
    found = points(9, 4, seed)
    chosen = [int((found - found.mean(0)).norm(dim=1).argmin())]
    while len(chosen) < 9:
        left = [row for row in range(9) if row not in chosen]
        chosen.append(max(left, key=lambda row: float((found[chosen] - found[row]).norm(dim=1).min())))
    assert k_centre(found, 9).tolist() == chosen
    assert k_centre(found, 4).tolist() == chosen[:4]


def test_k_centre_takes_the_lowest_of_equal_rows_and_none_twice() -> None:
    line = torch.tensor([[-1.0], [0.0], [1.0], [0.0]])
    assert k_centre(line, 4).tolist() == [1, 0, 2, 3]
    assert k_centre(torch.zeros(4, 2), 4).tolist() == [0, 1, 2, 3]


def test_k_centre_is_at_most_twice_the_least_radius() -> None:
    for seed in range(10):
        found = points(12, 2, seed)
        distances = torch.cdist(found, found)

        def radius(rows: tuple[int, ...], distances: Tensor = distances) -> float:
            return float(distances[list(rows)].min(0).values.max())

        least = min(radius(rows) for rows in itertools.combinations(range(12), 3))
        assert radius(tuple(k_centre(found, 3).tolist())) <= 2 * least


def test_k_means_takes_the_image_nearest_to_the_centre_of_each_cluster() -> None:
    found, cluster = blobs((10, 14, 9, 7))
    expected = []
    for each in range(4):
        rows = (cluster == each).nonzero().flatten()
        centre = found[rows].mean(0)
        expected.append(int(rows[(found[rows] - centre).norm(dim=1).argmin()]))
    for seed in range(5):
        assert sorted(k_means(found, 4, generator_for(seed)).tolist()) == sorted(expected)


def test_one_cluster_gives_the_image_nearest_to_the_mean() -> None:
    found = points()
    nearest = int((found - found.mean(0)).norm(dim=1).argmin())
    assert k_means(found, 1, generator_for(0)).tolist() == k_centre(found, 1).tolist() == [nearest]


def test_lloyds_iterations_end_where_nothing_changes() -> None:
    """Every centre is the mean of its rows: more iterations change nothing, and fewer are farther from it."""

    def error(rows: Tensor, found: Tensor) -> float:
        return float(torch.cdist(found, found[rows]).min(1).values.square().sum())

    sets = [points(60, 3, seed) for seed in range(10)]
    ended = [k_means(found, 6, generator_for(seed)) for seed, found in enumerate(sets)]
    longer = [k_means(found, 6, generator_for(seed), iterations=1000) for seed, found in enumerate(sets)]
    assert all(torch.equal(a, b) for a, b in zip(ended, longer, strict=True))
    drawn = [k_means(found, 6, generator_for(seed), iterations=0) for seed, found in enumerate(sets)]
    assert sum(map(error, ended, sets)) < 0.9 * sum(map(error, drawn, sets))


def test_k_means_draws_its_first_centres_from_the_generator() -> None:
    found = points(60, 3)
    first, again, other = (k_means(found, 6, generator_for(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_k_means_plus_plus_draws_in_proportion_to_squared_distances() -> None:
    """Without iterations rows stay as drawn: after a row at 0, those at 1 and 3 come as 1 to 9, copies of 0 never."""
    line = torch.tensor([[0.0], [0.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    generator = generator_for("draws")
    pairs = [sorted(line[k_means(line, 2, generator, iterations=0), 0].tolist()) for _ in range(500)]
    ones, threes = pairs.count([0.0, 1.0]), pairs.count([0.0, 3.0])
    # First a 0 (3/5), then 1 or 3 by 1:9; first a 1 (1/5), then a 0 by 3/7; first a 3 (1/5), then a 0 by 27/31.
    expected = [3 / 5 * 1 / 10 + 1 / 5 * 3 / 7, 3 / 5 * 9 / 10 + 1 / 5 * 27 / 31]
    for count, share in zip((ones, threes), expected, strict=True):
        assert abs(count / 500 - share) < 5 * (share * (1 - share) / 500) ** 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rule_chooses_each_row_once(rule: str, dtype: torch.dtype) -> None:
    for found in (points().to(dtype), torch.zeros(6, 3, dtype=dtype), points(3).repeat(2, 1).to(dtype)):
        for count in (1, 3, len(found)):
            assert len(set(RULES[rule](found, count, generator_for(0)).tolist())) == count


@pytest.mark.parametrize("rule", RULES)
def test_a_far_origin_does_not_confuse_a_rule_in_single_precision(rule: str) -> None:
    found = points(200, 64) + 10
    single, double = (RULES[rule](each, 20, generator_for(0)).tolist() for each in (found.float(), found))
    assert single == double


@pytest.mark.parametrize("method", [KMeans, KCentre])
def test_real_images_of_every_class(method: type[KMeans] | type[KCentre]) -> None:
    made = prepared(method)
    found, task = made.synthetic(), made.task
    rows = [int((image == task.images).flatten(1).all(1).nonzero()) for image in found.images]
    assert task.labels[rows].tolist() == [c for c in range(CLASSES) for _ in range(task.ipc)]
    assert torch.equal(found.labels, torch.eye(CLASSES).repeat_interleave(task.ipc, dim=0))


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="train_steps"):
        KMeansConfig(train_steps=-1)
