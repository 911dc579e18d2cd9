"""DM: synthetic images whose mean features, class by class, are those of the real images in random networks.

Zhao, Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, algorithm 1.

Difference from the authors' code (github.com/VICO-UoE/DatasetCondensation), and why:
- The gradient for the images is taken for a few classes at a time: the same sum in less memory. With batch norm all
  classes pass through the network together, as in the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from benchmarks.networks import Network, batch_norms
from benchmarks.training import features
from methods._matching import Matching, augment_alike, classes_together, sum_over_chunks
from methods.base import Range, check_ranges


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

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        check_ranges(self)


def mean_embeddings(network: Network, batches: Sequence[Tensor]) -> Tensor:
    """Mean features (k, D) of k batches, which pass through ``network`` together."""
    together = network.features(torch.cat(list(batches)))
    return torch.stack([own.mean(0) for own in torch.split(together, [len(batch) for batch in batches])])


def mean_embedding_loss(network: Network, pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Σ over classes of ‖mean ψ(real) − mean ψ(synthetic)‖², 0-d, of a (real, synthetic) pair of batches per class.

    Differentiable in the synthetic images. Features and classes are summed, not averaged. ``pairs`` may be a generator:
    without batch norm only one real batch is then held at a time.
    """
    if batch_norms(network):
        real, synthetic = zip(*pairs, strict=True)
        with torch.no_grad():
            target = mean_embeddings(network, real)
    else:
        means, synthetic = zip(*((features(network, real).mean(0), own) for real, own in pairs), strict=True)
        target = torch.stack(means)
    return (target - mean_embeddings(network, synthetic)).square().sum()


class DM(Matching):
    """Distribution matching: algorithm 1 of the paper."""

    Config = DMConfig
    # The paper has one setting for 1 to 50 images per class of every data set. Listed are the sets with a published
    # accuracy to compare with (FRePo's table 1), except for CUB-200, on which no settings are told.
    PAPER: ClassVar[Mapping[tuple[str, int], Mapping[str, Any]]] = {
        (dataset, ipc): {"steps": 20_000}
        for dataset, ipcs in (
            ("mnist", (1, 10, 50)),
            ("fashion_mnist", (1, 10, 50)),
            ("cifar10", (1, 10, 50)),
            ("cifar100", (1, 10, 50)),
            ("tiny_imagenet", (1, 10)),
        )
        for ipc in ipcs
    }
    BUDGETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {"steps": 5, "batch_real": 16},
        # Few real images. Chosen on digits.
        "quick": {"steps": 200, "batch_real": 64},
    }
    TUNE: ClassVar[Mapping[str, Range]] = {
        "lr_img": Range(0.1, 30.0),
        "momentum": Range(0.0, 0.9, log=False),
        "batch_real": Range(16, 256),
    }

    def step(self) -> dict[str, Tensor]:
        """One iteration of algorithm 1."""
        config, task = self.config, self.task
        # A random network ψ, which is never trained
        network = task.network(task.generator).requires_grad_(False)
        together = classes_together(network, self.images, task.ipc)

        # A real and the synthetic batch of every class, augmented alike, and the distance of their mean features
        def distance(chunk: int, synthetic: Tensor) -> Tensor:
            rows = self.rows[chunk * together : (chunk + 1) * together]
            pairs = (
                augment_alike(task, task.draw(of_class, config.batch_real), own)
                for of_class, own in zip(rows, torch.split(synthetic, task.ipc), strict=True)
            )
            return mean_embedding_loss(network, pairs)

        loss, gradient = sum_over_chunks(distance, self.images, together * task.ipc)
        # One update of the images
        self.update([gradient])
        return {"distance": loss}
