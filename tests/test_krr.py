"""Kernel regression against a direct solve, its limits and its gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import krr


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_prediction_is_that_of_the_direct_solve() -> None:
    feat_test, feat_syn, y_syn = draw(5, 12), draw(7, 12, seed=1), draw(7, 3, seed=2)
    gram = feat_syn @ feat_syn.T
    inverse = torch.linalg.inv(gram + 0.01 * gram.trace() / 7 * torch.eye(7, dtype=torch.float64))
    expected = feat_test @ feat_syn.T @ inverse @ y_syn
    torch.testing.assert_close(krr.krr_predict(feat_test, feat_syn, y_syn, 0.01), expected)


def test_without_a_ridge_it_interpolates() -> None:
    feat_syn, y_syn = draw(7, 12), draw(7, 3, seed=1)
    errors = [float((krr.krr_predict(feat_syn, feat_syn, y_syn, r) - y_syn).abs().max()) for r in (1e-2, 1e-6, 1e-12)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-10


def test_with_a_large_ridge_it_predicts_nothing() -> None:
    assert krr.krr_predict(draw(5, 12), draw(7, 12, seed=1), draw(7, 3, seed=2), 1e9).abs().max() < 1e-7


def test_more_images_than_features_is_least_squares() -> None:
    """Within the bias of the ridge r, at most r/σ² for the smallest singular value σ, and rounding.

    Two products over the n images round by n·u each, and the solve between them passes on κ times that.
    """
    feat_syn, y_syn, ridge = draw(20, 4), draw(20, 3, seed=1), 1e-7
    expected = torch.linalg.lstsq(feat_syn, y_syn).solution.T
    gram = feat_syn @ feat_syn.T
    bias = float(ridge * gram.trace() / 20 / torch.linalg.svdvals(feat_syn)[-1].square())
    unit_roundoff = torch.finfo(gram.dtype).eps / 2
    rounding = 2 * 20 * unit_roundoff * float(torch.linalg.cond(krr.regularised(gram, ridge)))
    assert bias + rounding < 1e-6
    error = (krr.krr_weights(feat_syn, y_syn, ridge) - expected).norm() / expected.norm()
    assert error < bias + rounding


def test_the_scale_of_the_features_does_not_matter() -> None:
    """The ridge is in units of the mean eigenvalue."""
    feat_test, feat_syn, y_syn = draw(5, 12), draw(7, 12, seed=1), draw(7, 3, seed=2)
    expected = krr.krr_predict(feat_test, feat_syn, y_syn, 0.1)
    torch.testing.assert_close(krr.krr_predict(1e3 * feat_test, 1e3 * feat_syn, y_syn, 0.1), expected)


def test_gradients() -> None:
    leaves = [draw(6, 5).requires_grad_(), draw(8, 5, seed=1).requires_grad_(), draw(8, 3, seed=2).requires_grad_()]
    y_real = draw(6, 3, seed=3)
    assert torch.autograd.gradcheck(lambda real, syn, y: krr.krr_loss(real, y_real, syn, y, 0.01), leaves)


def test_a_solve_is_differentiable_in_matrix_and_right_hand_side() -> None:
    root, right = draw(5, 5).requires_grad_(), draw(5, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: krr.solve(a @ a.T + torch.eye(5, dtype=a.dtype), b), (root, right))


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_float32_features_keep_their_precision_where_the_gram_matrix_is_singular(ridge: float) -> None:
    feat_real, feat_syn, y_syn, y_real = (
        tensor.float() for tensor in (draw(9, 6), draw(20, 6, seed=1), draw(20, 3, seed=2), draw(9, 3, seed=3))
    )
    feat_syn[1] = feat_syn[0]
    results = []
    for dtype in (torch.float32, torch.float64):
        feat, y = feat_syn.to(dtype).requires_grad_(), y_syn.to(dtype).requires_grad_()
        loss = krr.krr_loss(feat_real.to(dtype), y_real.to(dtype), feat, y, ridge)
        gradients = torch.autograd.grad(loss, (feat, y))
        assert loss.dtype == dtype and all(gradient.dtype == dtype for gradient in gradients)
        results.append([loss.detach(), *gradients])
    for single, double in zip(*results, strict=True):
        assert (single - double).abs().max() / double.abs().max() < 1e-5


def test_what_cannot_be_solved_is_not_a_number() -> None:
    feat_syn = draw(7, 12)
    feat_syn[2, 3] = torch.nan
    assert krr.krr_predict(draw(5, 12), feat_syn, draw(7, 3), 1e-6).isnan().all()
    assert krr.krr_predict(draw(5, 12), torch.zeros(7, 12), draw(7, 3), 1e-6).isnan().all()
