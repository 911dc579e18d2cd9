"""FRePo: kernel loss, label loss, labels, LAMB, the pool, the online update, and all of it chained.

float64 tolerances of kernel regression. Processors add in different orders, so their results differ by rounding: by
about κ·u/2, relative to the largest entry, where κ is the condition number of the regularised Gram matrix (here 400 to
10⁷) and u the unit roundoff. The tolerance is 10·κ·u.

LAMB and Adam divide by |gradient| + ε, so an entry whose gradient is near zero turns by up to 1/ε times the rounding of
the gradient: κ·u·max|gradient| through kernel regression, at most 100·u·max|gradient| without. Updates are of size 1
(before the step size), so that is relative. It adds up over the steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import krr
from benchmarks.networks import FlaxNetwork, Network, NetworkSpec
from benchmarks.networks.layers import BatchNorm
from benchmarks.task import Task
from methods import _optim, frepo
from tests.adapters import FORWARD32, KINK32, UNIT_ROUNDOFF, Adapter, Case, Mistake
from tests.adapters.networks import build, flax_names, load_flax, to_flax


def nchw(images: Tensor) -> Tensor:
    return images.movedim(-1, -3)


def nhwc(images: Tensor) -> Tensor:
    return images.movedim(-3, -1)


ADAM_EPS = 1e-8

Moved = dict[str, tuple[str, Tensor]]
"""Name of a recorded result → name of the recorded start, and where our code got to from there."""


def check_updates(case: Case, moved: Moved, *, f64: float, f32: float = 1e-3) -> None:
    """How tensors moved, taken together, against how the recorded ones did.

    float64: largest error by largest change, at most ``f64``. float32: relative L2, at most ``f32``: an element whose
    gradient is at rounding level may move the other way.
    """
    errors, changes = [], []
    for name, (start, tensor) in moved.items():
        before, after = (torch.from_numpy(np.array(case.arrays[key])).double() for key in (start, name))
        assert tensor.shape == after.shape, f"{case.path.name} {name}: {tuple(tensor.shape)}, not {tuple(after.shape)}"
        errors.append((tensor.detach().double() - after).flatten())
        changes.append((after - before).flatten())
    error, change = torch.cat(errors), torch.cat(changes)
    if case.dtype == torch.float64:
        relative, tolerance = float(error.abs().max() / change.abs().max().clamp_min(1e-300)), f64
    else:
        relative, tolerance = float(error.norm() / change.norm().clamp_min(1e-300)), f32
    case.hold(f"update of {', '.join(moved)}", relative, tolerance)


def network_of(case: Case) -> Network:
    """The recorded network, parameters and running statistics."""
    network = build(case, "convnet_doubling")
    load_flax(network, case)
    return network


def network_moved(case: Case, network: Network, out: str) -> Moved:
    """Parameters and running statistics that the file has under ``out``."""
    ours = flax_names(network)
    names = [(kind, name) for kind in ("param.", "stats.") for name in case.names(out + kind)]
    return {out + kind + name: (kind + name, to_flax(name, ours[name])) for kind, name in names}


def krr_tolerance(feat_syn: Tensor, ridge: float) -> float:
    """10·κ·u from features (n, D), and at least 1e-11, for the rounding in the network."""
    features = feat_syn.detach().double()
    return max(10 * UNIT_ROUNDOFF * float(torch.linalg.cond(krr.regularised(features @ features.T, ridge))), 1e-11)


def update_tolerance(method: frepo.FRePo, network: Network, real_images: Tensor, targets: Tensor) -> float:
    """Of one LAMB update from here: 10·κ·u·max|gradient| / ε."""
    images, labels = (tensor.detach().clone().requires_grad_() for tensor in (method.images, method.labels))
    ridge = method.config.ridge
    losses = frepo.meta_losses(network, images, labels, real_images, targets, ridge=ridge, flip=True)
    largest = max(float(g.abs().max()) for g in torch.autograd.grad(losses[0] + losses[1], (images, labels)))
    with torch.no_grad():
        features = network.features(torch.cat([images, images.flip(3)]))
    return krr_tolerance(features, ridge) * largest / float(method.optimiser.defaults["eps"])


def kernel_loss(case: Case) -> None:
    network, ridge = network_of(case), float(case.cfg["reg"])
    real_images, y_real = nchw(case["in.x_real"]), case["in.y_real"]
    f32 = 1e-4
    targets = frepo.centred_one_hot(case["in.label_real"], int(case.cfg["C"]), case.dtype)
    case.check("in.y_real", targets, f64=1e-14, f32=1e-6)
    feat_real = frepo.features(network.eval(), real_images)
    case.check("out.feat_real", feat_real, f64=1e-11, f32=FORWARD32)
    for flip in (False, True):
        out = f"out.flip{int(flip)}."
        images, labels = nchw(case["in.x_syn"]).requires_grad_(), case["in.y_syn"].requires_grad_()
        seen_images = torch.cat([images, torch.flip(images, [3])]) if flip else images
        seen_labels = torch.cat([labels, labels]) if flip else labels
        feat_syn = network.features(seen_images).detach()
        f64 = krr_tolerance(feat_syn, ridge)
        losses = frepo.meta_losses(network, images, labels, real_images, y_real, ridge=ridge, flip=flip)
        total = sum(losses, torch.zeros((), dtype=case.dtype))
        grad_images, grad_labels = torch.autograd.grad(total, (images, labels))
        for name, value in zip(("kernel_loss", "label_loss", "total_loss"), (*losses, total), strict=True):
            case.check(out + name, value, f64=f64, f32=f32)
        case.check(out + "grad_x", nhwc(grad_images), f64=f64, f32=KINK32)
        case.check(out + "grad_y", grad_labels, f64=f64, f32=f32)
        case.check(out + "grad_norm_x", grad_images.norm(), f64=f64, f32=KINK32)
        case.check(out + "grad_norm_y", grad_labels.norm(), f64=f64, f32=f32)

        case.check(out + "feat_syn", feat_syn, f64=1e-11, f32=FORWARD32)
        gram = feat_syn.double() @ feat_syn.double().T
        case.check(out + "k_pp_reg", krr.regularised(gram, ridge), f64=1e-11, f32=2 * FORWARD32)
        prediction = krr.krr_predict(feat_real, feat_syn, seen_labels, ridge)
        case.check(out + "pred", prediction, f64=f64, f32=f32)
        leaves = [tensor.detach().requires_grad_() for tensor in (feat_syn, seen_labels, feat_real)]
        loss = krr.krr_loss(leaves[2], y_real, leaves[0], leaves[1], ridge)
        case.check(out + "kl.loss", loss, f64=f64, f32=f32)
        gradients = torch.autograd.grad(loss, leaves)
        for name, gradient in zip(("grad_feat_syn", "grad_y", "grad_feat_real"), gradients, strict=True):
            case.check(out + "kl." + name, gradient, f64=f64, f32=3e-4)


def kernel_lowrank(case: Case) -> None:
    for ridge in case.cfg["regs"]:
        # In float32 the reference itself is 10–30 % off at a ridge of 1e-6; ours is float64 from the features on.
        f32 = 1e-4
        out = f"out.reg{ridge}."
        names = ("feat_real", "feat_syn", "y_syn")
        feat_real, feat_syn, y_syn = leaves = [case["in." + name].requires_grad_() for name in names]
        f64 = krr_tolerance(feat_syn, ridge)
        gram = feat_syn.double() @ feat_syn.double().T
        case.check(out + "k_pp_reg", krr.regularised(gram, ridge), f64=1e-11, f32=2 * FORWARD32)
        case.check(out + "pred", krr.krr_predict(feat_real, feat_syn, y_syn, ridge), f64=f64, f32=f32)
        loss = krr.krr_loss(feat_real, case["in.y_real"], feat_syn, y_syn, ridge)
        case.check(out + "loss", loss, f64=f64, f32=f32)
        gradients = torch.autograd.grad(loss, leaves)
        for name, gradient in zip(("grad_feat_real", "grad_feat_syn", "grad_y"), gradients, strict=True):
            case.check(out + name, gradient, f64=f64, f32=f32)


def label_loss(case: Case) -> None:
    for i in case.names("in.y"):
        labels = case[f"in.y{i}"].requires_grad_()
        per_row = torch.stack([frepo.label_loss(row[None]) for row in labels])
        case.check(f"out.per_row{i}", per_row, f64=1e-14, f32=FORWARD32)
        loss = frepo.label_loss(labels)
        case.check(f"out.loss{i}", loss, f64=1e-14, f32=FORWARD32)
        (gradient,) = torch.autograd.grad(loss, labels)
        case.check(f"out.grad{i}", gradient, f64=1e-14, f32=1e-6)


def label_init(case: Case) -> None:
    for i, (num_classes, ipc) in enumerate(case.cfg["C_ipc"]):
        stream, out = case[f"in.c{i}.label"], f"out.c{i}."
        task = Task(
            case[f"in.c{i}.x"].view(-1, 1, 1, 1).to(case.dtype),
            stream,
            num_classes,
            ipc,
            _small_network(case),
            torch.Generator(),
            flip=False,
        )
        # The record's shuffle came before its stream: ours, within the call, is left out.
        with mock.patch.object(torch, "randperm", lambda n, **_: torch.arange(n)):
            starts = [
                frepo.FRePo(task, frepo.FRePoConfig(pool_size=1, scale_label=scale), 1).synthetic()
                for scale in (False, True)
            ]
        case.check(out + "picked", starts[0].images.flatten(), f64=0, f32=0)
        for scale, start in enumerate(starts):
            case.check(f"{out}scale{scale}.y_syn", start.labels, f64=1e-14, f32=1e-6)
        targets = frepo.centred_one_hot(stream, num_classes, case.dtype)
        on_off = torch.stack([targets.max(), targets.min()])
        case.check(out + "y_real_on_off", on_off, f64=1e-14, f32=1e-6)


def lamb(case: Case) -> None:
    cfg = case.cfg
    rate, steps, final = float(cfg["lr"]), int(cfg["N"]), float(cfg["alpha"])
    lrs = [frepo.warmup_cosine(t, steps, rate, 0, final) for t in range(int(cfg["T"]))]
    case.check("out.lr", torch.tensor(lrs, dtype=torch.float64), f64=1e-12, f32=1e-5)
    for which in "xy":
        parameter = case[f"in.{which}0"].clone()
        optimiser = _optim.LAMB([parameter], lr=rate)
        for t, (gradient, lr) in enumerate(zip(case[f"in.grad_{which}"], lrs, strict=True)):
            parameter.grad, optimiser.param_groups[0]["lr"] = gradient, lr
            optimiser.step()
            if f"out.step{t + 1}.{which}" in case:
                check_updates(case, {f"out.step{t + 1}.{which}": (f"in.{which}0", parameter)}, f64=1e-11)


def online_step(case: Case) -> None:
    network = network_of(case)
    member = frepo.Member(network, float(case.cfg["lr"]), counter=0)
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update(
            {
                name: to_flax(name, tensor.grad.clone())
                for name, tensor in flax_names(network).items()
                if tensor.grad is not None
            }
        )

    member.optimiser.register_step_post_hook(keep)
    losses, f64 = [], 0.0
    for t, (images, labels) in enumerate(zip(case["in.x"], case["in.y"], strict=True)):
        losses.append(member.update(nchw(images), labels, frepo.half_squared_error))
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        f64 += 100 * UNIT_ROUNDOFF * largest / ADAM_EPS
        out = f"out.step{t + 1}."
        for name in case.names(out + "grad."):
            case.check(out + "grad." + name, gradients[name], f64=1e-10, f32=KINK32)
        for name, update in network_moved(case, network, out).items():
            check_updates(case, {name: update}, f64=f64, f32=KINK32)
    case.check("out.loss", torch.stack(losses), f64=1e-10, f32=KINK32)


def chain(case: Case) -> None:
    """Whole steps of the method itself, on a pool of the one recorded network."""
    cfg, network = case.cfg, network_of(case)
    num_classes, ipc, iterations = int(cfg["C"]), int(cfg["ipc"]), int(cfg["T"])
    x_syn, y_syn, real_images = nchw(case["in.x_syn"]), case["in.y_syn"], nchw(case["in.x_real"])
    classes = torch.arange(num_classes).repeat_interleave(ipc)
    task = Task(x_syn, classes, num_classes, ipc, lambda _: network, torch.Generator(), flip=True)
    config = frepo.FRePoConfig(
        pool_size=1,
        max_online_updates=iterations,
        batch_size=int(cfg["B"]),
        ridge=float(cfg.get("reg", 1e-6)),
        lr=float(cfg.get("lr", 3e-4)),
    )
    method = frepo.FRePo(task, config, total_steps=int(cfg["N"]))
    with torch.no_grad():
        method.images.copy_(x_syn)
        method.labels.copy_(y_syn)
    losses: list[Tensor] = []
    rounding = 0.0
    for t in range(iterations):
        method.task = replace(task, images=real_images[t], labels=case["in.label_real"][t])
        targets = frepo.centred_one_hot(case["in.label_real"][t], num_classes, case.dtype)
        rounding += update_tolerance(method, network, real_images[t], targets)
        step = method.step()
        losses.append(torch.stack([step[name] for name in ("kernel_loss", "label_loss", "loss", "online_loss")]))
        out = f"out.iter{t + 1}."
        if out + "x_syn" in case:
            images, labels = nhwc(method.synthetic().images), method.synthetic().labels
            check_updates(case, {out + "x_syn": ("in.x_syn", images)}, f64=rounding, f32=0.1)
            check_updates(case, {out + "y_syn": ("in.y_syn", labels)}, f64=rounding, f32=0.1)
            check_updates(case, network_moved(case, network, out), f64=rounding, f32=0.1)
            far = ((images - case[out + "x_syn"]).abs() > 1e-5).double().mean()
            assert far < 0.01, f"{case.path.name} {out}x_syn: {far:.1%} of the pixels differ by more than 1e-5"
    case.check("out.losses", torch.stack(losses), f64=1e-9, f32=1e-3)


def pool_trace(case: Case) -> None:
    """Whole steps of the method itself, with the recorded indices in place of its draws."""
    images = torch.randn(4, 1, 4, 4, dtype=case.dtype, generator=torch.Generator().manual_seed(0))
    task = Task(images, torch.arange(4) % 2, 2, 1, _small_network(case), torch.Generator(), flip=False)
    config = frepo.FRePoConfig(
        pool_size=int(case.cfg["num_nn_state"]), max_online_updates=int(case.cfg["max_online_updates"]), batch_size=4
    )
    method = frepo.FRePo(task, config, total_steps=len(case["out.idx"]))
    case.check("out.initial_steps", torch.tensor([member.counter for member in method.pool]), f64=0, f32=0)
    before, after, reset = [], [], []
    for index in case["out.idx"].tolist():
        member = method.pool[index]
        before.append(member.counter)
        with mock.patch.object(torch, "randint", lambda *_, index=index, **__: index):
            method.step()
        after.append(method.pool[index].counter)
        reset.append(method.pool[index] is not member)
    case.check("out.step_before", torch.tensor(before), f64=0, f32=0)
    case.check("out.step_after", torch.tensor(after), f64=0, f32=0)
    case.check("out.was_reset", torch.tensor(reset).long(), f64=0, f32=0)


def _small_network(case: Case) -> Callable[[torch.Generator], Network]:
    spec = NetworkSpec("convnet", 1, (4, 4), 2, width=1, depth=1)
    return functools.partial(spec.build, dtype=case.dtype)


ADAPTERS: dict[str, Adapter] = {
    "frepo_kernel_loss_": kernel_loss,
    "frepo_kernel_lowrank": kernel_lowrank,
    "frepo_label_loss": label_loss,
    "frepo_label_init": label_init,
    "frepo_lamb": lamb,
    "frepo_online_step_": online_step,
    "frepo_chain": chain,
    "frepo_pool_trace": pool_trace,
}


def _replace(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(owner, name, value)


_warmup_cosine, _label_loss = frepo.warmup_cosine, frepo.label_loss
_features, _update, _draw_per_class = frepo.features, frepo.Member.update, Task.draw_per_class
_member, _config, _lamb_step = frepo.FRePo._member, frepo.FRePoConfig, _optim.LAMB.step
_batch_norm_init = BatchNorm.__init__


def _batch_norm_the_other_way(layer: BatchNorm, channels: int, decay: float) -> None:
    _batch_norm_init(layer, channels, 1 - decay)


def _torch_batch_norm(layer: BatchNorm, x: Tensor) -> Tensor:
    """Keeps the unbiased variance."""
    statistics = (layer.running_mean, layer.running_var)
    return F.batch_norm(x, *statistics, layer.weight, layer.bias, layer.training, 1 - layer.decay, layer.eps)


def _batch_statistics(layer: BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, layer.weight, layer.bias, True, 0.0, layer.eps)


class _EpsilonInsideTheRoot(torch.optim.Optimizer):
    def __init__(self, parameters: Any, lr: float, fused: bool) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state.update(t=0, m=torch.zeros_like(parameter), v=torch.zeros_like(parameter))
            state["t"] += 1
            state["m"].lerp_(parameter.grad, 0.1)
            state["v"].lerp_(parameter.grad.square(), 0.001)
            m, v = state["m"] / (1 - 0.9 ** state["t"]), state["v"] / (1 - 0.999 ** state["t"])
            parameter.sub_(self.param_groups[0]["lr"] * m / (v + 1e-8).sqrt())


def _train_before_the_update(patch: pytest.MonkeyPatch) -> None:
    """The network is trained on the synthetic set as it was at the beginning of the step."""
    losses, seen = frepo.meta_losses, {}

    def remember(network: Network, images: Tensor, labels: Tensor, *args: Any, **options: Any) -> Any:
        seen["set"] = images.detach().clone(), labels.detach().clone()
        return losses(network, images, labels, *args, **options)

    patch.setattr(frepo, "meta_losses", remember)
    patch.setattr(frepo.Member, "update", lambda member, *_: _update(member, *seen["set"], frepo.half_squared_error))


def _train_on_mirrored_images(
    member: frepo.Member, images: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    return _update(member, torch.cat([images, images.flip(3)]), torch.cat([labels, labels]), loss)


def _real_images_mirrored(patch: pytest.MonkeyPatch) -> None:
    """Features and targets of the real images twice, as for the synthetic ones."""
    patch.setattr(frepo, "features", lambda network, x: _features(network, torch.cat([x, x.flip(3)])))
    loss = frepo.krr_loss
    patch.setattr(frepo, "krr_loss", lambda real, y, *rest: loss(real, torch.cat([y, y]), *rest))


def _classes_interleaved(task: Task) -> tuple[Tensor, Tensor]:
    images, labels = _draw_per_class(task)
    order = torch.arange(len(labels)).view(task.num_classes, -1).T.flatten()
    return images[order], labels[order]


@torch.no_grad()
def _lamb_with_weight_decay(optimiser: _optim.LAMB) -> None:
    (group,) = optimiser.param_groups
    before = [parameter.clone() for parameter in group["params"]]
    _lamb_step(optimiser)
    for parameter, old in zip(group["params"], before, strict=True):
        parameter.sub_(0.01 * group["lr"] * old)


def _lamb_counted_from_one(optimiser: _optim.LAMB) -> None:
    for parameter in optimiser.param_groups[0]["params"]:
        if not optimiser.state[parameter]:
            optimiser.state[parameter] = {"step": 1} | {
                name: torch.zeros_like(parameter) for name in ("first", "second")
            }
    _lamb_step(optimiser)


def _norm_of_each_image(tensor: Tensor) -> Tensor:
    return tensor.square().flatten(1).sum(1).sqrt().view(-1, *(1,) * (tensor.ndim - 1))


def _trained_when_replaced(method: frepo.FRePo, counter: int) -> frepo.Member:
    return _member(method, 1 if hasattr(method, "pool") else counter)


def _in_evaluation_mode(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Network, "train", lambda network, mode=True: nn.Module.train(network, False))


_KERNEL, _ONLINE, _LAMB = "frepo_kernel_loss_bn_d3.npz", "frepo_online_step_bn.npz", "frepo_lamb.npz"

MISTAKES = [
    Mistake(
        "features: batch statistics",
        _KERNEL,
        _replace(BatchNorm, "forward", _batch_statistics),
    ),
    Mistake(
        "ridge: trace not divided by n",
        _KERNEL,
        _replace(krr, "regularised", lambda gram, ridge: gram + ridge * gram.trace() * torch.eye(len(gram))),
    ),
    Mistake(
        "ridge: not scaled by the trace",
        "frepo_kernel_lowrank.npz",
        _replace(krr, "regularised", lambda gram, ridge: gram + ridge * torch.eye(len(gram))),
    ),
    Mistake(
        "kernel loss: the half forgotten",
        _KERNEL,
        _replace(krr, "half_squared_error", lambda p, y: (p - y).square().sum(1).mean()),
    ),
    Mistake(
        "kernel loss: mean over the classes",
        _KERNEL,
        _replace(krr, "half_squared_error", lambda p, y: (p - y).square().mean() / 2),
    ),
    Mistake(
        "kernel loss: sum over the batch",
        _KERNEL,
        _replace(krr, "half_squared_error", lambda p, y: (p - y).square().sum() / 2),
    ),
    Mistake(
        "flip: the real images as well",
        _KERNEL,
        _real_images_mirrored,
    ),
    Mistake(
        "flip: along the height",
        _KERNEL,
        _replace(Tensor, "flip", lambda images, dimension: torch.flip(images, [2])),
    ),
    Mistake(
        "label loss: margin not bounded by 1/C",
        "frepo_label_loss.npz",
        _replace(frepo, "label_loss", lambda y: -(y.topk(2).values * torch.tensor([1, -1])).sum(1).mean()),
    ),
    Mistake(
        "label loss: sum over the prototypes",
        _KERNEL,
        _replace(frepo, "label_loss", lambda y: len(y) * _label_loss(y)),
    ),
    Mistake(
        "labels: real ones scaled by sqrt(C/10)",
        "frepo_label_init.npz",
        _replace(frepo, "centred_one_hot", lambda y, c, dtype: (F.one_hot(y, c).to(dtype) - 1 / c) / (c / 10) ** 0.5),
    ),
    Mistake(
        "labels: initial ones not scaled",
        "frepo_label_init.npz",
        _replace(frepo.math, "sqrt", lambda value: 1.0),
    ),
    Mistake(
        "labels: classes interleaved",
        "frepo_label_init.npz",
        _replace(Task, "draw_per_class", _classes_interleaved),
    ),
    Mistake(
        "labels: not centred",
        "frepo_label_init.npz",
        _replace(frepo, "centred_one_hot", lambda y, c, dtype: F.one_hot(y, c).to(dtype)),
    ),
    Mistake(
        "LAMB: epsilon 1e-8",
        _LAMB,
        _replace(_optim, "LAMB", functools.partial(_optim.LAMB, eps=1e-8)),
    ),
    Mistake(
        "LAMB: weight decay",
        _LAMB,
        _replace(_optim.LAMB, "step", _lamb_with_weight_decay),
    ),
    Mistake(
        "LAMB: updates counted from 1",
        _LAMB,
        _replace(_optim.LAMB, "step", _lamb_counted_from_one),
    ),
    Mistake(
        "LAMB: a trust ratio per image",
        _LAMB,
        _replace(torch.linalg, "vector_norm", _norm_of_each_image),
    ),
    Mistake(
        "LAMB: no trust ratio",
        _LAMB,
        _replace(torch.linalg, "vector_norm", lambda tensor: torch.ones(())),
    ),
    Mistake(
        "schedule: off by one",
        _LAMB,
        _replace(frepo, "warmup_cosine", lambda step, *settings: _warmup_cosine(step + 1, *settings)),
    ),
    Mistake(
        "schedule: goes on after its end",
        _LAMB,
        _replace(
            frepo,
            "warmup_cosine",
            lambda t, total, lr, warmup, end: lr * ((1 - end) * (1 + np.cos(np.pi * t / total)) / 2 + end),
        ),
    ),
    Mistake(
        "BatchNorm: momentum the other way round",
        _ONLINE,
        _replace(BatchNorm, "__init__", _batch_norm_the_other_way),
    ),
    Mistake(
        "BatchNorm: unbiased running variance",
        _ONLINE,
        _replace(BatchNorm, "forward", _torch_batch_norm),
    ),
    Mistake(
        "online update: evaluation mode",
        _ONLINE,
        _in_evaluation_mode,
    ),
    Mistake(
        "online update: mean over the classes",
        _ONLINE,
        _replace(frepo, "half_squared_error", lambda p, y: (p - y).square().mean() / 2),
    ),
    Mistake(
        "online update: the half forgotten",
        _ONLINE,
        _replace(frepo, "half_squared_error", lambda p, y: (p - y).square().sum(1).mean()),
    ),
    Mistake(
        "Adam: epsilon inside the root",
        _ONLINE,
        _replace(torch.optim, "Adam", _EpsilonInsideTheRoot),
    ),
    Mistake(
        "Adam: weight decay",
        _ONLINE,
        _replace(torch.optim, "Adam", functools.partial(torch.optim.Adam, weight_decay=5e-4)),
    ),
    Mistake(
        "online update: mirrored images as well",
        _ONLINE,
        _replace(frepo.Member, "update", _train_on_mirrored_images),
    ),
    Mistake(
        "features: flattened in order C, H, W",
        "frepo_online_step_id.npz",
        _replace(FlaxNetwork, "flatten", Network.flatten),
    ),
    Mistake(
        "chain: trained on the set before its update",
        "frepo_chain.npz",
        _train_before_the_update,
    ),
    Mistake(
        "chain: no flip",
        "frepo_chain.npz",
        _replace(Tensor, "flip", lambda images, dimension: images),
    ),
    Mistake(
        "pool: replaced one update too early",
        "frepo_pool_trace.npz",
        _replace(frepo, "FRePoConfig", lambda **settings: _config(**{**settings, "max_online_updates": 9})),
    ),
    Mistake(
        "pool: trained in the step of its replacement",
        "frepo_pool_trace.npz",
        _replace(frepo.FRePo, "_member", _trained_when_replaced),
    ),
    Mistake(
        "pool: counters not staggered",
        "frepo_pool_trace.npz",
        _replace(frepo.FRePo, "_member", lambda method, counter: _member(method, 0)),
    ),
]
