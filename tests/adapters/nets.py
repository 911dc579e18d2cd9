"""The field's networks at full width, whose parameters are an integer hash of their position."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import FlaxNetwork, Network, NetworkSpec
from benchmarks.networks.layers import AveragePool, BatchNorm, Residual, WideConv2d
from tests.adapters import KINK32, Adapter, Case, Mistake
from tests.adapters.networks import plant

F64, F32 = 1e-11, 2e-4
"""Sums of up to 4608 terms through 17 layers; batch norm divides by small deviations. The README's own."""
NORMS = {"nn": "none", "identity": "none", "bn": "batch", "batch": "batch", "in": "instance", "instance": "instance"}
FREPO = {"conv": "convnet_doubling", "alexnet_avg": "frepo_alexnet", "vgg11_avg": "frepo_vgg11"}
"""Our names of FRePo's networks; of others they are theirs with ``frepo_`` before it."""


def hashed(shape: list[int], kind: str, place: int, salt: int) -> Tensor:
    """Parameter number ``place`` of a network, float64, by the formula of the README."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):  # modulo 2³²
        h = np.arange(1, count + 1, dtype=np.uint32) * np.uint32(0x9E3779B1)
        h += np.uint32(((place + 1) * 0x85EBCA6B + salt * 0xC2B2AE35) % 2**32)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
    v = torch.from_numpy(2 * h.astype(np.float64) / 2**32 - 1).view(shape)
    match kind:
        case "weight":
            return v * (6 * shape[0] / count) ** 0.5
        case "norm_weight":
            return 1 + 0.2 * v
        case "running_var":
            return 1 + 0.5 * v
        case "bias" | "norm_bias" | "running_mean":
            return 0.1 * v
    raise AssertionError(f"a parameter of kind {kind}")


def in_order(network: Network) -> list[Tensor]:
    """Parameters and running statistics, in the order of construction; not torch's counts of batches."""
    return [value for value in network.state_dict(keep_vars=True).values() if value.is_floating_point()]


