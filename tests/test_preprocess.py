from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import PREPROCESSINGS, preprocess
from benchmarks.errors import UserError
from benchmarks.preprocess import CONSTANTS, Preprocess, channel_statistics, fit


def pixels(count: int, channels: int = 3, height: int = 6, width: int = 6, seed: int = 0) -> Tensor:
    """Images whose neighbouring pixels are correlated, with channels of different mean and spread."""
    noise = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    level = torch.linspace(80, 150, channels).view(-1, 1, 1)
    return (level * (1 + 0.2 * noise)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("name", PREPROCESSINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_inverse_gives_the_image_back(name: str, dtype: torch.dtype) -> None:
    images = pixels(200)
    fitted = fit(name, images).to(dtype=dtype)
    applied = fitted.forward(images[:7])
    assert applied.dtype == dtype
    error = (fitted.inverse(applied) - images[:7].to(dtype) / 255).abs().max()
    assert error < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_the_inverse_is_exact_with_fewer_images_than_pixels(name: str) -> None:
    images, unseen = pixels(20), pixels(3, seed=1)
    fitted = fit(name, images)
    torch.testing.assert_close(fitted.inverse(fitted.forward(unseen)), unseen.double() / 255, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_floating_point_images_in_0_1_give_the_same(name: str) -> None:
    images = pixels(100)
    fitted = fit(name, images)
    torch.testing.assert_close(fitted.forward(images.double() / 255), fitted.forward(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_it_is_rebuilt_from_tensors_and_json(name: str) -> None:
    images = pixels(100)
    fitted = fit(name, images).to(dtype=torch.float32)
    again = Preprocess.rebuild(fitted.tensors(), json.loads(json.dumps(fitted.settings())))
    assert again.name == name
    assert torch.equal(again.forward(images), fitted.forward(images))
    assert torch.equal(again.inverse(images.float()), fitted.inverse(images.float()))


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(100)
    whole = fit(name, images)
    monkeypatch.setattr(preprocess, "CHUNK_BYTES", 8 * 3 * 36 * 7)
    torch.testing.assert_close(fit(name, images).forward(images), whole.forward(images), rtol=0, atol=1e-11)


def test_standardise_subtracts_and_divides_by_channel() -> None:
    images, (mean, std) = pixels(50), CONSTANTS["standardise"]["cifar10"]
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    fitted = fit("standardise", images, constants=(mean, std))
    np.testing.assert_allclose(fitted.forward(images).numpy(), expected, rtol=0, atol=1e-13)


def test_without_constants_the_images_give_them() -> None:
    images = pixels(50)
    mean, std = channel_statistics(images)
    scaled = images.numpy() / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_a_channel_without_variation_is_only_centred() -> None:
    images = pixels(10)
    images[:, 1] = 51
    applied = fit("standardise", images).forward(images)
    assert applied.isfinite().all()
    torch.testing.assert_close(applied[:, 1], torch.zeros(10, 6, 6).double(), rtol=0, atol=1e-12)


def test_the_published_constants_differ_where_the_papers_do() -> None:
    frepo, vico, mtt = (CONSTANTS[name] for name in ("standardise", "standardise_vico", "standardise_mtt"))
    assert frepo["cifar10"][1] == (0.2470, 0.2435, 0.2616)
    assert vico["cifar10"][1] == mtt["cifar10"][1] == mtt["cifar100"][1] == (0.2023, 0.1994, 0.2010)
    assert frepo["cifar100"] == vico["cifar100"] == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    assert mtt["cifar100"] == mtt["cifar10"] == vico["cifar10"]
    assert frepo["tiny_imagenet"][0] == (0.4759, 0.4481, 0.3926)
    assert vico["tiny_imagenet"] == mtt["tiny_imagenet"] == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert mtt["imagenette"] == mtt["imagewoof"] == mtt["tiny_imagenet"] != frepo["imagenette"]
    assert CONSTANTS["zca_frepo"] == frepo
    assert "zca_kornia" not in CONSTANTS


def test_zca_kornia_is_what_its_definition_says() -> None:
    images = pixels(150, height=5, width=4)
    rows = (images.numpy() / 255).reshape(len(images), -1)
    covariance = np.cov(rows, rowvar=False)  # n − 1
    u, s, _ = np.linalg.svd(covariance)
    whiten = u @ np.diag((s + 0.1) ** -0.5) @ u.T
    expected = (rows - rows.mean(0)) @ whiten

    fitted = fit("zca_kornia", images)
    assert fitted.zca
    np.testing.assert_allclose(fitted.zca.whiten.numpy(), whiten, rtol=0, atol=1e-11)
    np.testing.assert_allclose(fitted.forward(images).flatten(1).numpy(), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        fitted.zca.whiten.numpy() @ (covariance + 0.1 * np.eye(60)) @ fitted.zca.whiten.numpy(), np.eye(60), atol=1e-10
    )


def test_zca_frepo_normalises_first_and_its_ridge_is_relative() -> None:
    images, constants = pixels(300), ((0.3, 0.4, 0.5), (0.1, 0.2, 0.3))
    rows = fit("standardise", images, constants=constants).forward(images).flatten(1).numpy()
    covariance = np.cov(rows, rowvar=False, bias=True)
    covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    fitted = fit("zca_frepo", images, constants=constants)
    assert fitted.zca
    np.testing.assert_allclose(
        fitted.zca.whiten.numpy() @ covariance @ fitted.zca.whiten.numpy(), np.eye(108), rtol=0, atol=1e-9
    )


def test_zca_frepo_takes_strided_blocks_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "ZCA_BLOCK", 4)
    images = pixels(100, height=8, width=12)
    fitted = fit("zca_frepo", images)
    assert fitted.zca
    assert (fitted.zca.block, fitted.zca.layout) == (4, "strided")
    assert fitted.zca.whiten.shape == (48, 48)
    # A block of the whitened image is the whitened block: the pixels [1::2, 2::3] and no others.
    normalised = fit("standardise", images).forward(images) - fitted.zca.mean
    block = normalised[:, :, 1::2, 2::3].flatten(1) @ fitted.zca.whiten
    torch.testing.assert_close(fitted.forward(images)[:, :, 1::2, 2::3].flatten(1), block, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "side"), [((32, 32), None), ((64, 64), None), ((128, 128), 64), ((96, 96), 48), ((128, 96), 32)]
)
def test_block_side(size: tuple[int, int], side: int | None) -> None:
    assert preprocess.block_side(torch.Size(size)) == side


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        ("zca", pixels(3), "unknown preprocessing 'zca': did you mean 'zca_frepo'"),
        ("zca_frepo", pixels(3, height=67, width=67), "zca_frepo cannot cut 67×67 images into blocks"),
        ("zca_kornia", pixels(3, height=65, width=65), "zca_kornia cannot whiten 65×65 images"),
        ("zca_kornia", pixels(1), "at least two training images"),
        ("zca_frepo", torch.full((50, 1, 3, 3), 7, dtype=torch.uint8), "training images that differ"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(name: str, images: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(name, images)


@pytest.mark.parametrize("name", ["standardise", "zca_frepo"])
@pytest.mark.parametrize("shape", [(2, 1, 6, 6), (3, 6, 6), (2, 6, 6, 3)])
def test_images_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    fitted = fit(name, pixels(200))
    with pytest.raises(UserError, match="do not fit this preprocessing: give"):
        fitted.forward(torch.zeros(shape, dtype=torch.uint8))


def test_whitened_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"give \(N, 3, 6, 6\)"):
        fit("zca_frepo", pixels(200)).forward(pixels(2, height=8, width=8))
