"""DC: synthetic images on which a network has the same gradients as on real images, class by class.

Zhao, Mopuri, Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021, algorithm 1.

Differs from the authors' code (github.com/VICO-UoE/DatasetCondensation):
- The code stops at an ipc for which it has no loop lengths; here those of the next larger one hold.
- The gradient for the images is taken class by class, which is the same sum, in the memory of one class.
- One step here is one update of the images, so an iteration of the paper is ``outer_loop`` steps.
- Evaluated under ``vico``, with DSA in 1000 epochs. The paper's own evaluation has no augmentation and 300 epochs, on
  MNIST 1000 with crops, scaling and rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.protocols import Recipe
from benchmarks.task import Task, generator_for
from benchmarks.training import train
from methods._matching import LOOPS, freeze_batch_norm, loops, matching_loss, sum_over_chunks
from methods.base import Method, Synthetic


@dataclass(frozen=True)
class DCConfig:
    """Hyper-parameters of DC; the defaults are the paper's."""

    outer_loop: int | None = None
    """T: updates of the images before the network is replaced by a fresh one; None: the published number for the ipc,
    or else for the next larger one."""
    inner_loop: int | None = None
    """ς_θ: epochs on the synthetic images that the network is trained for between two updates of them; None: as
    ``outer_loop``."""
    lr_img: float = 0.1
    """η_S: step size of the synthetic images."""
    momentum: float = 0.5
    """Momentum of their updates."""
    lr_net: float = 0.01
    """η_θ: step size of the network's SGD, which has neither momentum nor weight decay."""
    batch_real: int = 256
    """Real images per class and update."""
    batch_train: int = 256
    """Synthetic images per step of the network."""
    init: Literal["noise", "real"] = "noise"
    """Synthetic images start from standard normal noise or from random real images."""
    dis_metric: Literal["ours", "mse", "cos"] = "ours"
    """D: one minus cosine for every output of a layer, squared differences, or one cosine for the whole gradient."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"dc: {name} is {value}; it must be at least 1")
            if isinstance(value, float) and not value >= 0:
                raise UserError(f"dc: {name} is {value}; it must be at least 0")


class DC(Method):
    """Gradient matching: algorithm 1 of the paper."""

    Config = DCConfig
    PROTOCOL = "vico"
    # 1000 iterations everywhere.
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {
        (dataset, ipc): {"steps": 1000 * LOOPS[ipc][0], "outer_loop": LOOPS[ipc][0], "inner_loop": LOOPS[ipc][1]}
        for dataset, ipcs in (
            ("mnist", (1, 10, 50)),
            ("fashion_mnist", (1, 10, 50)),
            ("svhn", (1, 10, 50)),
            ("cifar10", (1, 10, 50)),
            ("cifar100", (1, 10)),
        )
        for ipc in ipcs
    }
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 4, "outer_loop": 2, "inner_loop": 1, "batch_real": 16},
        # Few real images and short inner training; from noise, 100 published updates do not lead far enough.
        # Chosen on digits.
        "quick": {"steps": 100, "inner_loop": 10, "lr_img": 1.0, "batch_real": 64},
    }

    config: DCConfig
    network: Network

    def __init__(self, task: Task, config: DCConfig, total_steps: int) -> None:
        outer, inner = loops(task.ipc)
        config = replace(config, outer_loop=config.outer_loop or outer, inner_loop=config.inner_loop or inner)
        super().__init__(task, config, total_steps)
        assert config.outer_loop and config.inner_loop
        self.steps_per_cycle = config.outer_loop
        self.rows = task.rows_of_classes()
        self.images, classes = task.draw_per_class()
        self.labels = F.one_hot(classes, task.num_classes).to(task.dtype)
        if config.init == "noise":
            self.images = torch.randn(self.images.shape, generator=task.generator, dtype=task.dtype).to(task.device)
        self.velocity = torch.zeros_like(self.images)
        self.outer = 0  # updates of the images since the network was fresh
        self.recipe = Recipe(
            loss="cross_entropy",
            optimiser="sgd",
            lr=config.lr_net,
            batch_size=config.batch_train,
            shuffle=True,
            epochs=config.inner_loop,
        )

    def step(self) -> dict[str, Tensor]:
        """One update of the images, and the training of the network that comes after it."""
        config, task = self.config, self.task
        # A fresh network, T updates long
        if self.outer == 0:
            self.network = task.network(task.generator)
        freeze_batch_norm(self.network, task, self.rows)

        # The distance of the gradients, summed over the classes
        def distance(c: int, synthetic: Tensor) -> Tensor:
            real = task.draw(self.rows[c], config.batch_real)
            return matching_loss(self.network, real, synthetic, c, config.dis_metric)

        loss, gradient = sum_over_chunks(distance, self.images, task.ipc)
        # One update of the images
        self.velocity.mul_(config.momentum).add_(gradient)
        self.images.sub_(config.lr_img * self.velocity)
        # Train the network on them, unless it is to be replaced
        self.outer = (self.outer + 1) % self.steps_per_cycle
        if self.outer:
            train(
                self.network,
                self.images,
                self.labels,
                "probability",
                self.recipe,
                flip=task.flip,
                generator=task.generator,
            )
        return {"matching": loss}

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images.clone(),
            "velocity": self.velocity.clone(),
            "outer": self.outer,
            "network": self.network.state_dict() if self.outer else None,
            "generator": self.task.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images.copy_(state["images"])
        self.velocity.copy_(state["velocity"])
        self.outer = state["outer"]
        if self.outer:
            self.network = self.task.network(generator_for("dc"))  # its structure
            self.network.load_state_dict(state["network"])
        self.task.generator.set_state(state["generator"])
