"""The one loop that trains networks by a recipe, one or several at a time, and what a trained network predicts."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.augment import DSA_STRATEGY, FLIP_ROTATE, apply_dsa, apply_frepo, draw_dsa, draw_frepo
from benchmarks.networks import Network, batch_norms
from benchmarks.networks.layers import AveragePool, BatchNorm, Residual, WideConv2d
from benchmarks.protocols import Recipe

BLOCK = 256
"""Steps whose random choices reach a GPU in one transfer."""
CPU_CHUNK_BYTES, GPU_CHUNK_BYTES = 2**22, 2**28
"""Bytes of the largest maps of a network that pass through it together.

On a CPU they should stay in its cache: of 1 to 32 MiB, 4 to 16 took within a tenth of the least time for both networks,
with a graph and without (one core, widths 16 to 64), and memory grows with them. For a GPU it is not measured.
"""

WITHOUT_FLOAT64 = {"mps": "which mps does not have", "xpu": "which not every xpu has"}
"""Kinds of devices on which nothing is computed in float64 → why."""

Descent = Callable[[Sequence[Network], Callable[[], None]], None]
"""(networks, backward) → nothing. ``backward`` replaces the gradients of their parameters by those of the losses on the
batch, at the parameters as they are. Leaves in the gradients what is to be followed, and the parameters as they were.
"""


def train(
    network: Network,
    images: Tensor,
    labels: Tensor,
    label_space: Literal["probability", "weighted", "centred"],
    recipe: Recipe,
    *,
    flip: bool,
    generator: torch.Generator,
    lr: Tensor | None = None,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``network`` in place on images (n, C, H, W) and labels (n, num_classes), or (n,) class indices.

    ``flip``: whether the augmentation may mirror images. ``generator``: a CPU generator, from which order and
    augmentation are drawn. ``lr``: the step size learned with the set (its mean, where there is one per step), for
    recipes that use it. ``max_steps`` shortens the recipe with its schedule: warm-up and drop shrink in proportion.
    ``progress(done, steps)`` is called after every step. Does not synchronise the device between steps.
    """
    train_together(
        [network],
        images,
        labels,
        label_space,
        recipe,
        flip=flip,
        generators=[generator],
        lr=lr,
        max_steps=max_steps,
        progress=progress,
    )


def train_together(
    networks: Sequence[Network],
    images: Tensor,
    labels: Tensor,
    label_space: Literal["probability", "weighted", "centred"],
    recipe: Recipe,
    *,
    flip: bool,
    generators: Sequence[torch.Generator],
    lr: Tensor | None = None,
    max_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    descent: Descent | None = None,
) -> None:
    """``train`` for several networks of one structure, with a generator each: what each becomes alone, to rounding.

    All take a step at a time; after it, when ``progress`` is called, their parameters are those of that step. Faster
    than one after the other where a step of one network does not fill the device and networks can be stacked.

    ``descent``: replaces the gradients that the optimiser follows; it may ask for those of a step's batch repeatedly.
    """
    for network in networks:
        network.train()
    model: nn.Module = networks[0]
    if len(networks) > 1:
        model = Stack(networks) if Stack.holds(networks[0]) else Row(networks)
    targets = _targets(labels, label_space, recipe.loss, networks[0].head.out_features)
    full = recipe.steps(len(images))
    steps = full if max_steps is None else min(max_steps, full)
    per_epoch = recipe.steps_per_epoch(len(images))
    warmup = recipe.warmup_steps * steps // full
    drop, wait = (round(epochs * per_epoch * steps / full) for epochs in (recipe.drop_after, recipe.drop_wait))

    rate = float(lr.detach().mean()) if recipe.learned_lr and lr is not None else recipe.lr
    parameters = list(model.parameters())
    optimiser = _optimiser(recipe, parameters, rate)

    def differentiate(batch: Tensor, batch_targets: Tensor) -> None:
        """Gradients into the parameters, which follow their own network's loss alone: the loss is a mean over them."""
        loss = LOSSES[recipe.loss](model(batch), batch_targets)
        model.zero_grad(set_to_none=True)
        loss.backward(torch.full_like(loss, len(networks)))  # type: ignore[no-untyped-call]
        if descent is not None and isinstance(model, Stack):
            model.share_gradients(networks)

    for step, (index, draws) in enumerate(_batches(images, labels, recipe, steps, generators, flip=flip)):
        if recipe.schedule == "drop_once" and step == drop:
            optimiser = _optimiser(recipe, parameters, rate / 10)
        elif recipe.schedule == "drops":
            optimiser.param_groups[0]["lr"] = dropped(max(step - wait, 0), rate, max(drop, 1), recipe.drop_factor)
        elif recipe.schedule == "warmup_cosine":
            optimiser.param_groups[0]["lr"] = warmup_cosine(step, steps, rate, warmup, recipe.final_lr)
        backward = functools.partial(differentiate, _augmented(recipe, images[index], draws), targets[index])
        if descent is None:
            backward()
        else:
            descent(networks, backward)
        optimiser.step()
        if progress is not None:
            progress(step + 1, steps)


