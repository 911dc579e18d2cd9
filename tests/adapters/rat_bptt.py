"""RaT-BPTT: meta-gradients, clipping and update; windows of AT-BPTT and the selector of AT-BPTT++."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from benchmarks.networks import Network
from benchmarks.task import Task
from methods import _unroll, _windows, rat_bptt
from tests.adapters import KINK32, Adapter, Case, Mistake
from tests.adapters.networks import build


def rat(case: Case) -> None:
    """In float32 the first loss alone: Adam makes full steps of the rounding of gradients that are 0."""
    cfg: dict[str, Any] = case.cfg
    cfg |= {"H": cfg["size"], "window": cfg.pop("W")}  # W would be the width of images
    method = recorded(case)
    assert [list(p.shape) for p in network_of(case, 0).parameters()] == [shape for _, shape in cfg["param_order"]]
    for step in range(cfg["iters"] if case.dtype == torch.float64 else 1):
        method.iteration = step
        leaves = method.leaves() if cfg["train_y"] else method.leaves()[:1]
        window, real = method.place(None), (case[f"in.x_real{step}"], case[f"in.label_real{step}"])
        for adam, rematerialize in (("faithful", False), ("faithful", True), ("exact", False), ("exact", True)):
            if step and (adam == "exact" or rematerialize):
                continue  # the set that was recorded for exact Adam is another from here on
            network, out = network_of(case, step), "alt.torch_adam." if adam == "exact" else "out."
            loss, _, gradients = rat_bptt.meta_gradient(
                network,
                method.batches(sum(window)),
                window,
                leaves,
                method.lr_inner,
                real,
                adam=adam,  # type: ignore[arg-type]
                rematerialize=rematerialize,
            )
            found = {"loss": loss}
            if case.dtype == torch.float64:
                found |= dict(zip(["grad_x", "grad_y"], gradients, strict=False))
            if adam == "faithful":
                found["logits"] = network(real[0])
            for name, actual in found.items():
                case.check(f"{out}iter{step}.{name}", actual, f64=1e-8, f32=KINK32)
        if case.dtype == torch.float32:
            return
        gradient = case[f"out.iter{step}.grad_x"]
        norm, (kept, average) = torch.linalg.vector_norm(gradient), rat_bptt.clipped(gradient, method.norm)
        found = {"grad_norm": norm, "ema": average, "clipped_norm": torch.linalg.vector_norm(kept)}
        method.step()
        assert method.norm is not None
        found |= {"x_syn": method.images, "ema": method.norm}
        if cfg["train_y"]:
            found["y_syn"] = method.labels
        for name, actual in found.items():
            case.check(f"out.iter{step}.{name}", actual, f64=1e-8, f32=KINK32)


def network_of(case: Case, step: int) -> Network:
    network = build(case, "convnet")
    vector_to_parameters(case[f"in.start{step}_flat"], network.parameters())
    return network


class Recorded(rat_bptt.RaTBPTT):
    """The method with the random choices of a file, and without augmentation."""

    iteration = 0
    case: Case

    def place(self, network: Network | None) -> _windows.Window:
        return self.case.cfg["M"][self.iteration], self.case.cfg["window"]

    def batches(self, steps: int) -> Callable[..., tuple[Tensor, Tensor]]:
        indices = self.case[f"in.indices{self.iteration}"]
        assert len(indices) == steps

        def batch(step: int, images: Tensor, labels: Tensor = self.classes) -> tuple[Tensor, Tensor]:
            return images[indices[step]], labels[indices[step]]

        return batch

    def draw(self, count: int) -> tuple[str, Tensor]:
        return "flip", torch.ones(1, count)  # no image is mirrored

    def step(self) -> dict[str, Tensor]:
        names = {"images": f"in.x_real{self.iteration}", "labels": f"in.label_real{self.iteration}"}
        real: dict[str, Any] = {field: self.case[name] for field, name in names.items()}
        step, case = self.iteration, self.case
        self.task = dataclasses.replace(self.task, **real, network=lambda _: network_of(case, step))
        return super().step()


def recorded(case: Case) -> Recorded:
    cfg = case.cfg
    config = rat_bptt.RaTBPTTConfig(
        lr_inner=cfg["lr_inner"], lr=cfg["lr_outer"], batch_size=cfg["B"], learn_label=cfg["train_y"]
    )
    classes = torch.arange(cfg["C"]).repeat_interleave(cfg["ipc"])
    generator = torch.Generator().manual_seed(0)
    task = Task(case["in.x_syn"], classes, cfg["C"], cfg["ipc"], lambda _: network_of(case, 0), generator, False)
    method = Recorded(task, config, total_steps=cfg["iters"])
    method.case = case
    method.images.copy_(case["in.x_syn"])
    if cfg["train_y"]:
        method.labels.copy_(case["in.y_syn"])
    else:
        assert torch.equal(method.classes, case["in.y_syn"])
    return method


def stage_rules(case: Case) -> None:
    window, change = case.cfg["window"], case.cfg["d"]
    for stage, rule in ((1, "early_window"), (3, "late_window")):
        windows = [
            getattr(_windows, rule)(norms, float(uniform), window, change)
            for norms, uniform in zip(case["in.grad_norms"].double(), case["in.uniform"].double(), strict=True)
        ]
        case.check(f"out.stage{stage}_start_window", torch.tensor(windows), f64=0, f32=0)


def selector(case: Case) -> None:
    cfg, norms = case.cfg, case["in.grad_norms"].double()
    policy = _windows.Policy(cfg["T"], cfg["window"], cfg["radius"])
    found: dict[str, list[Any]] = {"policy": [], "ref_policy": [], "window": [], "beta": []}
    recorded = case["out.index_window_relchange_beta"].double()
    for own, (index, *_) in zip(norms, recorded.tolist(), strict=True):
        found["policy"].append(policy.update(own, weight=cfg["kl"], rate=cfg["ref_ema"]))
        found["ref_policy"].append(policy.reference)
        start, width = policy.ending(own, int(index), temperature=cfg["tau"])
        assert start + width == int(index) + 1
        found["window"].append(width)
        found["beta"].append(policy.favour(float(own.mean())))
    for name in ("policy", "ref_policy"):
        case.check(f"out.{name}", torch.stack(found[name]), f64=1e-5, f32=1e-4)
    assert found["window"] == recorded[:, 1].tolist(), f"{case.path.name}: windows"
    case.hold("beta", float((torch.tensor(found["beta"]) - recorded[:, 3]).abs().max()), 1e-5)


ADAPTERS: dict[str, Adapter] = {
    "rat_bptt": rat,
    "at_bptt_stage_rules": stage_rules,
    "at_bptt_pp_selector": selector,
}


# --- mistakes, planted

IN, SOFT, STAGES, POLICY = (
    f"{name}.npz" for name in ("rat_bptt_in", "rat_bptt_none_soft_mb", "at_bptt_stage_rules", "at_bptt_pp_selector")
)
Found = tuple[Tensor, Tensor]
_step, _unrolled, _cross_entropy, _adam = _unroll.adam_step, _unroll.unroll, F.cross_entropy, torch.optim.Adam
_policy = _windows.Policy
_clipped = rat_bptt.clipped


def exact_everywhere(*arguments: Any, form: str) -> _unroll.State:
    return _step(*arguments, form="exact")


def faithful_before_the_window(*arguments: Any, form: str) -> _unroll.State:
    return _step(*arguments, form="faithful")


def counted_from_0(count: int, *arguments: Any, form: Any) -> _unroll.State:
    return _step(count + 1, *arguments, form=form)


def root_of_0_differentiated(count: int, gradient: Tensor, mean: Tensor, square: Tensor, *, form: Any) -> _unroll.State:
    direction, *moments = _step(count, gradient, mean, square, form=form)
    return direction + 0 * moments[1].sqrt(), *moments


def moments_lost_at_the_window(
    network: Network, start: Tensor, batch: Any, steps: int, *rest: Any, window: int, **settings: Any
) -> Found:
    before = steps - window
    if before:
        start, _ = _unrolled(network, start, batch, before, *rest, window=0, **settings)
    return _unrolled(network, start, lambda step, *tensors: batch(before + step, *tensors), window, *rest, **settings)


def window_too_wide(*arguments: Any, window: int, **settings: Any) -> Found:
    return _unrolled(*arguments, window=window + 1, **settings)


def graph_through_every_step(*arguments: Any, window: int, **settings: Any) -> Found:
    return _unrolled(*arguments, window=None, **settings)


def labels_normalised(logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    return _cross_entropy(logits, labels / labels.sum(1, keepdim=True) if labels.ndim == 2 else labels, **settings)


def labels_below_0(tensor: Tensor, *, min: float) -> Tensor:
    return tensor


def clipped_by_the_average_before(gradient: Tensor, average: Tensor | None, *, decay: float = 0.9) -> Found:
    norm = torch.linalg.vector_norm(gradient)
    if average is None:
        return gradient, norm
    return gradient * (2 * average / norm).clamp(max=1), decay * average + (1 - decay) * norm


def clipped_to_the_average(gradient: Tensor, average: Tensor | None, *, decay: float = 0.9) -> Found:
    norm = torch.linalg.vector_norm(gradient)
    average = norm if average is None else decay * average + (1 - decay) * norm
    return gradient * (average / norm).clamp(max=1), average


def not_clipped(gradient: Tensor, average: Tensor | None, *, decay: float = 0.9) -> Found:
    return gradient, clipped_to_the_average(gradient, average)[1]


def slow_average(gradient: Tensor, average: Tensor | None, *, decay: float = 0.9) -> Found:
    return _clipped(gradient, average, decay=0.99)


def adam_of_bptt(tensors: Any, lr: float) -> torch.optim.Optimizer:
    return _adam(tensors, lr=lr, betas=(0.5, 0.999))


def signed_changes(norms: Tensor) -> Tensor:
    return torch.diff(norms, prepend=norms[:1])


def not_mirrored(norms: Tensor, uniform: float, window: int, change: int) -> _windows.Window:
    return min(_windows._drawn(norms, uniform), len(norms) - window + change), window - change


def uniform_draw(norms: Tensor, uniform: float) -> int:
    return int(uniform * len(norms))


class NothingRemembered(_policy):
    """The reference stays as it was."""

    def update(self, norms: Tensor, **settings: Any) -> Tensor:
        before = self.reference
        policy = super().update(norms, **settings)
        self.reference = before
        return policy


class AlwaysLarge(_policy):
    """Large norms are favoured in every step."""

    def favour(self, mean: float) -> float:
        return 1.0


class Widest(_policy):
    """Every window is as wide as it may be."""

    def ending(self, norms: Tensor, last: int, **settings: Any) -> _windows.Window:
        width = min(self.window + self.change, last + 1)
        return last + 1 - width, width


def sample_deviation(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()


def mistake(module: object, attribute: str, wrong: Any, file: str = IN) -> Mistake:
    return Mistake(
        f"rat_bptt_{wrong.__name__}", file, lambda monkeypatch: monkeypatch.setattr(module, attribute, wrong)
    )


MISTAKES = [
    mistake(_unroll, "adam_step", exact_everywhere),
    mistake(_unroll, "adam_step", faithful_before_the_window, SOFT),
    mistake(_unroll, "adam_step", counted_from_0),
    mistake(_unroll, "adam_step", root_of_0_differentiated, SOFT),
    mistake(rat_bptt, "unroll", moments_lost_at_the_window),
    mistake(rat_bptt, "unroll", window_too_wide),
    mistake(rat_bptt, "unroll", graph_through_every_step),
    mistake(F, "cross_entropy", labels_normalised, SOFT),
    mistake(Tensor, "clamp_", labels_below_0, SOFT),
    mistake(rat_bptt, "clipped", clipped_by_the_average_before),
    mistake(rat_bptt, "clipped", clipped_to_the_average),
    mistake(rat_bptt, "clipped", not_clipped),
    mistake(rat_bptt, "clipped", slow_average),
    mistake(torch.optim, "Adam", adam_of_bptt),
    mistake(_windows, "changes", signed_changes, STAGES),
    mistake(_windows, "late_window", not_mirrored, STAGES),
    mistake(_windows, "_drawn", uniform_draw, STAGES),
    mistake(_windows, "_standardised", sample_deviation, POLICY),
    mistake(_windows, "Policy", NothingRemembered, POLICY),
    mistake(_windows, "Policy", AlwaysLarge, POLICY),
    mistake(_windows, "Policy", Widest, POLICY),
]
