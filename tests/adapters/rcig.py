"""RCIG: pool, inner problem, outer loss, implicit gradient, and the update of the synthetic set.

``out.*`` is the official program with its quirks, which are repeated here and not in the method: the tangent of the
last layer's weights gets raw gradients, the inner Adam inherits the counter of the network's own Adam, and the network
drifts on its momentum. ``alt.clean.*`` and ``alt.exact.*`` are the method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from benchmarks.task import Task
from methods import _implicit, _tangents, rcig
from methods._pool import Member
from tests.adapters import FORWARD32, KINK32, Adapter, Case, Mistake
from tests.adapters.frepo import nchw, nhwc
from tests.adapters.networks import build, flax_names, load_flax, to_flax, to_torch

F64, LOSS64 = 1e-8, 1e-6
"""As the README of the files asks: losses were cast to float32."""


class Problem:
    """A golden file as a method with one network."""

    def __init__(self, case: Case) -> None:
        self.case, cfg = case, case.cfg
        cfg["H"] = cfg["size"]
        self.real = nchw(case["in.x_real"]).contiguous(), case["in.label_real"]
        config = rcig.RCIGConfig(
            lr=cfg["lr_proto"],
            lr_scale=cfg["lr_temp"],
            pool_size=1,
            lr_online=cfg["lr_pool"],
            softplus=cfg["beta"],
            use_flip=cfg["flip"],
            ema=cfg["ema"],
        )
        images = nchw(case["in.x_syn"]).contiguous()
        task = Task(
            images=images,
            labels=torch.arange(cfg["C"]).repeat_interleave(cfg["ipc"]),
            num_classes=cfg["C"],
            ipc=cfg["ipc"],
            network=lambda _: build(case, "convnet_doubling", "none"),
            generator=torch.Generator().manual_seed(0),
            flip=True,
        )
        self.method = rcig.RCIG(task, config, 3)
        for tensor, value in zip(self.method.learned, (images, case["in.y_syn"], cfg["log_temp"]), strict=True):
            tensor.copy_(torch.as_tensor(value))
        self.member: Member = self.method.pool[0]
        load_flax(self.member.network, case)

    def seen(self) -> tuple[Tensor, Tensor]:
        return rcig.seen(self.method.images, self.method.labels, self.method.flip)

    def inner(self, names: list[str]) -> _implicit.Inner:
        return _implicit.Inner(self.member.network, *self.seen(), self.case.cfg["l2"], names)

    def outer_of(self, inner: _implicit.Inner) -> Callable[[Tensor, Tensor], _implicit.Outer]:
        images, classes = self.real
        return functools.partial(_implicit.outer, inner, scale=self.method.scale, images=images, classes=classes)

    def names(self) -> dict[str, str]:
        """Our names of the parameters → those of flax, in our order."""
        flax = {id(tensor): name for name, tensor in flax_names(self.member.network).items()}
        return {name: flax[id(tensor)] for name, tensor in self.member.network.named_parameters()}

    def recorded(self, prefix: str) -> Tensor:
        """A recorded tangent over all parameters as a vector."""
        return torch.cat([to_torch(name, self.case[prefix + name]).flatten() for name in self.names().values()])

    def check(
        self, prefix: str, inner: _implicit.Inner, tangent: Tensor, f64: float = F64, f32: float = KINK32
    ) -> None:
        """The vector ``tangent`` against recorded arrays, those that are there, taken together."""
        split = _tangents.parts(inner.network, inner.names, tangent)
        names = {ours: flax for ours, flax in self.names().items() if ours in inner.names}
        ours = torch.cat([to_flax(flax, split[name]).flatten() for name, flax in names.items()]).double()
        theirs = torch.cat([torch.from_numpy(self.case.arrays[prefix + flax]).flatten() for flax in names.values()])
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        self.case.hold(prefix, error, f64 if self.case.dtype == torch.float64 else f32)

    def check_network(self, prefix: str, f64: float = F64, f32: float = FORWARD32) -> None:
        for name, tensor in flax_names(self.member.network).items():
            self.case.check(prefix + name, to_flax(name, tensor), f64=f64, f32=f32)


def golden(case: Case) -> None:
    pool(case)
    official(case)
    clean(case, "alt.clean.", lambda inner, outer_of: _implicit.faithful(inner, outer_of, *rates(case))[0])
    for size in (2**40, 0):  # with the Jacobian, and by conjugate gradients
        with mock.patch.object(_tangents, "EXPLICIT_BYTES", size):
            clean(case, "alt.exact.", lambda inner, outer_of: _implicit.exact(inner, outer_of, 40))


def rates(case: Case) -> tuple[float, float, int]:
    return case.cfg["lr_inner"], case.cfg["lr_hinv"], case.cfg["inner_steps"]


def pool(case: Case) -> None:
    problem = Problem(case)
    losses = [problem.member.update(*problem.seen(), rcig.online_loss) for _ in range(len(case["out.pool.losses"]))]
    case.check("out.pool.losses", torch.stack(losses), f64=LOSS64, f32=1e-4)
    problem.check_network("out.pool.step5.")


def warm(problem: Problem) -> None:
    for _ in range(problem.case.cfg["pool_steps_before"]):
        problem.member.update(*problem.seen(), rcig.online_loss)


def clean(case: Case, prefix: str, solve: Callable[..., _implicit.Solved]) -> None:
    problem = Problem(case)
    warm(problem)
    inner = problem.inner(_tangents.names_of(problem.member.network))
    solved = solve(inner, problem.outer_of(inner))
    if prefix == "alt.clean.":
        losses = _implicit.faithful(inner, problem.outer_of(inner), *rates(case))[1]
        case.check("alt.clean.inner_losses", losses, f64=F64, f32=1e-3)
    compare(problem, prefix, inner, solved)


def compare(problem: Problem, prefix: str, inner: _implicit.Inner, solved: _implicit.Solved) -> None:
    """What both kinds of arrays have: outer loss, its gradient in τ, the inverse, direct and implicit part."""
    case = problem.case
    official = prefix == "out."
    at = "out.outer." if official else prefix
    direct, implicit, apart = rcig.meta_gradients(inner, solved, problem.method.labels, problem.method.flip)
    case.check(f"{at}loss" if official else f"{at}outer_loss", solved.outer.loss + apart, f64=LOSS64, f32=1e-3)
    if not official:
        problem.check(prefix + "tangent.", inner, solved.tangent)
    problem.check(at + "g_t.", inner, solved.outer.tangent - inner.jacobian.transposed(solved.direct))
    problem.check("out.hinv." if official else prefix + "v.", inner, solved.inverse / inner.scale)
    case.check(at + "direct.log_temp", solved.outer.scale, f64=F64, f32=KINK32)
    for part, (images, labels) in ((at + "direct", direct), (prefix + "implicit", implicit)):
        case.check(part + ".x_proto", nhwc(images), f64=F64, f32=KINK32)
        case.check(part + ".y_proto", labels, f64=F64, f32=KINK32)


def official(case: Case) -> None:
    problem = Problem(case)
    warm(problem)
    if case.cfg["pool_steps_before"]:
        problem.check_network("out.warm.base.")
    everything = list(problem.names())
    inner, tangent = problem.inner(everything), torch.zeros_like(problem.recorded("out.inner.step1.tangent."))
    first, second = torch.zeros_like(tangent), torch.zeros_like(tangent)
    head = torch.cat([torch.full((p.numel(),), n == "head.weight") for n, p in inner.network.named_parameters()])
    losses = []
    for step in range(1, case.cfg["inner_steps"] + 1):
        loss, gradient = inner.loss(tangent)
        losses.append(loss)
        first, second = first.lerp(gradient, 0.1), second.lerp(gradient.square(), 0.001)
        count = case.cfg["pool_steps_before"] + step
        move = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        tangent = torch.where(head, tangent + gradient, tangent - case.cfg["lr_inner"] * move)
        if case.cfg["pool_steps_before"]:
            for parameter in problem.member.network.parameters():
                parameter.grad = torch.zeros_like(parameter)
            problem.member.optimiser.step()
            problem.member.optimiser.zero_grad()
            inner = problem.inner(everything)
        if f"out.inner.step{step}.tangent.Dense_0.bias" in case:
            problem.check(f"out.inner.step{step}.tangent.", inner, tangent)
        if f"out.inner.step{step}.base.Dense_0.bias" in case:
            problem.check_network(f"out.inner.step{step}.base.")
    case.check("out.inner.losses", torch.stack(losses), f64=LOSS64, f32=1e-3)

    tangent = problem.recorded("out.inner.step20.tangent.")
    loss, gradient = inner.loss(tangent)
    case.check("out.inner.loss_end", loss, f64=LOSS64, f32=1e-3)
    problem.check("out.inner.grad_end.", inner, gradient)
    solved, residuals = adjoint(problem, inner, tangent)
    compare(problem, "out.", inner, solved)
    g = solved.outer.tangent - inner.jacobian.transposed(solved.direct)
    problem.check("out.hvp_of_g_t.", inner, inner.curvature(g))
    case.check("out.hinv.residuals", residuals, f64=LOSS64, f32=KINK32)
    update(problem, tangent)


def adjoint(problem: Problem, inner: _implicit.Inner, tangent: Tensor) -> tuple[_implicit.Solved, Tensor]:
    cfg = problem.case.cfg
    return _implicit.adjoint(inner, problem.outer_of(inner), tangent, cfg["lr_hinv"], cfg["hinv_steps"])


def update(problem: Problem, tangent: Tensor) -> None:
    """Three steps at a fixed tangent."""
    case, method = problem.case, problem.method
    for step in range(1, 4):
        inner = problem.inner(list(problem.names()))
        solved = adjoint(problem, inner, tangent)[0]
        direct, implicit, _ = rcig.meta_gradients(inner, solved, method.labels, method.flip)
        total = [*(a + rcig.clipped(b, a) for a, b in zip(direct, implicit, strict=True)), solved.outer.scale]
        method.update(total)
        method.average.update(method.learned)
        for at, values in ((f"out.meta{step}.", method.learned), (f"out.meta{step}.ema.", method.average.values())):
            for name, value, gradient in zip(("x_proto", "y_proto", "log_temp"), values, total, strict=True):
                if at + name in case:
                    case.check(at + name, nhwc(value) if name == "x_proto" else value, f64=F64, f32=1e-2)
                if step == 1:
                    case.check(f"out.total_norm.{name}", gradient.norm(), f64=F64, f32=KINK32)


ADAPTERS: dict[str, Adapter] = {"rcig": golden}


# --- mistakes, planted

FLAT, FLIP = "rcig_softplus_1ch.npz", "rcig_softplus_flip_d2.npz"
_along, _gradients, _meta, _init = (
    _implicit.along,
    rcig.image_gradients,
    rcig.meta_gradients,
    _implicit.Inner.__init__,
)


def base_logits_in_the_prediction(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    feats, logits, moved = _along(*arguments)
    return feats, logits, moved + logits


def divisor_without_mirrored_images(self: _implicit.Inner, network: Any, images: Tensor, *others: Any) -> None:
    _init(self, network, images, *others)
    self.scale *= 2


def implicit_part_with_the_other_sign(inner: _implicit.Inner, solved: _implicit.Solved) -> tuple[Tensor, Tensor]:
    direct, implicit = _gradients(inner, solved)
    return direct, -implicit


def mirrored_images_dropped(*arguments: Any) -> tuple[list[Tensor], list[Tensor], Tensor]:
    inner, solved, labels, flip = arguments
    gradients = _gradients(inner, solved)
    direct, implicit, apart = _meta(inner, solved, labels, flip)
    own = [part[: len(labels)] if flip else part for part in gradients]
    return [own[0], direct[1]], [own[1], implicit[1]], apart


def margin_of_frepo(labels: Tensor) -> Tensor:
    top = labels.topk(2, dim=1).values
    return -(top[:, 0] - top[:, 1]).clamp(max=1 / labels.shape[1]).mean()


def sum_over_classes(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits - labels).square().sum(1).mean() / 2


def clipped_by_entry(implicit: Tensor, direct: Tensor) -> Tensor:
    return implicit.clamp(-direct.abs(), direct.abs())


def last_layer_with_a_tangent(network: Any) -> list[str]:
    return [name for name, _ in network.named_parameters()]


def relu_while_distilling(network: Any, beta: float) -> Any:
    return network


def average_not_corrected(self: Any) -> list[Tensor]:
    return list(self.hidden)


def adam_for_adabelief(groups: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=lr, eps=1e-16)


def one_solve_for_both(self: _implicit.Inner, tangent: Tensor) -> Tensor:
    return self.solve(self.labels)


def plant(owner: object, attribute: str, wrong: Callable[..., Any], file: str = FLAT) -> Mistake:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(owner, attribute, wrong)

    return Mistake(f"rcig_{wrong.__name__}", file, patch)


MISTAKES = [
    plant(_implicit, "along", base_logits_in_the_prediction),
    plant(_implicit.Inner, "__init__", divisor_without_mirrored_images, FLIP),
    plant(rcig, "image_gradients", implicit_part_with_the_other_sign),
    plant(rcig, "meta_gradients", mirrored_images_dropped, FLIP),
    plant(rcig, "margin", margin_of_frepo),
    plant(rcig, "online_loss", sum_over_classes),
    plant(rcig, "clipped", clipped_by_entry),
    plant(_tangents, "names_of", last_layer_with_a_tangent),
    plant(rcig, "smooth", relu_while_distilling),
    plant(rcig.Average, "values", average_not_corrected),
    plant(rcig, "AdaBelief", adam_for_adabelief),
    plant(_implicit.Inner, "coefficients", one_solve_for_both),
]
