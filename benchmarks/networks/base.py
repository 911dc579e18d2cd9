"""What a network is, and which network for which images.

``benchmarks.NETWORKS`` names the networks. Another package adds one by an entry point.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks import NETWORK_REGISTRY, NORMS
from benchmarks.errors import UserError, choose
from benchmarks.networks.layers import BatchNorm, Drawn, Norm, flax_norm, torch_default, torch_norm, truncated_normal

_NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm, BatchNorm)
"""Layers that start from constants."""


class Network(nn.Module):
    """A feature extractor ``body`` and a linear ``head``.

    Images (B, C, H, W) → ``features`` (B, D) → ``head`` → logits (B, num_classes). A network of one's own derives from
    this class, and makes ``body`` and ``head`` in its constructor. `NetworkSpec.build` gives them their initial values.
    """

    depth: ClassVar[int | None]
    """The number of its blocks or layers, for the record; None: ``spec.blocks``, which the user may choose."""
    norms: ClassVar[tuple[Norm, ...]] = ("none",)
    """The norms with which it exists, its usual one first."""
    channels_last: ClassVar[bool] = False
    """Whether its weights lie channels last on a CPU, because it is faster so."""

    body: nn.Module
    head: nn.Linear

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of ``images``."""
        return self.flatten(cast(Tensor, self.body(images)))

    def flatten(self, maps: Tensor) -> Tensor:
        """Features (B, D) from what ``body`` returns: in order C, H, W."""
        return maps.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        return cast(Tensor, self.head(self.features(images)))

    @classmethod
    def blocks(cls, spec: NetworkSpec) -> int:
        """The number of blocks for the images of ``spec``, where nobody has chosen one."""
        assert cls.depth is not None
        return cls.depth

    @classmethod
    def last_map(cls, spec: NetworkSpec) -> tuple[int, int]:
        """(height, width) of the last map for the images of ``spec``; below 1 where they are too small for it."""
        return 1, 1

    def map_size(self, height: int, width: int) -> int:
        """About how many numbers the largest map of an image of ``height`` × ``width`` pixels has.

        By default the first layer's, as large as the image.
        """
        return len(next(self.parameters())) * height * width

    @staticmethod
    def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
        """The layer that normalises ``channels`` maps, in a list; an empty one for ``none``."""
        return torch_norm(norm, channels)

    @staticmethod
    def draw(layer: Drawn, generator: torch.Generator) -> None:
        """Draw the initial values of a convolution or linear layer from the CPU ``generator``; by default torch's."""
        torch_default(layer, generator)

    def initialise(self, generator: torch.Generator) -> None:
        """Give every layer its initial values, drawn from the CPU ``generator`` alone.

        Raises UserError for a layer with parameters that is neither convolution, linear layer nor norm.
        """
        for layer in self.modules():
            if isinstance(layer, Drawn):
                self.draw(layer, generator)
            elif isinstance(layer, _NORMS):
                layer.reset_parameters()
            elif layer._parameters or layer._buffers:
                raise UserError(
                    f"{type(self).__name__} has a {type(layer).__name__}, whose initial values are unknown: override "
                    "initialise()"
                )


class FlaxNetwork(Network):
    """A network of FRePo's JAX program: LeCun normal weights, biases 0, features in order H, W, C."""

    def flatten(self, maps: Tensor) -> Tensor:
        """Features (B, D) in order H, W, C, without a copy where memory is channels last."""
        return maps.permute(0, 2, 3, 1).flatten(1)

    @staticmethod
    def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
        return flax_norm(norm, channels)

    @staticmethod
    def draw(layer: Drawn, generator: torch.Generator) -> None:
        truncated_normal(layer, generator)


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """The layers of ``network`` in which, in training mode, the images of a batch see each other."""
    return [module for module in network.modules() if isinstance(module, BatchNorm | _BatchNorm)]


