"""DATM: the range of start epochs, whole iterations with soft labels and the threshold, GSAM's steps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import training
from benchmarks.networks import Network
from benchmarks.protocols import Recipe
from methods import _gsam, _trajectories, _unroll, datm
from methods._unroll import flatten
from tests.adapters import KINK32, Adapter, Case, Mistake
from tests.adapters.networks import build


def network_of(case: Case) -> Network:
    case.cfg["H"] = case.cfg["size"]
    network = build(case, "convnet")
    assert [list(parameter.shape) for parameter in network.parameters()] == [
        shape for _, shape in case.cfg["param_order"]
    ]
    return network


def start_epochs(case: Case) -> None:
    for name in case.names(""):
        setting, _, kind = name.partition(".")
        if kind != "upper_exclusive":
            continue
        cfg = json.loads(str(case.arrays[f"{setting}.cfg"]))
        grows, last = cfg["Sequential_Generation"], cfg["max_start_epoch"]
        first = cfg["current_max_start_epoch"] if grows else last
        iterations = case[f"{setting}.iterations"].tolist()
        found = [datm.start_bound(at, first, last, cfg["expansion_end_epoch"]) for at in iterations]
        case.check(name, torch.tensor(found), f64=0, f32=0)


def iterations(case: Case) -> None:
    cfg: dict[str, Any] = case.cfg
    network = network_of(case)
    images, logits = case["in.x_syn"], case["in.y_logits"]
    lr = torch.tensor(cfg["lr0"], dtype=case.dtype)
    optimiser = torch.optim.SGD(
        [
            {"params": [images], "lr": cfg["lr_img"], "momentum": cfg["momentum_img"]},
            {"params": [logits], "lr": cfg["lr_y"], "momentum": cfg["momentum_y"]},
            {"params": [lr], "lr": cfg["lr_lr"], "momentum": cfg["momentum_img"]},
        ]
    )
    begin = {"x_syn": images.clone(), "y_logits": logits.clone(), "lr": lr.clone()}
    for at in range(cfg["iters"]):
        start, target = case[f"in.start{at}_flat"], case[f"in.target{at}_flat"]
        indices = [row[row >= 0] for row in case[f"in.indices{at}"]]
        leaves = [tensor.detach().requires_grad_() for tensor in (images, logits, lr)]

        def batch(step: int, images: Tensor, labels: Tensor, indices: list[Tensor] = indices) -> tuple[Tensor, Tensor]:
            return images[indices[step]], labels[indices[step]]

        learned = [leaves[0], leaves[1].softmax(1)]
        student, _ = _unroll.unroll(network, start, batch, cfg["syn_steps"], learned, leaves[2])
        loss = _trajectories.matching_loss(student, start, target)
        gradients = torch.autograd.grad(loss, leaves)
        accepted = loss.detach() <= cfg["thresholds"][at]
        assert bool(accepted) == bool(case.arrays[f"out.iter{at}.updated"])
        before = [tensor.clone() for tensor in (images, logits, lr)]
        datm.update_where(accepted, optimiser, gradients)
        if not accepted:
            assert all(map(torch.equal, before, (images, logits, lr))), "nothing moves above the threshold"
        case.check(f"out.iter{at}.final_flat", student, f64=1e-10, f32=KINK32)
        case.check(f"out.iter{at}.loss", loss, f64=1e-10, f32=KINK32)
        for name, gradient in zip(("grad_x", "grad_y", "grad_lr"), gradients, strict=True):
            case.check(f"out.iter{at}.{name}", gradient, f64=1e-10, f32=KINK32)
        for name, tensor in (("x_syn", images), ("y_logits", logits), ("lr", lr)):
            moved(case, f"out.iter{at}.{name}", tensor, begin[name])


def moved(case: Case, name: str, tensor: Tensor, start: Tensor) -> None:
    """Compare how far a tensor has moved from ``start``."""
    expected = case[name] - start
    error = (tensor - start - expected).abs().max() / expected.abs().max().clamp_min(1e-300)
    case.hold(name, float(error), 1e-10 if case.dtype == torch.float64 else KINK32)


def flat_steps(case: Case) -> None:
    """Steps of `train_together` on batches that follow each other in one set."""
    cfg: dict[str, Any] = case.cfg
    network = network_of(case)
    start, images, labels = case["in.start_flat"], case["in.x"], case["in.y"]
    _gsam.write(start, network.parameters())
    recipe = Recipe(
        loss="cross_entropy",
        optimiser="sgd",
        lr=cfg["lr"],
        momentum=cfg["mom"],
        weight_decay=cfg["l2"],
        batch_size=cfg["B"],
        shuffle=False,
        steps_by_images=((1, cfg["steps"]),),
    )
    gsam = _gsam.GSAM(cfg["rho"], cfg["alpha"], cfg["adaptive"])

    counter = itertools.count(1)

    def descent(networks: Sequence[Network], backward: Callable[[], None]) -> None:
        step = next(counter)
        with torch.no_grad():
            loss = F.cross_entropy(network(images[step - 1]), labels[step - 1])
        case.check(f"out.step{step}.loss", loss, f64=1e-10, f32=KINK32)
        gsam(networks, backward)
        case.check(f"out.step{step}.direction", flatten(_gsam.gradients(network)), f64=1e-10, f32=KINK32)

    def after(done: int, total: int) -> None:
        moved(case, f"out.step{done}.flat", flatten(network.parameters()).detach(), start)

    training.train_together(
        [network],
        images.flatten(0, 1),
        labels.flatten(),
        "probability",
        recipe,
        flip=False,
        generators=[torch.Generator()],
        descent=descent,
        progress=after,
    )


ADAPTERS: dict[str, Adapter] = {"datm": iterations, "datm_start_epoch": start_epochs, "ftd_gsam": flat_steps}


# --- mistakes, planted

STEPS, EPOCHS, ADAPTIVE = "datm_in_mb.npz", "datm_start_epoch.npz", "ftd_gsam_in_adaptive.npz"
_unrolled, _ascent, _direction = _unroll.unroll, _gsam.ascent, _gsam.direction


def threshold_ignored(accepted: Tensor, optimiser: torch.optim.SGD, gradients: Sequence[Tensor]) -> None:
    for tensor, gradient in zip(tensors_of(optimiser), gradients, strict=True):
        tensor.grad = gradient
    optimiser.step()


def gradients_set_to_zero(accepted: Tensor, optimiser: torch.optim.SGD, gradients: Sequence[Tensor]) -> None:
    """Momenta shrink and still move the tensors."""
    threshold_ignored(accepted, optimiser, [torch.where(accepted, gradient, 0) for gradient in gradients])


def momenta_go_on(accepted: Tensor, optimiser: torch.optim.SGD, gradients: Sequence[Tensor]) -> None:
    before = [tensor.clone() for tensor in tensors_of(optimiser)]
    threshold_ignored(accepted, optimiser, gradients)
    for tensor, old in zip(tensors_of(optimiser), before, strict=True):
        tensor.copy_(torch.where(accepted, tensor, old))


def tensors_of(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimiser.param_groups for tensor in group["params"]]


def labels_detached(network: Any, start: Any, batch: Any, steps: Any, learned: Any, lr: Any) -> Any:
    return _unrolled(network, start, batch, steps, [learned[0], learned[1].detach() + 0 * learned[1]], lr)


def labels_made_hard(network: Any, start: Any, batch: Any, steps: Any, learned: Any, lr: Any) -> Any:
    hard = F.one_hot(learned[1].argmax(1), learned[1].shape[1]).to(learned[1])
    return _unrolled(network, start, batch, steps, [learned[0], hard + 0 * learned[1]], lr)


def bound_inclusive(iteration: int, first: int, last: int, end: int) -> int:
    return min(first + (last - first) * iteration // end, last) + 1


def bound_without_end(iteration: int, first: int, last: int, end: int) -> int:
    return first + (last - first) * iteration // end


def bound_rounded(iteration: int, first: int, last: int, end: int) -> int:
    return min(first + round((last - first) * iteration / end), last)


def bound_from_zero(iteration: int, first: int, last: int, end: int) -> int:
    return min(max(last * iteration // end, first), last)


def never_adaptive(parameters: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    return _ascent(parameters, gradient, rho, False)


def always_adaptive(parameters: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    return _ascent(parameters, gradient, rho, True)


def scaled_once(parameters: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    scaled = parameters.abs() * gradient
    return rho * scaled / scaled.square().sum().sqrt()


def descends(parameters: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    return -_ascent(parameters, gradient, rho, adaptive)


def not_perturbed(parameters: Tensor, gradient: Tensor, rho: float, adaptive: bool) -> Tensor:
    return torch.zeros_like(parameters)


def without_the_gap(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    return second


def gap_added(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    return _direction(first, second, -alpha)


def parts_of_the_other(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    return _direction(second, first, alpha)


def all_of_the_first(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    return second - alpha * first


def mistake(module: object, attribute: str, wrong: Callable[..., Any], file: str) -> Mistake:
    return Mistake(wrong.__name__, file, lambda monkeypatch: monkeypatch.setattr(module, attribute, wrong))


MISTAKES = [
    mistake(datm, "update_where", threshold_ignored, STEPS),
    mistake(datm, "update_where", gradients_set_to_zero, STEPS),
    mistake(datm, "update_where", momenta_go_on, STEPS),
    mistake(_unroll, "unroll", labels_detached, STEPS),
    mistake(_unroll, "unroll", labels_made_hard, STEPS),
    mistake(datm, "start_bound", bound_inclusive, EPOCHS),
    mistake(datm, "start_bound", bound_without_end, EPOCHS),
    mistake(datm, "start_bound", bound_rounded, EPOCHS),
    mistake(datm, "start_bound", bound_from_zero, EPOCHS),
    mistake(_gsam, "ascent", never_adaptive, ADAPTIVE),
    mistake(_gsam, "ascent", always_adaptive, "ftd_gsam_none_plain.npz"),
    mistake(_gsam, "ascent", scaled_once, ADAPTIVE),
    mistake(_gsam, "ascent", descends, ADAPTIVE),
    mistake(_gsam, "ascent", not_perturbed, ADAPTIVE),
    mistake(_gsam, "direction", without_the_gap, ADAPTIVE),
    mistake(_gsam, "direction", gap_added, ADAPTIVE),
    mistake(_gsam, "direction", parts_of_the_other, ADAPTIVE),
    mistake(_gsam, "direction", all_of_the_first, ADAPTIVE),
]
