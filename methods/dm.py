"""DM: synthetic images whose mean features, class by class, are those of the real images in random networks.

Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, algorithm 1.

Differs from the authors' code (github.com/VICO-UoE/DatasetCondensation):
- The gradient for the images is taken for a few classes at a time, which is the same sum, in the memory of those.
  With batch norm all classes pass through the network together, as in the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network
from benchmarks.task import Task
from methods._matching import augment_alike, batch_norms, sum_over_chunks
from methods.base import Method, Synthetic


@dataclass(frozen=True)
class DMConfig:
    """Hyper-parameters of DM; the defaults are the paper's."""

    lr_img: float = 1.0
    """η: step size of the synthetic images."""
    momentum: float = 0.5
    """Momentum of their updates."""
    batch_real: int = 256
    """Real images per class and step."""
    init: Literal["real", "noise"] = "real"
    """Synthetic images start from random real images or from standard normal noise."""
    classes_at_once: int = 1
    """Classes that pass through the network together: changes time and memory, not the result."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        for name, value in asdict(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"dm: {name} is {value}; it must be at least 1")
            if isinstance(value, float) and not value >= 0:
                raise UserError(f"dm: {name} is {value}; it must be at least 0")


def mean_embeddings(network: Network, batches: Sequence[Tensor]) -> Tensor:
    """The mean features (k, D) of each of k batches, which pass through ``network`` together."""
    features = network.features(torch.cat(list(batches)))
    return torch.stack([own.mean(0) for own in torch.split(features, [len(batch) for batch in batches])])


def mean_embedding_loss(network: Network, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Σ over classes of ‖mean ψ(real) − mean ψ(synthetic)‖², 0-d, of one batch of images per class.

    Differentiable in the synthetic images; sums, not means, over features and classes.
    """
    with torch.no_grad():
        target = mean_embeddings(network, real)
    return (target - mean_embeddings(network, synthetic)).square().sum()


class DM(Method):
    """Distribution matching: algorithm 1 of the paper."""

    Config = DMConfig
    PROTOCOL = "vico"
    # One setting for 1 to 50 images per class, whatever the data set.
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {
        (dataset, ipc): {"steps": 20_000}
        for dataset in ("mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet")
        for ipc in (1, 10, 50)
    }
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 5, "batch_real": 16},
        # Few real images. Chosen on digits.
        "quick": {"steps": 200, "batch_real": 64},
    }

    config: DMConfig

    def __init__(self, task: Task, config: DMConfig, total_steps: int) -> None:
        super().__init__(task, config, total_steps)
        self.rows = task.rows_of_classes()
        self.images, classes = task.draw_per_class()
        self.labels = F.one_hot(classes, task.num_classes).to(task.dtype)
        if config.init == "noise":
            self.images = torch.randn(self.images.shape, generator=task.generator, dtype=task.dtype).to(task.device)
        self.velocity = torch.zeros_like(self.images)

    def step(self) -> dict[str, Tensor]:
        """One iteration of algorithm 1."""
        config, task = self.config, self.task
        # A random network ψ, which is never trained
        network = task.network(task.generator).requires_grad_(False)
        at_once = task.num_classes if batch_norms(network) else config.classes_at_once

        # A real and the synthetic batch of every class, augmented alike, and the distance of their mean features
        def distance(chunk: int, synthetic: Tensor) -> Tensor:
            rows = self.rows[chunk * at_once : (chunk + 1) * at_once]
            pairs = [
                augment_alike(task, task.draw(of_class, config.batch_real), own)
                for of_class, own in zip(rows, torch.split(synthetic, task.ipc), strict=True)
            ]
            return mean_embedding_loss(network, *zip(*pairs, strict=True))

        loss, gradient = sum_over_chunks(distance, self.images, at_once * task.ipc)
        # One update of the images
        self.velocity.mul_(config.momentum).add_(gradient)
        self.images.sub_(config.lr_img * self.velocity)
        return {"distance": loss}

    def synthetic(self) -> Synthetic:
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")

    def state_dict(self) -> dict[str, Any]:
        return {
            "images": self.images.clone(),
            "velocity": self.velocity.clone(),
            "generator": self.task.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images.copy_(state["images"])
        self.velocity.copy_(state["velocity"])
        self.task.generator.set_state(state["generator"])