class Row(nn.Module):
    """Networks side by side, for those that no `Stack` holds: images (N·B, C, H, W), network by network → logits."""

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        parts = images.chunk(len(self.networks))
        return torch.cat([network(part) for network, part in zip(self.networks, parts, strict=True)])


class Stack(nn.Module):
    """Networks of one structure as one: their channels side by side, convolutions in groups, one product for the heads.

    Images (N·B, C, H, W), network by network → logits (N·B, num_classes). What trains it trains the networks: every
    parameter and buffer holds those of the networks one after the other, and theirs become views of it. All norms are
    by channel, so batch norm, with its running statistics, needs nothing of its own.
    """

    LAYERS = (
        *(nn.Sequential, Residual, nn.Conv2d, WideConv2d, nn.GroupNorm, nn.BatchNorm2d, BatchNorm),
        *(nn.ReLU, AveragePool, nn.MaxPool2d, nn.AdaptiveAvgPool2d),
    )
    """Layers that keep channels apart, or can be made to."""

    @classmethod
    def holds(cls, network: Network) -> bool:
        """Whether networks like ``network`` can be stacked: a body of ``LAYERS``, which mix no groups of channels."""
        return type(network).features is Network.features and all(
            type(layer) in cls.LAYERS
            and (not isinstance(layer, nn.Conv2d) or layer.groups == 1)
            and (not isinstance(layer, nn.GroupNorm) or layer.num_groups == layer.num_channels)
            for layer in network.body.modules()
        )

    def __init__(self, networks: Sequence[Network]) -> None:
        super().__init__()
        self.count = len(networks)
        own = copy.deepcopy(networks[0])
        self.body, self.head = own.body, own.head
        self.flatten = own.flatten
        states = [network.state_dict(keep_vars=True) for network in networks]
        for name, value in self.state_dict(keep_vars=True).items():
            parts = [state[name] for state in states]
            # Joined as they lie in memory, channels last or not; a count of batches is a single number.
            value.data = (torch.cat if value.ndim else torch.stack)([part.data for part in parts])
            for part, view in zip(parts, value.data.chunk(self.count), strict=True):
                part.data = view.view_as(part)
        for layer in self.body.modules():
            if isinstance(layer, nn.Conv2d):
                layer.groups = self.count
            elif isinstance(layer, nn.GroupNorm):
                layer.num_groups *= self.count
                layer.num_channels *= self.count

    def share_gradients(self, networks: Sequence[Network]) -> None:
        """Make the gradients of the parameters of ``networks`` views of those of the stack."""
        for name, value in self.named_parameters():
            assert value.grad is not None
            for network, part in zip(networks, value.grad.chunk(self.count), strict=True):
                network.get_parameter(name).grad = part

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(torch.cat(images.chunk(self.count), 1))
        features = self.flatten(torch.cat(maps.chunk(self.count, 1))).view(self.count, -1, self.head.in_features)
        weight, bias = (value.view(self.count, -1, value[0].numel()) for value in (self.head.weight, self.head.bias))
        return torch.baddbmm(bias.mT, features, weight.mT).flatten(0, 1)


