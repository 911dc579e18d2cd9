"""Characteristic functions of features (NCFM), and the decoder of IDC, by which its sets are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import decoder
from methods import base, ncfm
from methods.base import Synthetic
from tests.adapters import FORWARD32, KINK32, Adapter, Case, Mistake


def loss(case: Case) -> None:
    weights = case.cfg["alpha"], case.cfg["beta"]
    parts: list[tuple[str, float, Callable[[Tensor], Tensor]]] = [
        ("raw", 1.0, lambda features: features),
        ("match", case.cfg["scale"], ncfm.unit_rows),
    ]
    for part, scale, prepared in parts:
        synthetic, t = case["in.feat_syn"].requires_grad_(), case["in.t"].requires_grad_()
        features = prepared(case["in.feat_real"]), prepared(synthetic)
        distance = scale * ncfm.characteristic_distance(*features, t, *weights)
        case.check(f"out.{part}.loss", distance, f64=1e-12, f32=FORWARD32)
        # In float32 the phase is a difference of nearly equal products, and its root has a steep slope near 0.
        found = torch.autograd.grad(distance, (synthetic, t))
        for name, gradient in zip((f"out.{part}.grad_feat_syn", f"out.{part}.grad_t"), found, strict=True):
            if name in case:
                case.check(name, gradient, f64=1e-10, f32=KINK32)


def tile_major(images: Tensor, count: int) -> Tensor:
    """The first tiles of ``count`` stored images, then the second ones, and so on, from image by image."""
    return images.view(count, -1, *images.shape[1:]).transpose(0, 1).flatten(0, 1)


def image_major(images: Tensor, count: int) -> Tensor:
    return images.view(-1, count, *images.shape[1:]).transpose(0, 1).flatten(0, 1)


def decoded(case: Case) -> None:
    classes, ipc, factor = (case.cfg[name] for name in ("C", "ipc", "factor"))
    data = case["in.data"].requires_grad_()
    labels = F.one_hot(torch.arange(classes).repeat_interleave(ipc)).to(data.dtype)
    synthetic = Synthetic(data, labels, "probability", factor=factor)
    everything = synthetic.decoded()
    images = tile_major(everything.images, len(data))
    case.check("out.all.images", images, f64=1e-12, f32=FORWARD32)
    case.check("out.all.labels", tile_major(everything.labels, len(data)).argmax(1), f64=0, f32=0)
    gradient = torch.autograd.grad(images, data, case["in.cotangent"])[0]
    case.check("out.all.grad_data", gradient, f64=1e-12, f32=FORWARD32)
    # Sets are class-major, decoded ones as well.
    own = everything.images.chunk(classes)[1].detach()
    case.check("out.class1.images", tile_major(own, ipc), f64=1e-12, f32=FORWARD32)
    case.check("out.class1.labels", everything.labels.chunk(classes)[1].argmax(1), f64=0, f32=0)
    started = decoder.encode(image_major(case["in.init_images_class0"], ipc), factor)
    case.check("out.mix_init_class0", started, f64=1e-6, f32=1e-6)  # kept in float32


ADAPTERS: dict[str, Adapter] = {"ncfm_loss": loss, "idc_decode": decoded}


# --- mistakes, planted

_distance, _decode = ncfm.characteristic_distance, decoder.decode


def _wrong(phases: float = 2.0, sign: float = 1.0, root: bool = True, mean: bool = True) -> Callable[..., Tensor]:
    def distance(real: Tensor, synthetic: Tensor, t: Tensor, alpha: float, beta: float) -> Tensor:
        (a, b), (c, d) = (((t @ x.T).cos().mean(1), (t @ x.T).sin().mean(1)) for x in (real, synthetic))
        first, second = (a * a + b * b).sqrt(), (c * c + d * d).sqrt()
        phase = phases * (first * second - a * c - sign * b * d)
        terms = alpha * (first - second).square() + beta * phase.clamp(min=1e-12)
        terms = terms.sqrt() if root else terms
        whole: Tensor = terms.mean() if mean else terms.sum()
        return whole

    return distance


def weights_exchanged(real: Tensor, synthetic: Tensor, t: Tensor, alpha: float, beta: float) -> Tensor:
    return _distance(real, synthetic, t, beta, alpha)


def unit_columns(features: Tensor) -> Tensor:
    return F.normalize(features, dim=0)


def unit_whole(features: Tensor) -> Tensor:
    return F.normalize(features.flatten(), dim=0).view_as(features)


def columns_first(images: Tensor, factor: int) -> Tensor:
    return _decode(images, factor).view(-1, factor, factor, *images.shape[1:]).transpose(1, 2).flatten(0, 2)


def tiles_of_all_first(images: Tensor, factor: int) -> Tensor:
    return tile_major(_decode(images, factor), len(images))


def _enlarged(padding: float = 0.5, **how: Any) -> Callable[[Tensor, int], Tensor]:
    def enlarge(images: Tensor, factor: int) -> Tensor:
        height, width = images.shape[2:]
        whole = F.pad(images, (0, -width % factor, 0, -height % factor), value=padding)
        rows, columns = (side // factor for side in whole.shape[2:])
        tiles = whole.unfold(2, rows, rows).unfold(3, columns, columns).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return F.interpolate(tiles, size=(height, width), **how)

    return enlarge


def averaged(images: Tensor, factor: int) -> Tensor:
    """Starts from images that are shrunk by averaging."""
    height, width = images.shape[2:]
    sides = [[side // factor + (part < side % factor) for part in range(factor)] for side in (height, width)]
    tiles = images.view(-1, factor, factor, *images.shape[1:])
    rows = [
        torch.cat([F.interpolate(tiles[:, i, j], size=(h, w), mode="area") for j, w in enumerate(sides[1])], 3)
        for i, h in enumerate(sides[0])
    ]
    return torch.cat(rows, 2)


def mistake(name: str, file: str, module: object, attribute: str, wrong: Callable[..., Any]) -> Mistake:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, attribute, wrong)

    return Mistake(name, file, patch)


MISTAKES = [
    *(
        mistake(name, "ncfm_loss_weights.npz", ncfm, "characteristic_distance", wrong)
        for name, wrong in {
            "phase without its factor 2": _wrong(phases=1.0),
            "no conjugate": _wrong(sign=-1.0),
            "squared distance": _wrong(root=False),
            "sum over frequencies": _wrong(mean=False),
            "weights exchanged": weights_exchanged,
        }.items()
    ),
    *(
        mistake(name, "ncfm_loss.npz", ncfm, "unit_rows", wrong)
        for name, wrong in {
            "features as they are": lambda features: features,
            "unit columns": unit_columns,
            "unit length of all rows together": unit_whole,
        }.items()
    ),
    *(
        mistake(name, f"idc_decode_{file}.npz", base, "decode", wrong)
        for name, file, wrong in (
            ("tiles column by column", "f2", columns_first),
            ("not class-major", "f2", tiles_of_all_first),
            ("nearest pixels", "f2", _enlarged(mode="nearest")),
            ("aligned corners", "f2", _enlarged(mode="bilinear", align_corners=True)),
            ("black below and right", "f3_pad", _enlarged(0.0, mode="bilinear", align_corners=False)),
        )
    ),
    mistake("averages to start from", "idc_decode_f3_pad.npz", decoder, "encode", averaged),
]
