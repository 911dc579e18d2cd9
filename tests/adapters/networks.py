"""Forward passes and initialisation of the networks, augmentations, training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import augment, protocols, training
from benchmarks.networks import FlaxNetwork, Network, NetworkSpec, layers
from benchmarks.networks.convnet import ConvNetDoubling
from benchmarks.networks.layers import BatchNorm
from methods import _optim
from tests.adapters import FORWARD32, KINK32, Adapter, Case, Mistake

NORM = {"identity": "none", "batchnorm": "batch", "instancenorm": "instance"}
"""What the references call some of our norms."""


def build(case: Case, name: str, norm: str | None = None, seed: int = 0) -> Network:
    """The network that the settings of the file describe."""
    cfg: dict[str, Any] = case.cfg
    spec = NetworkSpec(
        name,  # type: ignore[arg-type]
        cfg["ch"],
        (cfg["H"], cfg.get("W", cfg["H"])),
        cfg["C"],
        width=cfg["width"],
        depth=cfg["depth"],
        norm=NORM.get(norm or cfg["norm"], norm or cfg["norm"]),  # type: ignore[arg-type]
    )
    return spec.build(torch.Generator().manual_seed(seed), dtype=case.dtype)


def load_flax(network: Network, case: Case, params: str = "param.", stats: str = "stats.") -> None:
    """Parameters and running statistics of a flax network into a ``convnet_doubling``."""
    for name, tensor in flax_names(network).items():
        array = case[(params if isinstance(tensor, nn.Parameter) else stats) + name]
        copy(to_torch(name, array), tensor)


def copy(array: Tensor, tensor: Tensor) -> None:
    assert array.shape == tensor.shape, f"{tuple(tensor.shape)} where the reference has {tuple(array.shape)}"
    tensor.data.copy_(array)


def flax_names(network: Network) -> dict[str, Tensor]:
    """The parameters and running statistics of a ``convnet_doubling`` by their flax names."""
    named: dict[str, Tensor] = {"Dense_0.kernel": network.head.weight, "Dense_0.bias": network.head.bias}
    for i, conv in enumerate(module for module in network.body if isinstance(module, nn.Conv2d)):
        assert conv.bias is not None
        named |= {f"Conv_{i}.kernel": conv.weight, f"Conv_{i}.bias": conv.bias}
    for i, norm in enumerate(module for module in network.body if isinstance(module, BatchNorm)):
        named |= {f"BatchNorm_{i}.scale": norm.weight, f"BatchNorm_{i}.bias": norm.bias}
        named |= {f"BatchNorm_{i}.mean": norm.running_mean, f"BatchNorm_{i}.var": norm.running_var}
    return named


def to_torch(name: str, array: Tensor) -> Tensor:
    """A flax array in torch's layout: kernels (h, w, in, out) → (out, in, h, w) and (in, out) → (out, in)."""
    if not name.endswith("kernel"):
        return array
    return array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T


def to_flax(name: str, tensor: Tensor) -> Tensor:
    """The inverse of ``to_torch``."""
    if not name.endswith("kernel"):
        return tensor
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def load_vico(network: Network, case: Case, prefix: str = "param.") -> None:
    """Parameters named ``features.<k>.*`` and ``classifier.*`` into a ``convnet``."""
    for name, parameter in network.named_parameters():
        copy(case[prefix + vico_name(name)], parameter)


def vico_name(name: str) -> str:
    return name.replace("body.", "features.").replace("head.", "classifier.")


def conv_forward_frepo(case: Case) -> None:
    network = build(case, "convnet_doubling")
    load_flax(network, case)
    x = case["in.x"].permute(0, 3, 1, 2)
    for mode in ("eval", "train"):
        network.train(mode == "train")
        features = network.features(x)
        case.check(f"out.{mode}.feat", features, f64=1e-12, f32=FORWARD32)
        case.check(f"out.{mode}.logits", network.head(features), f64=1e-12, f32=FORWARD32)
    named = flax_names(network)
    for name in case.names("out.train.new_stats."):
        case.check(f"out.train.new_stats.{name}", named[name], f64=1e-12, f32=FORWARD32)


def conv_forward_dc(case: Case) -> None:
    network = build(case, "convnet")
    load_vico(network, case)
    x = case["in.x"].requires_grad_()
    features = network.features(x)
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.square().sum(), x)
    case.check("out.feat", features, f64=1e-12, f32=FORWARD32)
    case.check("out.logits", logits, f64=1e-12, f32=FORWARD32)
    case.check("out.grad_x_of_sum_logits_sq", grad, f64=1e-12, f32=KINK32)


