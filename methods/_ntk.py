"""Kernels of infinitely wide fully connected ReLU networks, in closed form: NNGP and NTK.

Cho and Saul, 2009 (arc-cosine kernel of degree 0 and 1); Lee et al., 2018 (NNGP); Jacot et al., 2018 (NTK). In the NTK
parameterisation: a layer computes w_std/sqrt(fan_in) · W h + b_std · b with standard normal W and b, as networks of the
package neural-tangents do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ANGLE_FLOOR = 1e-12
"""Below this squared sine two inputs count as parallel. The NTK has a kink there (its slope in the sine is not 0), and
rounding would make an angle, with a huge derivative, out of the zero on the diagonal."""


def kernels(
    left: Tensor, right: Tensor, *, depth: int, w_std: float = math.sqrt(2), b_std: float = 0.1
) -> tuple[Tensor, Tensor]:
    """NNGP and NTK, (B, n) each, of inputs (B, D) and (n, D), for ``depth`` hidden layers and a linear read-out.

    Differentiable in both inputs. At parallel inputs, as on the diagonal, the derivative of their angle is taken as 0.
    """

    def dense(covariance: Tensor) -> Tensor:
        return w_std**2 * covariance + b_std**2

    width = left.shape[1]
    nngp = dense(left @ right.T / width)
    left_variance, right_variance = (dense(x.square().sum(1) / width) for x in (left, right))
    ntk = nngp
    for _ in range(depth):
        covariance, derivative = relu_moments(nngp, left_variance, right_variance)
        nngp = dense(covariance)
        ntk = nngp + w_std**2 * derivative * ntk
        left_variance, right_variance = dense(left_variance / 2), dense(right_variance / 2)
    return nngp, ntk


def relu_moments(covariance: Tensor, left_variance: Tensor, right_variance: Tensor) -> tuple[Tensor, Tensor]:
    """E[relu(u) relu(v)] and E[relu'(u) relu'(v)] for Gaussian u, v of mean 0, (B, n) each.

    ``covariance`` (B, n) is the covariance of u and v; the variances (B,) and (n,) are theirs.
    """
    scale = (left_variance[:, None] * right_variance).sqrt()
    cosine = (covariance / scale).clamp(-1, 1)
    squared_sine = (1 - cosine) * (1 + cosine)
    parallel = squared_sine < ANGLE_FLOOR
    # The inner `where` keeps the derivative of the root finite where the outer `where` drops it.
    sine = torch.where(parallel, 0.0, torch.where(parallel, 1.0, squared_sine).sqrt())
    opposite = math.pi - torch.atan2(sine, cosine)
    return scale * (sine + opposite * cosine) / (2 * math.pi), opposite / (2 * math.pi)
