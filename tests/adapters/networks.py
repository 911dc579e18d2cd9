"""Forward passes and initialisation of the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import networks
from benchmarks.networks import BatchNorm, ConvNetDoubling, Network, NetworkSpec
from tests.adapters import Adapter, Case, Mistake

NORM = {"none": "none", "identity": "none", "batch": "batch", "instancenorm": "instance", "instance": "instance"}


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
        norm=NORM[norm or cfg["norm"]],  # type: ignore[arg-type]
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
        case.check(f"out.{mode}.feat", features, f64=1e-12, f32=3e-6)
        case.check(f"out.{mode}.logits", network.head(features), f64=1e-12, f32=3e-6)
    named = flax_names(network)
    for name in case.names("out.train.new_stats."):
        case.check(f"out.train.new_stats.{name}", named[name], f64=1e-12, f32=3e-6)


def conv_forward_dc(case: Case) -> None:
    network = build(case, "convnet")
    load_vico(network, case)
    x = case["in.x"].requires_grad_()
    features = network.features(x)
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.square().sum(), x)
    case.check("out.feat", features, f64=1e-12, f32=5e-6)
    case.check("out.logits", logits, f64=1e-12, f32=5e-6)
    case.check("out.grad_x_of_sum_logits_sq", grad, f64=1e-12, f32=5e-6)


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
            assert x.abs().max() >= 0.99 * max(-low, high), f"{name}: cut too early"
            # Five standard errors, of the difference between two samples of this size.
            assert abs(float(x.mean()) - mean) < 5 * std * (2 / count) ** 0.5, f"{name}: mean"
            assert abs(float(x.std()) / std - 1) < 5 * ((kurtosis - 1) / 2 / count) ** 0.5, f"{name}: std"
            assert abs(float(((x - x.mean()) / x.std()).pow(4).mean()) - kurtosis) < 5 * (20 / count) ** 0.5, name


ADAPTERS: dict[str, Adapter] = {
    "conv_forward_frepo": conv_forward_frepo,
    "conv_forward_dc": conv_forward_dc,
    "frepo_init_stats": frepo_init_stats,
}


Patch = Callable[[pytest.MonkeyPatch], None]


def replace(target: object, name: str, value: object) -> Patch:
    return lambda patch: patch.setattr(target, name, value)


def batch_statistics_always(self: BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def torch_batch_norm(momentum: float) -> Callable[[BatchNorm, Tensor], Tensor]:
    def forward(self: BatchNorm, x: Tensor) -> Tensor:
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, momentum, self.eps)

    return forward


def channels_first(self: ConvNetDoubling, images: Tensor) -> Tensor:
    return self.body(images).flatten(1)  # type: ignore[no-any-return]


class GroupNormOtherEps(nn.GroupNorm):
    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__(groups, channels, eps=eps / 10)


FREPO, FREPO_GREY = "conv_forward_frepo_bn_d3_16x16x3.npz", "conv_forward_frepo_bn_d3_28x28x1.npz"
DC, DC_GREY = "conv_forward_dc_in_d3_16x16x3.npz", "conv_forward_dc_in_d3_28x28x1.npz"
INIT = "frepo_init_stats.npz"
MISTAKES: list[Mistake] = [
    Mistake("batch statistics in evaluation", FREPO, replace(BatchNorm, "forward", batch_statistics_always)),
    Mistake("unbiased running variance", FREPO, replace(BatchNorm, "forward", torch_batch_norm(0.9))),
    Mistake("batch norm momentum inverted", FREPO, replace(BatchNorm, "forward", torch_batch_norm(0.1))),
    Mistake("batch norm eps 1e-3", FREPO, replace(BatchNorm.__init__, "__defaults__", (0.1, 1e-3))),
    Mistake("flatten as C, H, W", FREPO, replace(ConvNetDoubling, "features", channels_first)),
    Mistake("padding 1 for grey images, frepo", FREPO_GREY, replace(NetworkSpec, "padding", lambda self, block: 1)),
    Mistake("padding 1 for grey images, dc", DC_GREY, replace(NetworkSpec, "padding", lambda self, block: 1)),
    Mistake("instance norm eps 1e-6", DC, replace(nn, "GroupNorm", GroupNormOtherEps)),
    Mistake("maximum pooling", DC, replace(nn, "AvgPool2d", nn.MaxPool2d)),
    Mistake("torch's default initialisation", INIT, replace(networks, "_lecun_normal", networks._torch_default)),
    Mistake("truncation at three sigma", INIT, replace(networks, "_CUT", 3.0)),
    Mistake("truncation not accounted for", INIT, replace(networks, "_TRUNCATED_STD", 1.0)),
]