def frepo_init_stats(case: Case) -> None:
    """The moments over many fresh networks: constants exactly, kernels as well as their number of draws allows."""
    drawn: dict[str, list[Tensor]] = {}
    for seed in range(case.cfg["n_seeds"]):
        for name, tensor in flax_names(build(case, "convnet_doubling", seed=seed)).items():
            drawn.setdefault(name, []).append(tensor.detach().double().flatten())
    fan_ins = {name: tensor[0].numel() for name, tensor in flax_names(build(case, "convnet_doubling")).items()}
    for group in ("param", "stats"):
        for name in case.names(f"out.{group}."):
            mean, std, low, high, kurtosis, count = case.arrays[f"out.{group}.{name}"].tolist()
            x = torch.cat(drawn[name.removesuffix(".moments")])
            assert len(x) == count, f"{name}: {len(x)} values, not {count}"
            case.checked += 1
            if std == 0:
                assert bool((x == mean).all()), f"{name}: not {mean} everywhere"
                continue
            fan_in = fan_ins[name.removesuffix(".moments")]
            cut = 2 / 0.87962566 / fan_in**0.5
            assert x.abs().max() <= cut * (1 + 1e-6), f"{name}: a value above the cut"
            # A share 0.226·δ of the draws is within a fraction δ of the cut: about 13 of them for δ = 60 / count.
            assert x.abs().max() >= (1 - max(0.01, 60 / count)) * max(-low, high), f"{name}: cut too early"
            # Five standard errors, of the difference between two samples of this size.
            assert abs(float(x.mean()) - mean) < 5 * std * (2 / count) ** 0.5, f"{name}: mean"
            assert abs(float(x.std()) / std - 1) < 5 * ((kurtosis - 1) / 2 / count) ** 0.5, f"{name}: std"
            assert abs(float(((x - x.mean()) / x.std()).pow(4).mean()) - kurtosis) < 5 * (20 / count) ** 0.5, name


def dc_evaluate_synset(case: Case) -> None:
    norm = case.cfg.get("norm", "instance" if "param.features.1.weight" in case else "none")
    network = build(case, "convnet", norm=norm)
    load_vico(network, case)
    recipe = protocols.vico_recipe(case.cfg["epochs"])
    recipe = replace(recipe, lr=case.cfg["lr"], batch_size=len(case["in.x"]), augment="none")
    generator = torch.Generator().manual_seed(0)
    training.train(network, case["in.x"], case["in.y"], "probability", recipe, flip=False, generator=generator)
    for name, parameter in network.named_parameters():
        case.check(f"out.final.param.{vico_name(name)}", parameter, f64=1e-11, f32=KINK32)
    logits = training.predict(network, case["in.x_test"])
    case.check("out.logits_test", logits, f64=1e-11, f32=KINK32)
    accuracy = training.accuracy(logits, case["in.y_test"])
    case.check("out.acc_test", torch.tensor(accuracy, dtype=torch.float64), f64=1e-12, f32=1e-12)


def frepo_eval_schedule_ema(case: Case) -> None:
    cfg = case.cfg
    for steps in cfg["N"]:
        rates = [
            training.warmup_cosine(step, steps, cfg["lr"], cfg["warmup"], cfg["alpha"])
            for step in case[f"in.steps_N{steps}"].tolist()
        ]
        case.check(f"out.lr_N{steps}", torch.tensor(rates, dtype=case.dtype), f64=1e-13, f32=1e-5)
    for decay in sorted({name.split(".hidden")[0] for name in case.names("out.ema") if ".hidden" in name}):
        names = case.names("in.ema.")
        values = [case[f"in.ema.{name}"] for name in names]
        average = _optim.Average([value[0] for value in values], float(decay))
        hidden: list[list[Tensor]] = []
        corrected: list[list[Tensor]] = []
        for row in zip(*values, strict=True):
            average.update(row)
            hidden.append([tensor.clone() for tensor in average.hidden])
            corrected.append(average.values())
        for i, name in enumerate(names):
            case.check(f"out.ema{decay}.hidden.{name}", torch.stack([h[i] for h in hidden]), f64=1e-13, f32=1e-5)
            case.check(f"out.ema{decay}.average.{name}", torch.stack([c[i] for c in corrected]), f64=1e-13, f32=1e-5)


