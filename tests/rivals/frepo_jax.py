"""FRePo in JAX, built as the authors' code is, to compare ``methods/frepo.py`` with where JAX is installed.

As in their repository (github.com/yongchao97/FRePo) everything is float32 with channels last, the real batch is picked
on the host, and an iteration calls three compiled functions, which donate nothing: the features of the real batch, the
update of the synthetic set, the update of the network. The accuracies that they compute for their log are left out.
Plain ``jax.numpy`` stands for flax and optax. The draws are those of ours, network values included, in the same order,
so a step gives the same images within rounding.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from _rival import Rival
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from benchmarks.errors import UserError
from benchmarks.task import Task
from methods.base import Synthetic
from methods.frepo import FRePo, FRePoConfig

try:
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.scipy import linalg
except ImportError as error:
    raise UserError("frepo_jax needs the package jax: pip install jax") from error

BN_DECAY, BN_EPS = 0.1, 1e-5
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Moments(NamedTuple):
    """Moments of Adam and LAMB, shaped like the parameters, and the number of updates so far."""

    first: Any
    second: Any
    count: Any


class Member(NamedTuple):
    """A network of the pool: parameters, running statistics, moments of its Adam."""

    parameters: Any
    statistics: Any
    moments: Moments


class FRePoJax(Rival):
    """Algorithm 1 of Zhou et al., NeurIPS 2022. A step waits until everything is computed.

    JAX has as many threads as torch where this is the first in the process to use JAX.
    """

    Config = FRePo.Config
    PAPER = FRePo.PAPER
    BUDGETS = FRePo.BUDGETS
    PROTOCOL = FRePo.PROTOCOL
    KNOWN = (
        *("lr", "batch_size", "pool_size", "max_online_updates", "lr_online", "online_batch_size", "ridge"),
        *("use_flip", "learn_label", "scale_label"),
    )

    def __init__(self, task: Task, config: FRePoConfig, total_steps: int) -> None:
        os.environ.setdefault("PJRT_NPROC", str(torch.get_num_threads()))  # read when JAX looks for devices
        super().__init__(task, config, total_steps)
        self.real_images = task.images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self.real_targets = self.targets(task.labels)
        labels = self.targets(self.classes) / (math.sqrt(task.num_classes / 10) if config.scale_label else 1)
        self.learned = (jnp.asarray(self.images.detach().cpu().permute(0, 2, 3, 1).numpy()), jnp.asarray(labels))
        self.moments = zero_moments(self.learned)
        self.pool = [member(task.network(task.generator)) for _ in range(config.pool_size)]
        self.counters = [config.max_online_updates // config.pool_size * i for i in range(config.pool_size)]
        self.features, self.update, self.train = compiled(config, flip=config.use_flip and task.flip)

    def step(self) -> dict[str, Tensor]:
        if is_in_torch_dispatch_mode():  # of our counters, which would see nothing
            raise NotImplementedError("what JAX computes is not counted by torch")
        config, task = self.config, self.task
        index = int(torch.randint(len(self.pool), (), generator=task.generator))
        network = self.pool[index]
        rows = torch.randperm(len(self.real_images), generator=task.generator)[: config.batch_size].numpy()
        features = self.features(network.parameters, network.statistics, self.real_images[rows])
        self.learned, self.moments, loss = self.update(
            self.learned,
            self.moments,
            network.parameters,
            network.statistics,
            features,
            self.real_targets[rows],
            self.total_steps,
        )
        if self.counters[index] > config.max_online_updates:
            self.pool[index], self.counters[index] = member(task.network(task.generator)), 0
        else:
            images, labels = self.learned
            if len(images) >= config.online_batch_size:
                chosen = torch.randperm(len(images), generator=task.generator)[: config.online_batch_size].numpy()
                images, labels = images[chosen], labels[chosen]
            self.pool[index] = self.train(network, images, labels)
            self.counters[index] += 1
        jax.block_until_ready((self.learned, self.moments, self.pool[index]))
        return {"loss": torch.tensor(float(loss), dtype=task.dtype, device=task.device)}

    def synthetic(self) -> Synthetic:
        images, labels = (torch.from_numpy(np.array(value)).to(self.task.device) for value in self.learned)
        return Synthetic(images.permute(0, 3, 1, 2).contiguous(), labels, "centred")

    def targets(self, labels: Tensor) -> np.ndarray[Any, Any]:
        """Regression targets one-hot − 1/C, (B, C), of classes (B,)."""
        classes = self.task.num_classes
        one_hot = np.eye(classes, dtype=self.real_images.dtype)[labels.cpu().numpy()]
        return cast("np.ndarray[Any, Any]", one_hot - np.asarray(1 / classes, one_hot.dtype))


@functools.cache
def compiled(config: FRePoConfig, *, flip: bool) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Features of images; new synthetic set, moments and loss; new member: each a compiled function.

    Cached, so that a second method with the same ``config`` compiles nothing.
    """

    def features(parameters: Any, statistics: Any, images: Any) -> Any:
        return body(parameters, statistics, images, training=False)[0]

    def loss(learned: Any, parameters: Any, statistics: Any, real: Any, targets: Any) -> Any:
        images, labels = learned
        if not config.learn_label:
            labels = lax.stop_gradient(labels)
        top, _ = lax.top_k(labels, 2)
        margin = jnp.minimum(top[:, 0] - top[:, 1], 1 / labels.shape[1]).mean()
        if flip:
            images, labels = jnp.concatenate([images, images[:, :, ::-1]]), jnp.concatenate([labels, labels])
        synthetic = features(parameters, statistics, images)
        gram = synthetic @ synthetic.T
        gram = gram + config.ridge * jnp.trace(gram) * jnp.eye(len(gram), dtype=gram.dtype) / len(gram)
        predicted = (real @ synthetic.T) @ linalg.solve(gram, labels, assume_a="pos")
        return half_squared_error(predicted, targets) - margin

    def update(
        learned: Any, moments: Moments, parameters: Any, statistics: Any, real: Any, targets: Any, total_steps: Any
    ) -> Any:
        value, gradients = jax.value_and_grad(loss)(learned, parameters, statistics, real, targets)
        done = jnp.minimum(moments.count, total_steps) / total_steps
        rate = config.lr * (0.9 * (1 + jnp.cos(jnp.pi * done)) / 2 + 0.1)
        directions, moments = adam(moments, gradients, eps=1e-6)

        def lamb(parameter: Any, direction: Any) -> Any:
            size, length = jnp.linalg.norm(parameter), jnp.linalg.norm(direction)
            ratio = jnp.where((size > 0) & (length > 0), size / length, 1.0)
            return parameter - rate * ratio * direction

        return jax.tree.map(lamb, learned, directions), moments, value

    def train(network: Member, images: Any, labels: Any) -> Member:
        def online_loss(parameters: Any) -> Any:
            outputs, statistics = body(parameters, network.statistics, images, training=True)
            weight, bias = parameters["head"]
            return half_squared_error(outputs @ weight + bias, labels), statistics

        gradients, statistics = jax.grad(online_loss, has_aux=True)(network.parameters)
        directions, moments = adam(network.moments, gradients, eps=1e-8)
        parameters = jax.tree.map(lambda w, direction: w - config.lr_online * direction, network.parameters, directions)
        return Member(parameters, statistics, moments)

    return jax.jit(features), jax.jit(update), jax.jit(train)