def usual_norm(network: str, wanted: Norm) -> Norm:
    """The norm ``wanted`` where ``network`` exists with it, else the usual one of ``network``.

    Protocols name a norm, which not every network has. Raises UserError for a network that does not exist.
    """
    norms = get(network).norms
    return wanted if wanted in norms else norms[0]


@dataclass(frozen=True)
class NetworkSpec:
    """Which network for which images.

    Raises UserError for an unknown name or norm, a norm that the network does not have, a width or depth below 1, a
    depth where it is fixed, and images that are too small.
    """

    name: str
    """One of ``benchmarks.NETWORKS``."""
    in_channels: int
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    num_classes: int
    width: int = 128
    """128: as published. Channels of every block of ``convnet``, of the first block of ``convnet_doubling``; other
    networks have width/128 of all their channels, rounded."""
    depth: int | None = None
    """Number of blocks. None: the network's own, or what the image size asks for."""
    norm: Norm = "instance"

    def __post_init__(self) -> None:
        family = self.family
        choose("norm", self.norm, NORMS)
        if self.norm not in family.norms:
            raise UserError(f"{self.name} has no form with norm {self.norm!r}; it has {', '.join(family.norms)}")
        if self.width < 1:
            raise UserError(f"network width is {self.width}; it must be at least 1")
        if family.depth is not None and self.depth not in (None, family.depth):
            raise UserError(f"{self.name} has a depth of its own: leave out depth {self.depth}")
        if self.blocks < 1:
            raise UserError(f"network depth is {self.blocks}; it must be at least 1")
        if min(self.feature_map) < 1:
            height, width = self.image_size
            what, change = (self.name, "enlarge them") if family.depth else ("a network", "lower it")
            raise UserError(f"{what} of depth {self.blocks} leaves nothing of {height}×{width} images; {change}")

    @functools.cached_property
    def family(self) -> type[Network]:
        """The class called ``name``."""
        return get(self.name)

    @property
    def border(self) -> int:
        """Pixels that most first convolutions add to every side of one-channel images: 28² become 32²."""
        return 2 if self.in_channels == 1 else 0

    @property
    def blocks(self) -> int:
        """The number of blocks, resolved."""
        return self.family.blocks(self) if self.depth is None else self.depth

    @property
    def feature_map(self) -> tuple[int, int]:
        """(height, width) of the last map, pooled as long as it is not brought to a single pixel."""
        return self.family.last_map(self)

    def scaled(self, channels: int) -> int:
        """The number of channels in place of ``channels`` published ones: at least 1."""
        return max(1, (channels * self.width + 64) // 128)

    def parameters(self) -> int:
        """The number of parameters of the network that `build` makes; nothing is allocated.

        Raises UserError for one that is too large to be counted.
        """
        try:
            with torch.device("meta"):
                network = self.family(self)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UserError(f"a network of width {self.width} is larger than any memory; lower it") from error
        return sum(parameter.numel() for parameter in network.parameters())

    def build(
        self,
        generator: torch.Generator,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Network:
        """A freshly initialised network in training mode.

        The initial values are drawn from the CPU ``generator`` in float32, so they are the same on every device and in
        every dtype. No global random state is read or moved.
        """
        with torch.device("meta"):
            network = self.family(self)
        network = network.to(dtype).to_empty(device=device or "cpu")
        with torch.no_grad():
            network.initialise(generator)
        if network.channels_last and network.head.weight.device.type == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network


def get(name: str) -> type[Network]:
    """The network class called ``name``. Raises UserError as `Registry.get` does, and for one that names no norms."""
    family: type[Network] = NETWORK_REGISTRY.get(name, Network, _check_class)
    return family


def _check_class(network: type[Network], shown: str) -> None:
    """Raises UserError where ``network``, called ``shown``, does not keep to the interface."""
    if not (hasattr(network, "depth") and (network.depth is None or network.depth >= 1)):
        raise UserError(f"{shown}: depth must be its number of blocks, or None where spec.blocks decides")
    if not (network.norms and set(network.norms) <= set(NORMS)):
        raise UserError(f"{shown}: norms are {network.norms}; expected one or more of {', '.join(NORMS)}")
