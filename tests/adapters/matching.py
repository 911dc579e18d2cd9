"""Class-wise matching: the distance of gradients (DC, DSA), that of mean embeddings (DM), and their image gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.networks import Network
from methods import _matching, dm
from tests.adapters import FORWARD32, KINK32, Adapter, Case, Mistake
from tests.adapters.networks import build, load_vico

METRICS = ("ours", "mse", "cos")


def dc_match_loss(case: Case) -> None:
    gw_real, gw_syn = ([case[f"in.gw_{kind}.{i}"] for i in range(case.cfg["n"])] for kind in ("real", "syn"))
    for gradient in gw_syn:
        gradient.requires_grad_()
    for metric in METRICS:
        loss = _matching.gradient_distance(gw_syn, gw_real, metric)  # type: ignore[arg-type]
        case.check(f"out.{metric}.loss", loss, f64=1e-12, f32=FORWARD32)
        for i, found in enumerate(torch.autograd.grad(loss, gw_syn, materialize_grads=True)):
            if case.arrays[f"out.{metric}.grad_gw_syn.{i}"].any():
                case.check(f"out.{metric}.grad_gw_syn.{i}", found, f64=1e-12, f32=FORWARD32)
            else:
                assert not found.any()
                case.checked += 1
    zero = gw_real[0].new_zeros(())
    distances = [
        _matching.gradient_distance([syn], [real]) if syn.ndim > 1 else zero
        for syn, real in zip(gw_syn, gw_real, strict=True)
    ]
    case.check("out.ours.per_layer", torch.stack(distances), f64=1e-12, f32=FORWARD32)


def dc_step(case: Case) -> None:
    network, ipc = network_of(case), case.cfg["ipc"]
    for metric in METRICS:

        def distance(c: int, synthetic: Tensor, metric: Any = metric) -> Tensor:
            return _matching.matching_loss(network, case["in.x_real"][c], synthetic, c, metric)

        loss, gradient = _matching.sum_over_chunks(distance, case["in.x_syn"], ipc)
        case.check(f"out.{metric}.loss", loss, f64=1e-11, f32=KINK32)
        case.check(f"out.{metric}.grad_x_syn", gradient, f64=1e-11, f32=KINK32)


def dm_loss(case: Case) -> None:
    network, ipc, classes = network_of(case), case.cfg["ipc"], case.cfg["C"]
    real, synthetic = list(case["in.x_real"]), case["in.x_syn"]
    means = torch.stack([dm.features(network, batch).mean(0) for batch in real])
    case.check("out.mean_feat_real", means, f64=1e-11, f32=2 * FORWARD32)
    case.check("out.mean_feat_real", dm.mean_embeddings(network, real), f64=1e-11, f32=2 * FORWARD32)
    case.check(
        "out.mean_feat_syn", dm.mean_embeddings(network, torch.split(synthetic, ipc)), f64=1e-11, f32=2 * FORWARD32
    )
    for at_once in (1, 2, classes):

        def distance(chunk: int, own: Tensor, at_once: int = at_once) -> Tensor:
            batches = real[chunk * at_once : (chunk + 1) * at_once]
            return dm.mean_embedding_loss(network, zip(batches, torch.split(own, ipc), strict=True))

        loss, gradient = _matching.sum_over_chunks(distance, synthetic, at_once * ipc)
        case.check("out.loss", loss, f64=1e-11, f32=2 * FORWARD32)
        case.check("out.grad_x_syn", gradient, f64=1e-11, f32=KINK32)


def network_of(case: Case) -> Network:
    network = build(case, "convnet", norm=case.cfg.get("norm", "instance"))
    load_vico(network, case)
    return network


ADAPTERS: dict[str, Adapter] = {"dc_match_loss": dc_match_loss, "dc_step": dc_step, "dm_loss": dm_loss}


# --- mistakes, planted

_distance = _matching.gradient_distance
_row_distance = _matching.row_distance
_loss = _matching.matching_loss
_sum = _matching.sum_over_chunks
_embeddings = dm.mean_embeddings


def tensors_of_one_dimension_count(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], metric: Any = "ours") -> Tensor:
    flat = zip(gw_syn, gw_real, strict=True)
    extra = [_row_distance(syn[:, None], real[:, None]) for syn, real in flat if syn.ndim == 1]
    return _distance(gw_syn, gw_real, metric) + (torch.stack(extra).sum() if metric == "ours" and extra else 0)


def weights_only(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], metric: Any = "ours") -> Tensor:
    """Leaves tensors of one dimension out of the two other metrics as well."""
    pairs = [(syn, real) for syn, real in zip(gw_syn, gw_real, strict=True) if syn.ndim > 1]
    return _distance([syn for syn, _ in pairs], [real for _, real in pairs], metric)


def mean_of_squares(gw_syn: Sequence[Tensor], gw_real: Sequence[Tensor], metric: Any = "ours") -> Tensor:
    found = _distance(gw_syn, gw_real, metric)
    return found / sum(gradient.numel() for gradient in gw_syn) if metric == "mse" else found


def mean_over_rows(syn: Tensor, real: Tensor) -> Tensor:
    return _row_distance(syn, real) / len(syn)


def one_row_per_kernel(syn: Tensor, real: Tensor) -> Tensor:
    """A row for every pair of input and output channels."""
    return _row_distance(syn.flatten(0, 1), real.flatten(0, 1)) if syn.ndim == 4 else _row_distance(syn, real)


def one_row_per_input(syn: Tensor, real: Tensor) -> Tensor:
    return _row_distance(syn.transpose(0, 1), real.transpose(0, 1))


def one_row_per_tensor(syn: Tensor, real: Tensor) -> Tensor:
    return _row_distance(syn[None], real[None])


def norms_clamped(syn: Tensor, real: Tensor) -> Tensor:
    """The smallest number limits the norms, instead of being added to their product."""
    return torch.sum(1 - F.cosine_similarity(syn.flatten(1), real.flatten(1), eps=_matching.EPS))


def squares_summed_before_the_root(syn: Tensor, real: Tensor) -> Tensor:
    syn, real = syn.flatten(1), real.flatten(1)
    norms = (syn.square().sum(1) * real.square().sum(1) + _matching.EPS).sqrt()
    return torch.sum(1 - (syn * real).sum(1) / norms)


def mean_over_classes(loss: Callable[[int, Tensor], Tensor], images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    total, gradient = _sum(loss, images, size)
    chunks = -(-len(images) // size)
    return total / chunks, gradient / chunks


def classes_interleaved(loss: Callable[[int, Tensor], Tensor], images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    order = torch.arange(len(images)).view(size, -1).T.flatten()
    total, gradient = _sum(loss, images[order], size)
    return total, gradient[order.argsort()]


def gradient_of_the_last_class(
    loss: Callable[[int, Tensor], Tensor], images: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    total, gradient = _sum(loss, images, size)
    return total, torch.cat([torch.zeros_like(gradient[:-size]), gradient[-size:]])


def summed_cross_entropy(network: Network, real: Tensor, synthetic: Tensor, c: int, metric: Any = "ours") -> Tensor:
    """Ten times the gradient has the same angle, but not the same distance in squares."""
    parameters = list(network.parameters())

    def gradient(images: Tensor) -> tuple[Tensor, ...]:
        labels = torch.full((len(images),), c)
        loss = F.cross_entropy(network(images), labels, reduction="sum")
        return torch.autograd.grad(loss, parameters, create_graph=True)

    return _distance(gradient(synthetic), [part.detach() for part in gradient(real)], metric)


def labels_of_the_next_class(network: Network, real: Tensor, synthetic: Tensor, c: int, metric: Any = "ours") -> Tensor:
    return _loss(network, real, synthetic, (c + 1) % network.head.out_features, metric)


def mean_over_features(network: Network, batches: Sequence[Tensor]) -> Tensor:
    found = _embeddings(network, batches)
    return found / math.sqrt(found.shape[1])


def sum_of_embeddings(network: Network, batches: Sequence[Tensor]) -> Tensor:
    return torch.stack([network.features(batch).sum(0) for batch in batches])


def embedding_is_the_logits(network: Network, batches: Sequence[Tensor]) -> Tensor:
    return torch.stack([network(batch).mean(0) for batch in batches])


def distance_not_squared(network: Network, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    real, synthetic = zip(*pairs, strict=True)
    difference = _embeddings(network, real).detach() - _embeddings(network, synthetic)
    return torch.sum(torch.linalg.vector_norm(difference, dim=1))


def classes_in_one_mean(network: Network, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    real, synthetic = zip(*pairs, strict=True)
    difference = _embeddings(network, real).detach() - _embeddings(network, synthetic)
    return difference.mean(0).square().sum() * len(real)


def features_of_the_first_chunk(network: Network, batch: Tensor) -> Tensor:
    return network.features(batch[: len(batch) // 2]).detach()


def mistake(module: object, attribute: str, wrong: object, file: str, name: str = "") -> Mistake:
    label = f"{name or wrong.__name__}-{file}"  # type: ignore[attr-defined]
    return Mistake(label, f"{file}.npz", lambda monkeypatch: monkeypatch.setattr(module, attribute, wrong))


MISTAKES = [
    *(
        mistake(_matching, attribute, wrong, file)
        for file in ("dc_match_loss", "dc_step")
        for attribute, wrong in (
            ("gradient_distance", tensors_of_one_dimension_count),
            ("gradient_distance", weights_only),
            ("gradient_distance", mean_of_squares),
            ("row_distance", mean_over_rows),
            ("row_distance", one_row_per_kernel),
            ("row_distance", one_row_per_input),
            ("row_distance", one_row_per_tensor),
            ("row_distance", norms_clamped),
            ("row_distance", squares_summed_before_the_root),
        )
    ),
    mistake(_matching, "EPS", 0.0, "dc_match_loss", "no_eps"),
    mistake(_matching, "EPS", 1e-8, "dc_match_loss", "eps_1e-8"),
    mistake(_matching, "EPS", 0.0, "dc_step", "no_eps"),
    mistake(_matching, "matching_loss", summed_cross_entropy, "dc_step"),
    mistake(_matching, "matching_loss", labels_of_the_next_class, "dc_step"),
    *(
        mistake(_matching, "sum_over_chunks", wrong, file)
        for file in ("dc_step", "dm_loss")
        for wrong in (mean_over_classes, classes_interleaved, gradient_of_the_last_class)
    ),
    mistake(dm, "mean_embeddings", mean_over_features, "dm_loss"),
    mistake(dm, "mean_embeddings", sum_of_embeddings, "dm_loss"),
    mistake(dm, "mean_embeddings", embedding_is_the_logits, "dm_loss"),
    mistake(dm, "features", features_of_the_first_chunk, "dm_loss"),
    mistake(dm, "mean_embedding_loss", distance_not_squared, "dm_loss"),
    mistake(dm, "mean_embedding_loss", classes_in_one_mean, "dm_loss"),
]