def flax_names(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Parameters and running statistics by their flax names."""

    def layers(module: nn.Module, scope: str) -> Iterator[tuple[str, Tensor]]:
        counts: Counter[str] = Counter()
        # Layers are numbered by kind inside a block, whose shortcut comes last.
        inner = module.modules() if isinstance(module, Residual) else module.children()
        for layer in inner:
            kind = {nn.Conv2d: "Conv", WideConv2d: "Conv", nn.GroupNorm: "GroupNorm", BatchNorm: "BatchNorm"}.get(
                type(layer)
            )
            if isinstance(layer, Residual) and layer is not module:
                yield from layers(layer, f"{scope}BasicBlock_{counts['block']}/")
                counts["block"] += 1
            elif kind is not None:
                path = f"{scope}{kind}_{counts[kind]}"
                counts[kind] += 1
                yield f"params/{path}/{'kernel' if kind == 'Conv' else 'scale'}", layer.weight
                if layer.bias is not None:
                    yield f"params/{path}/bias", layer.bias
                if kind == "BatchNorm":
                    yield f"batch_stats/{path}/mean", layer.running_mean
                    yield f"batch_stats/{path}/var", layer.running_var

    yield from layers(network.body, "")
    yield "params/Dense_0/kernel", network.head.weight
    yield "params/Dense_0/bias", network.head.bias


def vico(case: Case) -> None:
    for net in nets(case):
        name, _, norm = net.rpartition("_")
        network = build(case, *((name, NORMS[norm]) if norm in NORMS else (net, "none")))
        theirs = [name for name, *_ in order(case, net)]
        compare(case, net, network, dict(zip(theirs, in_order(network), strict=True)), nhwc=False)


def frepo(case: Case) -> None:
    for net in nets(case):
        norm = next((part for part in net.split("_") if part in NORMS), "identity")
        name = net.replace(f"_{norm}", "")
        network = build(case, FREPO.get(name, f"frepo_{name}"), NORMS[norm])
        compare(case, net, network, dict(flax_names(network)), nhwc=True)


def nets(case: Case) -> list[str]:
    return [name.removesuffix(".param_order") for name in case.arrays if name.endswith(".param_order")]


def order(case: Case, net: str) -> list[tuple[str, list[int], str]]:
    """Name, shape and kind of every parameter."""
    found = json.loads(str(case.arrays[f"{net}.param_order"]))
    return [(name.replace("BasicBlock_AP", "BasicBlock"), shape, kind) for name, shape, kind in found]


def build(case: Case, name: str, norm: str) -> Network:
    size = (case.cfg["image_size"], case.cfg["image_size"])
    spec = NetworkSpec(name, case.cfg["channels"], size, case.cfg["num_classes"], norm=norm)  # type: ignore[arg-type]
    with torch.device("meta"):
        network = spec.family(spec)
    return network.to(case.dtype).to_empty(device="cpu")  # all values come from the formula


def compare(case: Case, net: str, network: Network, ours: dict[str, Tensor], *, nhwc: bool) -> None:
    """``ours``: the parameters and running statistics of ``network`` by the names of the file."""
    listed = order(case, net)
    assert sorted(ours) == sorted(name for name, *_ in listed), f"{net}: other parameters"
    for place, (name, shape, kind) in enumerate(listed):
        assert list(ours[name].shape) == shape, f"{net} {name}: {tuple(ours[name].shape)}, not {shape}"
        ours[name].data.copy_(hashed(shape, kind, place, case.cfg["salt"]))
    assert sum(parameter.numel() for parameter in network.parameters()) == case.arrays[f"{net}.num_params"]
    assert network.head.in_features == case.arrays[f"{net}.feature_dim"]

    given = (case["in.x_nhwc"] if nhwc else case["in.x"]).requires_grad_()
    images = given.permute(0, 3, 1, 2) if nhwc else given
    features = network.eval().features(images)
    logits = network.head(features)
    gradients = torch.autograd.grad(logits.square().sum(), [given, next(network.parameters())])
    case.check(f"{net}.eval.logits", logits, f64=F64, f32=F32)
    shown = f"{net}.eval.feat"  # of the first image; at most so many
    case.check(shown, features[:1, : case.arrays[shown].shape[1]], f64=F64, f32=F32)
    shown = f"{net}.eval.grad_x_of_sum_logits_sq"
    case.check(shown, gradients[0][: len(case.arrays[shown])], f64=F64, f32=KINK32)
    if (shown := f"{net}.eval.grad_first_weight") in case:
        case.check(shown, gradients[1].flatten()[:2000], f64=F64, f32=KINK32)
    if (shown := f"{net}.train.logits") in case:
        with torch.no_grad():
            case.check(shown, network.train()(images), f64=F64, f32=F32)
        statistics = {name.removeprefix("batch_stats/"): value for name, value in ours.items()}
        for name in case.names(f"{net}.train.new."):
            case.check(f"{net}.train.new.{name}", statistics[name], f64=F64, f32=F32)


ADAPTERS: dict[str, Adapter] = {"nets_vico": vico, "nets_frepo": frepo}

VICO, FREPO_GREY = "nets_vico_28x28x1_c10.npz", "nets_frepo_28x28x1_c10.npz"


def pooled_by_maximum(self: AveragePool, x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 2)


def flattened_channels_first(self: FlaxNetwork, maps: Tensor) -> Tensor:
    return maps.flatten(1)


MISTAKES: list[Mistake] = [
    Mistake("no border around one-channel images", VICO, plant(NetworkSpec, "border", 0)),
    Mistake("FRePo's features as C, H, W", FREPO_GREY, plant(FlaxNetwork, "flatten", flattened_channels_first)),
    Mistake("FRePo's VGG pools by maximum", FREPO_GREY, plant(AveragePool, "forward", pooled_by_maximum)),
]