def dsa_augment(case: Case) -> None:
    """The reference is float32 in every case, and so is the tolerance: for coordinates off by 32 pixels times 4·u."""
    x, cotangent = case["in.x"].requires_grad_(), case["in.cot"]
    for prefix in sorted({name.rsplit(".y", 1)[0] for name in case.names("out.op.") if name.endswith(".y")}):
        op, mode = prefix.split(".")
        names = sorted(case.names(f"out.op.{prefix}.draw."))  # rows before columns, width before height
        draws = torch.stack([case[f"out.op.{prefix}.draw.{name}"] for name in names])
        y = augment.apply_dsa(op, x, draws[:, :1] if mode == "siamese" else draws)
        (grad,) = torch.autograd.grad(y, x, cotangent)
        case.check(f"out.op.{prefix}.y", y, f64=2e-5, f32=2e-5)
        case.check(f"out.op.{prefix}.grad_x", grad, f64=2e-5, f32=2e-5)
    names = case.arrays["out.full.op_names"].tolist()
    assert sorted({*names, "flip"}) == sorted(augment.DSA_STRATEGY.split("_"))  # digits are not flipped
    for seed in case.cfg["seeds"]:
        if f"out.full.seed{seed}.y" in case:  # one record per operation and few more: not every seed has one
            op = names[int(case[f"out.full.seed{seed}.op_index"])]
            y = augment.apply_dsa(op, x, case[f"out.full.seed{seed}.draws_first"][:, None])
            case.check(f"out.full.seed{seed}.y", y, f64=2e-5, f32=2e-5)


ADAPTERS: dict[str, Adapter] = {
    "conv_forward_frepo": conv_forward_frepo,
    "conv_forward_dc": conv_forward_dc,
    "frepo_init_stats": frepo_init_stats,
    "dc_evaluate_synset": dc_evaluate_synset,
    "frepo_eval_schedule_ema": frepo_eval_schedule_ema,
    "dsa_augment": dsa_augment,
}


Patch = Callable[[pytest.MonkeyPatch], None]


def plant(target: object, name: str, value: object) -> Patch:
    return lambda patch: patch.setattr(target, name, value)


