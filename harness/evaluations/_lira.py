"""The likelihood-ratio attack (LiRA): was an example in the data behind a network, judged by shadow networks?

Carlini, Chien, Nasr, Song, Terzis and Tramèr, "Membership Inference Attacks From First Principles" (S&P 2022), section
V; the released code is ``research/mi_lira_2021`` of TensorFlow Privacy. Every shadow network has seen a random half of
the examples, so each example has scores of networks that had it and of networks that had not.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.training import double
from harness.evaluations._attacks import Array

ATTACKS = ("online", "online_fixed_variance", "offline", "offline_fixed_variance", "global_threshold")
"""Online: the ratio of both likelihoods. Offline: only that of networks without the example. The global threshold uses
no shadow networks, and is what the others must beat."""
LEAST = 2
"""Shadow networks with and without an example that are needed for a deviation."""


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """φ = log(p_y / (1 − p_y)) of ``logits`` (..., C) for the class indices ``labels`` (...), float64, (...)."""
    logits = double(logits)
    index = labels.to(logits.device)[..., None]
    own = logits.gather(-1, index)[..., 0]
    return own - logits.scatter(-1, index, -torch.inf).logsumexp(-1)


def judged(members: Array) -> Array:
    """Whether each of the examples of ``members`` (shadows, examples) bool has enough shadows on both sides."""
    return np.asarray(np.minimum(members.sum(0), (~members).sum(0)) >= LEAST)


def likelihood_ratio(name: str, scores: Array, members: Array, target: Array, *, cut: bool = False) -> Array:
    """How likely each example is a member of the target by the attack ``name`` of ``ATTACKS``: (examples,).

    ``scores``: φ of the shadow networks, (shadows, examples, queries). ``members``: (shadows, examples) bool; every
    example has both kinds. ``target``: φ of the network under attack, (examples, queries). ``cut``: use only as many
    shadows of each kind as the example with the fewest has, as the released code does.

    The mean of a normal distribution is the median of the scores. Its deviation is that of the example's own scores, or
    with a fixed variance that of all scores of members, offline of non-members, as in the released code.
    """
    from scipy.stats import norm

    if name == "global_threshold":
        return np.asarray(target.mean(-1))
    inside, outside = _listed(scores, members, cut=cut), _listed(scores, ~members, cut=cut)
    online, fixed = name.startswith("online"), name.endswith("fixed_variance")

    def log_density(own: Array, spread: Array) -> Array:
        deviation = np.nanstd(spread, axis=None if fixed else 0) + 1e-30
        return np.asarray(norm.logpdf(target, np.nanmedian(own, axis=0), deviation))

    without = log_density(outside, inside if online and fixed else outside)
    ratio = log_density(inside, inside) - without if online else -without
    return np.asarray(ratio.mean(-1))


def _listed(scores: Array, chosen: Array, *, cut: bool) -> Array:
    """``scores`` (shadows, examples, queries) where ``chosen`` (shadows, examples), NaN elsewhere."""
    if cut:
        chosen = chosen & (chosen.cumsum(0) <= chosen.sum(0).min())
    return np.where(chosen[..., None], scores, np.nan)