def body(parameters: Any, statistics: Any, x: Any, *, training: bool) -> tuple[Any, Any]:
    """The features (B, D) of images (B, H, W, C), and the running statistics after them."""
    kept = []
    for i, (weight, bias) in enumerate(parameters["convolutions"]):
        if i > 0:
            (scale, shift), (mean, variance) = parameters["norms"][i - 1], statistics[i - 1]
            if training:
                batch_mean = x.mean((0, 1, 2))
                batch_variance = jnp.square(x).mean((0, 1, 2)) - jnp.square(batch_mean)
                old, new = (mean, variance), (batch_mean, batch_variance)
                kept.append(tuple(BN_DECAY * a + (1 - BN_DECAY) * b for a, b in zip(old, new, strict=True)))
                mean, variance = new
            x = (x - mean) * (lax.rsqrt(variance + BN_EPS) * scale) + shift
        pad = 3 if x.shape[3] == 1 else 1
        x = lax.conv_general_dilated(x, weight, (1, 1), [(pad, pad)] * 2, dimension_numbers=DIMENSIONS) + bias
        x = lax.reduce_window(jax.nn.relu(x), 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return x.reshape(len(x), -1), kept if training else statistics


def half_squared_error(predicted: Any, targets: Any) -> Any:
    """Mean over the rows of ½ Σ of squared differences."""
    return 0.5 * jnp.square(predicted - targets).sum(1).mean()


def adam(moments: Moments, gradients: Any, eps: float) -> tuple[Any, Moments]:
    """The direction of the update, and the moments after it."""
    count = moments.count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments.first, gradients)
    second = jax.tree.map(lambda m, g: 0.999 * m + 0.001 * jnp.square(g), moments.second, gradients)
    mean, square = (1 - b ** count.astype(float) for b in (0.9, 0.999))
    directions = jax.tree.map(lambda m, v: (m / mean) / (jnp.sqrt(v / square) + eps), first, second)
    return directions, Moments(first, second, count)


def zero_moments(parameters: Any) -> Moments:
    """The moments before the first update."""
    return Moments(jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters), jnp.asarray(0))


def member(like: nn.Module) -> Member:
    """A fresh member of the pool with the values of ``like``.

    Raises UserError where ``like`` is not ``convnet_doubling`` with batch norm.
    """
    values = [p.detach() for p in like.parameters()]
    buffers = [_array(buffer) for buffer in like.buffers()]
    norms = len(buffers) // 2
    if not norms or [p.ndim for p in values] != [4, 1, *[1, 1, 4, 1] * norms, 2, 1]:
        raise UserError("this port has one network: convnet_doubling with batch norm")
    blocks = [values[i : i + 4] for i in range(2, len(values) - 2, 4)]
    convolutions = [values[:2], *(block[2:] for block in blocks)]
    parameters = {
        "convolutions": [(_array(weight.permute(2, 3, 1, 0)), _array(bias)) for weight, bias in convolutions],
        "norms": [(_array(block[0]), _array(block[1])) for block in blocks],
        "head": (_array(values[-2].T), _array(values[-1])),
    }
    return Member(parameters, list(zip(buffers[::2], buffers[1::2], strict=True)), zero_moments(parameters))


def _array(value: Tensor) -> Any:
    return jnp.asarray(value.cpu().contiguous().clone().numpy())
