"""Intervals and paired tests for values that have two levels: distillation seeds, and networks within a seed.

Everything is computed from the values alone, by resampling: the same values give the same numbers. A set of values is
a list for every seed, in the order of the networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
# numpy is imported where it is used: --help must not wait for it.

LEVEL = 0.05
"""Largest p that is called significant; intervals hold 1 − ``LEVEL``."""
RESAMPLES = 10_000
"""Resamples of the bootstrap."""
FEWEST_SEEDS, FEWEST_PAIRS = 3, 5
"""Seeds from which a p is shown, and pairs from which an interval of differences says anything."""
EXACT_SEEDS = 16
"""Up to so many seeds all changes of sign are tried, from there on as many random ones."""


@dataclass(frozen=True)
class Interval:
    """A percentile interval of a mean."""

    low: float
    high: float
    over: str
    """What was drawn again: ``seeds and networks``, ``networks`` (of a single seed), or ``seeds`` (a network each)."""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Sequence[Sequence[float]]) -> Interval | None:
    """The nested bootstrap interval of the mean of ``values``, a list for every seed. None for fewer than two values.

    Each resample draws as many seeds as there are, and in each of these as many networks as it has, all with
    replacement. Every seed weighs the same. With a single seed the interval covers the networks alone, and says nothing
    of another distillation.
    """
    import numpy as np

    seeds = [own for own in values if own]
    if sum(map(len, seeds)) < 2:
        return None
    return _percentiles(_resampled(seeds, np.random.default_rng(0)), _over(seeds))


def interval_of_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval | None:
    """As `interval`, for the mean of ``first`` less that of ``second``, whose values do not pair."""
    import numpy as np

    both = [[own for own in values if own] for values in (first, second)]
    if any(sum(map(len, seeds)) < 2 for seeds in both):
        return None
    generator = np.random.default_rng(0)
    means, others = (_resampled(seeds, generator) for seeds in both)
    over = {_over(seeds) for seeds in both}
    return _percentiles(means - others, over.pop() if len(over) == 1 else "seeds and networks")


def _over(seeds: Sequence[Sequence[float]]) -> str:
    if len(seeds) == 1:
        return "networks"
    return "seeds" if all(len(own) == 1 for own in seeds) else "seeds and networks"


def _percentiles(means: NDArray[np.float64], over: str) -> Interval:
    import numpy as np

    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return Interval(float(low), float(high), over)


def _resampled(seeds: Sequence[Sequence[float]], generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of ``RESAMPLES`` resamples of both levels."""
    import numpy as np

    sizes = np.array([len(own) for own in seeds])
    table = np.zeros((len(seeds), sizes.max()))
    for row, own in zip(table, seeds, strict=True):
        row[: len(own)] = own
    total = np.zeros(RESAMPLES)
    for _ in seeds:
        seed = generator.integers(len(seeds), size=RESAMPLES)
        size = sizes[seed, None]
        places = (generator.random((RESAMPLES, table.shape[1])) * size).astype(int)
        drawn = table[seed[:, None], places] * (np.arange(table.shape[1]) < size)
        total += drawn.sum(1) / size[:, 0]
    return total / len(seeds)


def sign_flip(differences: Sequence[float]) -> tuple[float, float]:
    """Two-sided p of the hypothesis that ``differences``, one of each seed, are symmetric about 0; and the smallest p.

    The share of all changes of sign whose sum is at least as far from 0 as the one observed. The smallest p that so
    many seeds can give at all is 2/2ⁿ. With more than ``EXACT_SEEDS`` seeds, random changes of sign are counted.
    """
    import numpy as np

    values = np.asarray(differences, dtype=float)
    if len(values) <= EXACT_SEEDS:
        # The first sign may stay: changing all signs leaves the distance from 0 as it is.
        signs = np.array([(1, *rest) for rest in itertools.product((1, -1), repeat=len(values) - 1)])
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(2 ** (EXACT_SEEDS - 1), len(values)))
        signs[0] = 1  # the one observed counts
    margin = 1e-9 * float(np.abs(values).sum())  # sums that are equal but for rounding are
    extreme = np.abs(signs @ values) >= abs(float(values.sum())) - margin
    return float(extreme.mean()), 1 / len(signs)


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two sets of values, first less second."""

    difference: float
    """Mean over the seeds of the mean over the networks of a seed."""
    interval: Interval | None
    p: float
    smallest_p: float
    """By `sign_flip` over the means of the seeds; with fewer than ``FEWEST_SEEDS`` of them no test worth the name."""
    pairs: int
    seeds: int


def compare(first: Mapping[Any, Sequence[float]], second: Mapping[Any, Sequence[float]]) -> Comparison | None:
    """Compare values that pair by seed, which are the keys, and by place in the list. None where nothing pairs.

    The pairs of a seed share its distillations, so the test is of the means of the seeds, never of the networks.
    """
    paired = [
        [one - other for one, other in zip(own, second[seed], strict=False)]
        for seed, own in sorted(first.items())
        if seed in second
    ]
    differences = [own for own in paired if own]
    if not differences:
        return None
    means = [math.fsum(own) / len(own) for own in differences]
    count = sum(map(len, differences))
    return Comparison(math.fsum(means) / len(means), interval(differences), *sign_flip(means), count, len(means))


def holm(values: Sequence[float]) -> list[float]:
    """p ``values`` corrected for their number, in their order (Holm, Scandinavian Journal of Statistics, 1979)."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected
