"""Kernel ridge regression on features: training only the last layer, to convergence, in closed form.

Precision. The ridge of 1e-6·tr(K)/n lies at the rounding of a float32 Gram matrix: where K is nearly singular (more
synthetic images than features, similar images) a float32 answer is 10–30 % off. So one rule holds for every n. Features
come in the dtype of the network. Everything between them and the linear weights is float64. The product of the weights
with the many features to predict for is in the dtype of the features again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.training import half_squared_error


def centred_one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Regression targets onehot − 1/C, (B, C), of labels (B,)."""
    return F.one_hot(labels, num_classes).to(dtype) - 1 / num_classes


def regularised(gram: Tensor, ridge: float) -> Tensor:
    """K + ridge·(tr K / n)·I for a Gram matrix K (n, n)."""
    mean_eigenvalue = gram.diagonal().mean()
    return gram + torch.diag(ridge * mean_eigenvalue.expand(len(gram)))


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix⁻¹ right for a positive definite (n, n) and (n, k), differentiable once in both; never synchronises.

    Raises nothing: a matrix that is not positive definite, or holds NaN, gives a meaningless answer or NaN.
    """
    with torch.no_grad():
        factor = torch.linalg.cholesky_ex(matrix).L  # not `cholesky`, which waits for the device to look at its status
        solution = torch.cholesky_solve(right, factor)
    # The last term is zero, but its derivative, matrix⁻¹(d right − d matrix · solution), is the solution's: cheaper
    # than back through Cholesky.
    residual = right - matrix @ solution
    return solution + torch.cholesky_solve(residual - residual.detach(), factor)


def krr_weights(feat_syn: Tensor, y_syn: Tensor, ridge: float) -> Tensor:
    """The last layer fitted to the synthetic set: Y_sᵀ (K + ridge·(tr K / n)·I)⁻¹ f_s with K = f_s f_sᵀ; float64.

    ``feat_syn`` (n, D) and ``y_syn`` (n, C) → (C, D), as the weight of a linear layer.
    """
    features = feat_syn.double()
    coefficients = solve(regularised(features @ features.T, ridge), y_syn.double())
    return coefficients.T @ features


def krr_predict(feat_test: Tensor, feat_syn: Tensor, y_syn: Tensor, ridge: float) -> Tensor:
    """Predictions (B, C) for features (B, D): K_ts (K_ss + ridge·(tr K_ss / n)·I)⁻¹ Y_s.

    FRePo paper, equations 2 and 3. Through the weights (C, D) it costs less than through K_ts (B, n), and K_ts is
    never stored.
    """
    return F.linear(feat_test, krr_weights(feat_syn, y_syn, ridge).to(feat_test.dtype))


def krr_loss(feat_real: Tensor, y_real: Tensor, feat_syn: Tensor, y_syn: Tensor, ridge: float) -> Tensor:
    """Mean over the real batch of ½ Σ over classes of (prediction − y_real)², 0-d (FRePo paper, equation 2)."""
    return half_squared_error(krr_predict(feat_real, feat_syn, y_syn, ridge), y_real)
