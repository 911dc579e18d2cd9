"""FRePo's ZCA: whole images, blocks of four kinds, rank control, images that are not square."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import preprocess
from benchmarks.preprocess import Preprocess, Zca
from tests.adapters import Adapter, Case, Mistake

BLOCKS: dict[str, dict[str, Any]] = {
    "block": {"layout": "contiguous", "shared": False},
    "blockmean": {"layout": "contiguous", "shared": True},
    "checker": {"layout": "strided", "shared": True},
}

KINDS: dict[str, dict[str, Any]] = {
    "checker_meanblock": {"layout": "strided", "shared": True},
    "checker_ownblock": {"layout": "strided", "shared": False},
    "block_meanblock": {"layout": "contiguous", "shared": True},
}


def zca(case: Case) -> None:
    images = case["in.images_u8"].permute(0, 3, 1, 2)
    ridge = case.cfg["zca_reg"]
    normalise = Preprocess("zca_frepo", case["in.mean"].double(), case["in.std"].double())
    variants: dict[str, dict[str, Any]] = {"full": {}}
    recorded = [name for name in BLOCKS if f"out.{name}.W" in case]
    variants |= {name: {"block": case.cfg["blk"], **BLOCKS[name]} for name in recorded}
    for variant, settings in variants.items():
        fitted = preprocess.zca_frepo(normalise, images, ridge=ridge, **settings)
        check_zca(case, f"out.{variant}.", replace(normalise, zca=fitted).to(dtype=case.dtype), images)
    _, covariance = preprocess.pixel_covariance(normalise, images)
    check(case, "out.full.cov", channels_last(covariance, images.shape[1]))

    if "in.rank.cov" not in case:
        return
    # The covariance of the rank record has no geometry: it is given, and whitened as it is.
    covariance = case["in.rank.cov"].double()
    relative = preprocess.relative_ridge(covariance, ridge)
    whiten, restore = preprocess.whitening(covariance, relative, rank=int(case["in.rank.n_train"]))
    check(case, "out.rank.W", whiten)
    check(case, "out.rank.W_rev", restore)


def block_zca(case: Case) -> None:
    images = case["in.images_u8"].permute(0, 3, 1, 2)
    block, ridge, first = (int(case.cfg["block_size"]), float(case.cfg["zca_reg"]), images[: int(case.cfg["n_apply"])])
    normalise = Preprocess("zca_frepo", case["cfg.mean"].double(), case["cfg.std"].double())
    channels, places = images.shape[1], torch.arange(images[0].numel()).view(*images.shape[2:], -1).permute(2, 0, 1)
    for name, layout in (("checker", "strided"), ("block", "contiguous")):
        rows = preprocess.to_blocks(places[None], block, layout)[:, 0]  # type: ignore[arg-type]
        case.check(f"{name}.index_blocks", rows.view(len(rows), channels, -1).mT.flatten(1), f64=0, f32=0)
    for kind in [kind for kind in KINDS if f"{kind}.forward" in case]:
        fitted = preprocess.zca_frepo(normalise, images, ridge=ridge, block=block, **KINDS[kind])
        _, covariance = preprocess.pixel_covariance(normalise, images, block=block, **KINDS[kind])
        covariance, whiten = (channels_last(matrix, channels) for matrix in (covariance, fitted.whiten))
        check(case, f"{kind}.cov_diag", covariance.diagonal(dim1=-2, dim2=-1))
        check(case, f"{kind}.cov_row0", covariance[..., 0, :])
        check(case, f"{kind}.W_row0", whiten[..., 0, :])
        for name, matrix in (("trace_W", fitted.whiten), ("trace_W_rev", fitted.restore)):
            check(case, f"{kind}.{name}", matrix.diagonal(dim1=-2, dim2=-1).sum(-1))
        check(case, f"{kind}.zca_mean", fitted.mean.permute(1, 2, 0).flatten())
        whole = replace(normalise, zca=fitted).to(dtype=case.dtype)
        applied = whole.forward(first)
        check(case, f"{kind}.forward", applied.permute(0, 2, 3, 1))
        check(case, f"{kind}.inverse", whole.inverse(applied).permute(0, 2, 3, 1))


def check_zca(case: Case, prefix: str, fitted: Preprocess, images: Tensor) -> None:
    assert fitted.zca
    channels = images.shape[1]
    applied = fitted.forward(images[: int(case["in.n_apply"])])
    check(case, f"{prefix}forward", applied.permute(0, 2, 3, 1))
    check(case, f"{prefix}inverse", fitted.inverse(applied).permute(0, 2, 3, 1))
    check(case, f"{prefix}zca_mean", fitted.zca.mean.permute(1, 2, 0).flatten())
    check(case, f"{prefix}W", channels_last(fitted.zca.whiten, channels))
    check(case, f"{prefix}W_rev", channels_last(fitted.zca.restore, channels))


def channels_last(matrix: Tensor, channels: int) -> Tensor:
    """Rows and columns from the order channel, row, column to row, column, channel."""
    order = torch.arange(matrix.shape[-1]).view(channels, -1).T.flatten()
    return matrix[..., order, :][..., order]


def check(case: Case, name: str, actual: Tensor) -> None:
    case.check(name, actual.to(case.dtype), f64=1e-11, f32=2e-5)


ADAPTERS: dict[str, Adapter] = {"frepo_zca": zca, "block_zca": block_zca}


def _attribute(owner: object, name: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


_covariance, _to_blocks, _whitening = preprocess.pixel_covariance, preprocess.to_blocks, preprocess.whitening


def _unbiased(normalise: Preprocess, images: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    mean, covariance = _covariance(normalise, images, **settings)
    return mean, covariance * (len(images) / (len(images) - 1))


def _without_channel_normalisation(normalise: Preprocess, images: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    return _covariance(replace(normalise, mean=normalise.mean * 0, std=normalise.std * 0 + 1), images, **settings)


def _always(layout: str) -> Callable[..., Tensor]:
    return lambda images, block, _: _to_blocks(images, block, layout)  # type: ignore[arg-type]


def _one_matrix(normalise: Preprocess, images: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    mean, covariance = _covariance(normalise, images, **{**settings, "shared": False})
    return mean, covariance[0] if settings["shared"] else covariance


def _channels_last_rows(images: Tensor, block: int | None, layout: Any) -> Tensor:
    if block is None:
        return images.permute(0, 2, 3, 1).flatten(1)[None]
    return _to_blocks(images, block, layout)


MISTAKES = [
    Mistake(f"zca: {name}", "frepo_zca.npz", patch)
    for name, patch in {
        "covariance with n - 1": _attribute(preprocess, "pixel_covariance", _unbiased),
        "covariance without channel normalisation": _attribute(
            preprocess, "pixel_covariance", _without_channel_normalisation
        ),
        "an absolute ridge": _attribute(preprocess, "relative_ridge", lambda covariance, ridge: ridge),
        "no rank control": _attribute(
            preprocess, "whitening", lambda covariance, ridge, rank: _whitening(covariance, ridge)
        ),
        "rank control in W only": _attribute(
            preprocess,
            "whitening",
            lambda covariance, ridge, rank: (
                _whitening(covariance, ridge, rank)[0],
                _whitening(covariance, ridge)[1],
            ),
        ),
        "contiguous instead of strided blocks": _attribute(preprocess, "to_blocks", _always("contiguous")),
        "strided instead of contiguous blocks": _attribute(preprocess, "to_blocks", _always("strided")),
        "flattened in another order than restored": _attribute(preprocess, "to_blocks", _channels_last_rows),
        "W instead of its inverse": _attribute(
            Zca,
            "inverse",
            lambda self, images: replace(self, restore=self.whiten, mean=self.mean * 0).forward(images) + self.mean,
        ),
    }.items()
] + [
    Mistake(f"block zca: {name}", file, patch)
    for name, file, patch in (
        (
            "the matrix of the first block",
            "block_zca_16x16x3_b8.npz",
            _attribute(preprocess, "pixel_covariance", _one_matrix),
        ),
        (
            "contiguous instead of strided",
            "block_zca_12x18x1_b6_few.npz",
            _attribute(preprocess, "to_blocks", _always("contiguous")),
        ),
        (
            "no rank control",
            "block_zca_12x18x1_b6_few.npz",
            _attribute(preprocess, "whitening", lambda covariance, ridge, rank: _whitening(covariance, ridge)),
        ),
    )
]
