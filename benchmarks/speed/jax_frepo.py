"""FRePo in JAX, built as the authors' code is: what ours is compared with where JAX is installed.

As in their repository (github.com/yongchao97/FRePo) everything is float32 with channels last, the real batch is picked
on the host, and an iteration calls three compiled functions, which donate nothing: the features of the real batch, the
update of the synthetic set, the update of the network. What they compile beside (accuracies for their log) is left out.
Plain ``jax.numpy`` stands for flax and optax. The random draws are those of ``methods/frepo.py``, network values
included, so a test holds this against ``plain_frepo``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.scipy import linalg
from torch import Tensor, nn

from benchmarks.networks import BatchNorm, Network
from benchmarks.task import Task
from methods.frepo import FRePoConfig

BN_DECAY, BN_EPS = 0.1, 1e-5
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Moments(NamedTuple):
    """Of Adam and LAMB: like the parameters, and how many updates there have been."""

    first: Any
    second: Any
    count: Any


class Member(NamedTuple):
    """A network of the pool: parameters, running statistics, moments of its Adam."""

    parameters: Any
    statistics: Any
    moments: Moments


class JaxFRePo:
    """Algorithm 1 of the paper; ``step`` is one iteration, waits until it is computed, and returns the loss.

    Has as many threads as torch if it is the first in the process to use JAX.
    """

    steps_per_cycle = 1

    def __init__(self, task: Task, config: FRePoConfig, total_steps: int) -> None:
        """Raises ValueError for another network than FRePo's own: batch norm after the first block."""
        os.environ.setdefault("PJRT_NPROC", str(torch.get_num_threads()))  # read when JAX looks for devices
        self.task, self.config = task, config
        self.real_images = task.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.real_targets = self._targets(task.labels)
        images, classes = task.draw_per_class()
        labels = self._targets(classes) / (math.sqrt(task.num_classes / 10) if config.scale_label else 1)
        self.learned = (jnp.asarray(images.permute(0, 2, 3, 1).numpy()), jnp.asarray(labels))
        self.moments = zero_moments(self.learned)
        like = [task.network(task.generator) for _ in range(config.pool_size)]
        self.pool = [member(network) for network in like]
        self.counters = [config.max_online_updates // config.pool_size * i for i in range(config.pool_size)]
        self.features, self.update, self.train = compiled(
            config, total_steps, paddings(like[0]), flip=config.use_flip and task.flip
        )

    def step(self) -> float:
        config, generator = self.config, self.task.generator
        index = int(torch.randint(len(self.pool), (), generator=generator))
        network = self.pool[index]
        rows = torch.randperm(len(self.real_images), generator=generator)[: config.batch_size].numpy()
        features = self.features(network.parameters, network.statistics, self.real_images[rows])
        self.learned, self.moments, loss = self.update(
            self.learned, self.moments, network.parameters, network.statistics, features, self.real_targets[rows]
        )
        if self.counters[index] > config.max_online_updates:
            self.pool[index], self.counters[index] = member(self.task.network(generator)), 0
        else:
            images, labels = self.learned
            if len(images) >= config.online_batch_size:
                chosen = torch.randperm(len(images), generator=generator)[: config.online_batch_size].numpy()
                images, labels = images[chosen], labels[chosen]
            self.pool[index] = self.train(network, images, labels)
            self.counters[index] += 1
        jax.block_until_ready((self.learned, self.moments, self.pool[index]))
        return float(loss)

    def _targets(self, labels: Tensor) -> np.ndarray[Any, Any]:
        classes = self.task.num_classes
        one_hot = np.eye(classes, dtype=self.real_images.dtype)[labels.numpy()]
        return cast("np.ndarray[Any, Any]", one_hot - np.asarray(1 / classes, one_hot.dtype))


def compiled(
    config: FRePoConfig, total_steps: int, padding: Sequence[int], *, flip: bool
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Features of images; new synthetic set, moments and loss; new member: each a compiled function."""

    def features(parameters: Any, statistics: Any, images: Any) -> Any:
        return body(parameters, statistics, images, padding, training=False)[0]

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

    def update(learned: Any, moments: Moments, parameters: Any, statistics: Any, real: Any, targets: Any) -> Any:
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
            found, statistics = body(parameters, network.statistics, images, padding, training=True)
            weight, bias = parameters["head"]
            return half_squared_error(found @ weight + bias, labels), statistics

        gradients, statistics = jax.grad(online_loss, has_aux=True)(network.parameters)
        directions, moments = adam(network.moments, gradients, eps=1e-8)
        parameters = jax.tree.map(lambda w, direction: w - config.lr_online * direction, network.parameters, directions)
        return Member(parameters, statistics, moments)

    return jax.jit(features), jax.jit(update), jax.jit(train)


def body(parameters: Any, statistics: Any, x: Any, padding: Sequence[int], *, training: bool) -> tuple[Any, Any]:
    """The features (B, D) of images (B, H, W, C), and the running statistics after them."""
    kept = []
    for i, ((weight, bias), pad) in enumerate(zip(parameters["convolutions"], padding, strict=True)):
        if i > 0:
            (scale, shift), (mean, variance) = parameters["norms"][i - 1], statistics[i - 1]
            if training:
                batch_mean = x.mean((0, 1, 2))
                batch_variance = jnp.square(x).mean((0, 1, 2)) - jnp.square(batch_mean)
                old, new = (mean, variance), (batch_mean, batch_variance)
                kept.append(tuple(BN_DECAY * a + (1 - BN_DECAY) * b for a, b in zip(old, new, strict=True)))
                mean, variance = new
            x = (x - mean) * (lax.rsqrt(variance + BN_EPS) * scale) + shift
        x = lax.conv_general_dilated(x, weight, (1, 1), [(pad, pad)] * 2, dimension_numbers=DIMENSIONS) + bias
        x = lax.reduce_window(jax.nn.relu(x), 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    return x.reshape(len(x), -1), kept if training else statistics


def half_squared_error(predicted: Any, targets: Any) -> Any:
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
    return Moments(jax.tree.map(jnp.zeros_like, parameters), jax.tree.map(jnp.zeros_like, parameters), jnp.asarray(0))


def member(like: Network) -> Member:
    """Fresh, with the values of ``like``. Raises ValueError unless it is ``convnet_doubling`` with batch norm."""
    convolutions = [module for module in like.body if isinstance(module, nn.Conv2d)]
    norms = [module for module in like.body if isinstance(module, BatchNorm)]
    if len(norms) != len(convolutions) - 1:
        raise ValueError("FRePo in JAX has one network: convnet_doubling with batch norm")
    parameters = {
        "convolutions": [(_array(m.weight.permute(2, 3, 1, 0)), _array(cast(Tensor, m.bias))) for m in convolutions],
        "norms": [(_array(m.weight), _array(m.bias)) for m in norms],
        "head": (_array(like.head.weight.T), _array(like.head.bias)),
    }
    statistics = [(_array(m.running_mean), _array(m.running_var)) for m in norms]
    return Member(parameters, statistics, zero_moments(parameters))


def paddings(network: Network) -> list[int]:
    """Of every convolution."""
    return [int(module.padding[0]) for module in network.body if isinstance(module, nn.Conv2d)]


def _array(value: Tensor) -> Any:
    return jnp.asarray(value.detach().contiguous().clone().numpy())