def batch_statistics_always(self: BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def torch_batch_norm(momentum: float) -> Callable[[BatchNorm, Tensor], Tensor]:
    def forward(self: BatchNorm, x: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, momentum, self.eps)

    return forward


def channels_first(self: FlaxNetwork, maps: Tensor) -> Tensor:
    return maps.flatten(1)


class GroupNormOtherEps(nn.GroupNorm):
    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__(groups, channels, eps=eps / 10)


def vico_recipe_with(**changes: Any) -> Callable[[int], protocols.Recipe]:
    """The recipe with every field in ``changes`` raised by its value."""
    recipe = protocols.vico_recipe
    return lambda epochs: replace(
        recipe(epochs), **{name: getattr(recipe(epochs), name) + value for name, value in changes.items()}
    )


def keep_the_optimiser(patch: pytest.MonkeyPatch) -> None:
    make = training._optimiser
    made: list[torch.optim.Optimizer] = []

    def optimiser(recipe: protocols.Recipe, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        made.append(made[0] if made else make(recipe, parameters, lr))
        made[0].param_groups[0]["lr"] = lr
        return made[0]

    patch.setattr(training, "_optimiser", optimiser)


def apply_dsa_with(draws: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    apply = augment.apply_dsa
    return lambda op, images, given: apply(op, images, draws(given))


def contrast_per_channel(images: Tensor, factor: Tensor) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor.view(-1, 1, 1, 1) + mean


def saturation_of_image_mean(images: Tensor, factor: Tensor) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * factor.view(-1, 1, 1, 1) + mean


def shift_other_way(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return SHIFT(images, -rows, -columns)


def scale_axes_swapped(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return SCALE(images, y, x)


def rotate_other_way(images: Tensor, angle: Tensor) -> Tensor:
    return ROTATE(images, -angle)


def flip_vertically(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(2), images)


class GridWithCornersAligned:
    grid_sample = staticmethod(F.grid_sample)

    def affine_grid(self, theta: Tensor, size: list[int], align_corners: bool) -> Tensor:
        return F.affine_grid(theta, size, align_corners=True)


def uncorrected(self: _optim.Average) -> list[Tensor]:
    return [hidden.clone() for hidden in self.hidden]


def warmup_from_one(step: int, *rest: Any) -> float:
    return WARMUP_COSINE(step + 1, *rest)


def cosine_to_zero(step: int, steps: int, lr: float, warmup: int, final: float) -> float:
    return WARMUP_COSINE(step, steps, lr, warmup, 0.0)


SHIFT, SCALE, ROTATE, WARMUP_COSINE = augment.shift, augment.scale, augment.rotate, training.warmup_cosine
FREPO, FREPO_GREY = "conv_forward_frepo_bn_d3_16x16x3.npz", "conv_forward_frepo_bn_d3_28x28x1.npz"
DC, DC_GREY = "conv_forward_dc_in_d3_16x16x3.npz", "conv_forward_dc_in_d3_28x28x1.npz"
INIT, EVALUATE = "frepo_init_stats.npz", "dc_evaluate_synset.npz"
SCHEDULE, DSA = "frepo_eval_schedule_ema.npz", "dsa_augment.npz"
MISTAKES: list[Mistake] = [
    Mistake("batch statistics in evaluation", FREPO, plant(BatchNorm, "forward", batch_statistics_always)),
    Mistake("unbiased running variance", FREPO, plant(BatchNorm, "forward", torch_batch_norm(0.9))),
    Mistake("batch norm momentum inverted", FREPO, plant(BatchNorm, "forward", torch_batch_norm(0.1))),
    Mistake("batch norm eps 1e-3", FREPO, plant(BatchNorm.__init__, "__defaults__", (0.9, 1e-3))),
    Mistake("flatten as C, H, W", FREPO, plant(FlaxNetwork, "flatten", channels_first)),
    Mistake("padding 1 for grey images, frepo", FREPO_GREY, plant(NetworkSpec, "border", 0)),
    Mistake("padding 1 for grey images, dc", DC_GREY, plant(NetworkSpec, "border", 0)),
    Mistake("instance norm eps 1e-6", DC, plant(nn, "GroupNorm", GroupNormOtherEps)),
    Mistake("maximum pooling", DC, plant(layers.AveragePool, "forward", lambda _, x: F.max_pool2d(x, 2))),
    Mistake("torch's default initialisation", INIT, plant(ConvNetDoubling, "draw", staticmethod(layers.torch_default))),
    Mistake("truncation at three sigma", INIT, plant(layers, "_CUT", 3.0)),
    Mistake("truncation not accounted for", INIT, plant(layers, "_TRUNCATED_STD", 1.0)),
    Mistake("optimiser not recreated", EVALUATE, keep_the_optimiser),
    Mistake("rate drops an epoch early", EVALUATE, plant(protocols, "vico_recipe", vico_recipe_with(drop_after=-1))),
    Mistake("rate drops an epoch late", EVALUATE, plant(protocols, "vico_recipe", vico_recipe_with(drop_after=1))),
    Mistake("E epochs, not E + 1", EVALUATE, plant(protocols, "vico_recipe", vico_recipe_with(epochs=-1))),
    Mistake("no weight decay", EVALUATE, plant(protocols, "vico_recipe", vico_recipe_with(weight_decay=-5e-4))),
    Mistake("cosine down to 0", SCHEDULE, plant(training, "warmup_cosine", cosine_to_zero)),
    Mistake("first update of the warm-up not 0", SCHEDULE, plant(training, "warmup_cosine", warmup_from_one)),
    Mistake("moving average not corrected", SCHEDULE, plant(_optim.Average, "values", uncorrected)),
    Mistake("corners aligned in the grid alone", DSA, plant(augment, "F", GridWithCornersAligned())),
    Mistake("contrast around the channel mean", DSA, plant(augment, "contrast", contrast_per_channel)),
    Mistake("saturation around the image mean", DSA, plant(augment, "saturation", saturation_of_image_mean)),
    Mistake("one draw for all images", DSA, plant(augment, "apply_dsa", apply_dsa_with(lambda draws: draws[:, :1]))),
    Mistake("crop in the other direction", DSA, plant(augment, "shift", shift_other_way)),
    Mistake("scale axes swapped", DSA, plant(augment, "scale", scale_axes_swapped)),
    Mistake("rotation in the other direction", DSA, plant(augment, "rotate", rotate_other_way)),
    Mistake("flip along the height", DSA, plant(augment, "flip_horizontally", flip_vertically)),
    Mistake("cutout side", DSA, plant(augment, "_cutout_side", lambda size: size // 2 - 1)),
]