def chunk_size(network: Network, images: Tensor) -> int:
    """How many of ``images`` (n, C, H, W) pass through ``network`` together: at least 1.

    One rule for all methods and the evaluation: it decides time and memory, and moves numbers by rounding alone. All
    images pass together where batch norm in training mode lets them see each other.
    """
    if any(layer.training for layer in batch_norms(network)):
        return len(images)
    limit = CPU_CHUNK_BYTES if images.device.type == "cpu" else GPU_CHUNK_BYTES
    return max(1, limit // (network.map_size(images.shape[2], images.shape[3]) * images.element_size()))


def chunks(network: Network, images: Tensor) -> tuple[Tensor, ...]:
    """``images`` (n, C, H, W) in consecutive parts of ``chunk_size``."""
    return torch.split(images, chunk_size(network, images))


@torch.no_grad()
def features(network: Network, images: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Features (n, D) of ``images``, or ``head`` of them, without a graph and in chunks."""
    parts = (network.features(chunk) for chunk in chunks(network, images))
    return torch.cat([part if head is None else head(part) for part in parts])


def loss_gradient(network: Network, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Mean cross entropy on images (n, C, H, W) with labels (n,), 0-d, and its gradient in the network's parameters.

    Both are constants, summed over chunks of the batch.
    """
    parameters = list(network.parameters())
    loss = torch.zeros((), dtype=images.dtype, device=images.device)
    gradients: tuple[Tensor, ...] = ()
    parts = chunks(network, images)
    for own_images, own_labels in zip(parts, torch.split(labels, len(parts[0])), strict=True):
        share = F.cross_entropy(network(own_images), own_labels, reduction="sum") / len(images)
        part = torch.autograd.grad(share, parameters)
        gradients = tuple(torch._foreach_add(gradients, part)) if gradients else part
        loss += share.detach()
    return loss, gradients


def predict(network: Network, images: Tensor) -> Tensor:
    """Logits (n, num_classes) of ``network`` in evaluation mode, in which it is left."""
    return features(network.eval(), images, network.head)


def double(tensor: Tensor) -> Tensor:
    """``tensor`` in float64, on its device or, where that has none, on the CPU."""
    return tensor.cpu().double() if tensor.device.type in WITHOUT_FLOAT64 else tensor.double()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction of the rows of ``logits`` (n, num_classes) that are largest at the class index in ``labels`` (n,)."""
    return float(double(logits.argmax(1) == labels).mean())


def class_accuracies(logits: Tensor, labels: Tensor) -> list[float | None]:
    """`accuracy` on the rows of each class, (num_classes,); None for a class without rows.

    Their mean over the classes that have rows is the balanced accuracy (Brodersen et al., ICPR 2010).
    """
    classes = logits.shape[1]
    counts, right = (rows.bincount(minlength=classes).tolist() for rows in (labels, labels[logits.argmax(1) == labels]))
    return [hits / count if count else None for hits, count in zip(right, counts, strict=True)]


def dropped(step: int, lr: float, every: int, factor: float) -> float:
    """The rate of update ``step``, counted from 0: ``lr``, times ``factor`` once for every ``every`` steps before."""
    return lr * factor ** (step // every)


def warmup_cosine(step: int, steps: int, lr: float, warmup: int, final: float) -> float:
    """The rate of update ``step`` of ``steps``, counted from 0: linear from 0, then a cosine from ``lr`` to final·lr.

    FRePo's evaluation has 500 steps of warm-up and ends at 1 %.
    """
    if step < warmup:
        return lr * step / warmup
    done = min((step - warmup) / (steps - warmup), 1.0)
    return lr * ((1 - final) * (1 + math.cos(math.pi * done)) / 2 + final)


def half_squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch of ½ Σ_c (logit − label)²."""
    return (logits - labels).square().sum(1).mean() / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross_entropy": F.cross_entropy, "mse": half_squared_error}


def _targets(labels: Tensor, label_space: str, loss: str, num_classes: int) -> Tensor:
    """Labels as ``loss`` takes them: probabilities, weighted or not, or class indices for cross entropy; else centred.

    The cross entropy of weighted labels is that of the probabilities times the weight of the image.
    """
    if loss == "cross_entropy":
        return probabilities(labels) if labels.ndim == 2 and label_space == "centred" else labels
    if labels.ndim == 1:
        labels, label_space = F.one_hot(labels, num_classes), "probability"
    return centred(labels, label_space)


def centred(labels: Tensor, label_space: str) -> Tensor:
    """Labels (n, C) of any space as regression targets: 1/C is taken off probabilities, and weights are dropped.

    A row without weight becomes 0.
    """
    if label_space == "centred":
        return labels
    if label_space == "weighted":
        sums = labels.sum(1, keepdim=True)
        labels = torch.where(sums > 0, labels / sums, 1 / labels.shape[1])
    return labels - 1 / labels.shape[1]


def probabilities(labels: Tensor) -> Tensor:
    """Centred labels (n, C) as probabilities: 1/C is added, what is below 0 then is cut off, and rows sum to 1.

    Labels of a single class, or soft ones that were only centred, come back as they were. Learned regression targets
    keep their ratios as far as probabilities can. A row with nothing above 0 becomes one-hot at its largest entry.
    """
    kept = (labels + 1 / labels.shape[1]).clamp(min=0)
    one_hot = F.one_hot(labels.argmax(1), labels.shape[1]).to(labels.dtype)
    kept = torch.where(kept.sum(1, keepdim=True) > 0, kept, one_hot)
    return kept / kept.sum(1, keepdim=True)


def _batches(
    images: Tensor, labels: Tensor, recipe: Recipe, steps: int, generators: Sequence[torch.Generator], *, flip: bool
) -> Iterator[tuple[Tensor, list[tuple[str, Tensor]]]]:
    """For every step the indices (N·B,) of the batches of all networks, and what augments each, on the device."""
    classes = (labels.argmax(1) if labels.ndim == 2 else labels).cpu() if recipe.balanced else labels
    drawn = zip(*(_draws(images, classes, recipe, generator, flip=flip) for generator in generators), strict=True)
    size = BLOCK
    for begin in range(0, steps, size):
        block = list(itertools.islice(drawn, min(size, steps - begin)))
        indices = _moved([index for step in block for index, _, _ in step], images.device)
        parameters = _moved([parameters.to(images.dtype) for step in block for _, _, parameters in step], images.device)
        for step in block:
            index = torch.cat([next(indices) for _ in step])
            yield index, [(op, next(parameters)) for _, op, _ in step]


def draw_balanced(classes: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """At most ``size`` random indices (CPU) into ``classes`` (n,), without repetition, equally many of each class.

    All indices, in order, where there are no more than ``size``. One of each of ``size`` random classes where there are
    more classes.
    """
    if len(classes) <= size:
        return torch.arange(len(classes))
    order = torch.randperm(len(classes), generator=generator)
    order = order[classes[order].argsort(stable=True)]  # class by class, in random order within each
    names, sizes = torch.unique(classes, return_counts=True)
    place = torch.arange(len(classes)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within the class
    drawn = order[place < max(size // len(names), 1)]
    if len(names) > size:
        some = names[torch.randperm(len(names), generator=generator)[:size]]
        drawn = drawn[torch.isin(classes[drawn], some)]
    return drawn


def _draws(
    images: Tensor, classes: Tensor, recipe: Recipe, generator: torch.Generator, *, flip: bool
) -> Iterator[tuple[Tensor, str, Tensor]]:
    """Batch after batch, without end: indices (B,), an operation of the augmentation, its parameters (k, B) or none.

    The last batch of an epoch may be short. ``classes`` (n,), on the CPU, are for recipes with balanced batches.
    """
    while True:
        if recipe.balanced:
            order = draw_balanced(classes, recipe.batch_size, generator)
        else:
            order = torch.randperm(len(images), generator=generator) if recipe.shuffle else torch.arange(len(images))
        for index in torch.split(order, recipe.batch_size):
            match recipe.augment:
                case "dsa" | "flip_rotate":
                    size = (images.shape[-2], images.shape[-1])
                    strategy = DSA_STRATEGY if recipe.augment == "dsa" else FLIP_ROTATE
                    yield index, *draw_dsa(size, len(index), generator, flip=flip, strategy=strategy)
                case "frepo":
                    yield index, *draw_frepo(len(index), generator, flip=flip)
                case "none":
                    yield index, "", torch.empty(0)


def _moved(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """``tensors`` (CPU, one dtype) on ``device``, in one transfer that nobody waits for: from memory that is pinned."""
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    if device.type in ("cuda", "xpu"):
        whole = whole.pin_memory()
    parts = torch.split(whole.to(device, non_blocking=True), [tensor.numel() for tensor in tensors])
    return (part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


def _augmented(recipe: Recipe, images: Tensor, draws: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Images (N·B, C, H, W), those of each network by an operation of its own."""
    if recipe.augment == "none":
        return images
    apply = apply_frepo if recipe.augment == "frepo" else apply_dsa
    parts = [apply(op, part, own) for part, (op, own) in zip(images.chunk(len(draws)), draws, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _optimiser(recipe: Recipe, parameters: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    fused = parameters[0].device.type == "cpu"  # elsewhere torch cannot forecast its fused SGD
    if recipe.optimiser != "sgd":
        kind = torch.optim.Adam if recipe.optimiser == "adam" else torch.optim.AdamW
        return kind(parameters, lr=lr, weight_decay=recipe.weight_decay, fused=fused)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused)
