"""Evaluation recipes as data: how a network is trained on a synthetic set, by each paper and in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.data.views import base_name


@dataclass(frozen=True)
class Recipe:
    """Settings for training a network, which ``benchmarks.training.train`` carries out."""

    loss: Literal["cross_entropy", "mse"]
    """Loss; ``mse`` is the mean over the batch of ½ Σ_c (logit − label)², on centred labels."""
    optimiser: Literal["sgd", "adam", "adamw"]
    lr: float
    batch_size: int
    shuffle: bool
    """False: batches are cut in the order of the set, the same in every epoch."""
    balanced: bool = False
    """Every batch is drawn anew, with equally many images of each class; the whole set where that is no larger."""
    epochs: int = 0
    """Passes over the set; 0 where ``steps_by_images`` says the length."""
    steps_by_images: tuple[tuple[int, int], ...] = ()
    """Pairs (images in the set, optimiser steps), ascending; the first with enough images holds, else the last."""
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: Literal["constant", "drop_once", "drops", "warmup_cosine"] = "constant"
    drop_after: int = 0
    """``drop_once``: epochs after which the rate is divided by 10 and the optimiser made anew, its momentum lost.
    ``drops``: whenever so many have passed, the rate is multiplied by ``drop_factor``."""
    drop_factor: float = 1.0
    drop_wait: int = 0
    """``drops``: epochs before those that count for ``drop_after``."""
    warmup_steps: int = 0
    """``warmup_cosine``: steps of linear rise from 0."""
    final_lr: float = 0.0
    """``warmup_cosine``: the end of the cosine, as a fraction of ``lr``."""
    augment: Literal["none", "dsa", "frepo", "flip_rotate"] = "none"
    learned_lr: bool = False
    """Take the step size that was learned with the set, if any, instead of ``lr``."""

    def steps(self, images: int) -> int:
        """Optimiser steps for a set of ``images``."""
        if self.epochs:
            return self.epochs * self.steps_per_epoch(images)
        fitting = [steps for size, steps in self.steps_by_images if size >= images]
        return fitting[0] if fitting else self.steps_by_images[-1][1]

    def steps_per_epoch(self, images: int) -> int:
        """Batches in a set of ``images``; the last one may be short."""
        return -(-images // self.batch_size)

    def flip(self, dataset_flip: bool, dataset: str) -> bool:
        """Whether the augmentation mirrors images: FRePo's leaves Fashion-MNIST alone, which DSA mirrors."""
        return dataset_flip and not (self.augment == "frepo" and base_name(dataset) == "fashion_mnist")


@dataclass(frozen=True)
class Protocol:
    """Preprocessing, networks and recipe of an evaluation."""

    name: str
    recipe: Recipe
    preprocess: Callable[[str, int], str]
    """Map from (data set, ipc) to a name of ``benchmarks.PREPROCESSINGS``."""
    network: str = "convnet"
    distill_norm: Literal["none", "batch", "instance"] | None = "instance"
    """Norm of the network that distils; one that does not have it has its usual one (`networks.usual_norm`). None: that
    of each method's own protocol."""
    test_norm: Literal["none", "batch", "instance"] = "instance"
    """Norm of the networks that are evaluated, likewise."""
    krr: bool = False
    """Report the accuracy of kernel regression on the trained network's features as well."""


def vico_recipe(epochs: int = 1000) -> Recipe:
    """The evaluation of DC, DSA and DM (Zhao and Bilen, 2021) for ``epochs`` as its authors count them: E.

    Epochs 0 to E are run, and after epoch E//2 + 1 the rate drops.
    """
    return Recipe(
        loss="cross_entropy",
        optimiser="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        batch_size=256,
        shuffle=True,
        epochs=epochs + 1,
        schedule="drop_once",
        drop_after=epochs // 2 + 2,
        augment="dsa",
    )


def soft_labels_recipe(epochs: int = 3000) -> Recipe:
    """The evaluation of soft labels (Qin et al., 2024) for ``epochs`` as its authors count them: E.

    Epochs 0 to E are run, and the rate drops after every quarter of E.
    """
    return replace(vico_recipe(epochs), schedule="drops", drop_after=epochs // 4, drop_factor=0.3, learned_lr=True)


NCFM_RECIPE = Recipe(
    loss="cross_entropy",
    optimiser="adamw",
    lr=1e-3,
    weight_decay=0.01,
    batch_size=128,
    shuffle=True,
    epochs=2000,
    schedule="drops",
    drop_after=400,
    drop_factor=0.5,
    augment="dsa",
)
"""The evaluation of NCFM (Wang et al., 2025) on CIFAR, without its CutMix, and by DSA as it is here."""


FREPO_RECIPE = Recipe(
    loss="mse",
    optimiser="adam",
    lr=3e-4,
    batch_size=500,
    shuffle=False,
    steps_by_images=(
        (10, 1000),
        (100, 2000),
        (200, 20000),
        (400, 5000),
        (500, 5000),
        (1000, 10000),
        (2000, 40000),
        (5000, 40000),
    ),
    schedule="warmup_cosine",
    warmup_steps=500,
    final_lr=0.01,
    augment="frepo",
)
"""The evaluation of FRePo (Zhou et al., 2022)."""


RCIG_RECIPE = replace(FREPO_RECIPE, lr=1e-4, batch_size=256, shuffle=True, steps_by_images=((10, 1000), (11, 2000)))
"""The evaluation of RCIG (Loo et al., 2023)."""


FREPO_ATTACK_RECIPE = Recipe(
    loss="mse",
    optimiser="adam",
    lr=3e-4,
    batch_size=256,
    shuffle=True,
    steps_by_images=((1, 16000),),
    augment="frepo",
)
"""How FRePo (section 5.2) trains the networks that are attacked by membership inference: at a constant rate.

The evaluation says how long and with which batch, which on the real images is 1024 of 10 000. No protocol trains so,
because it is no recipe for accuracy.
"""


RAT_BPTT_RECIPE = Recipe(
    loss="cross_entropy",
    optimiser="adam",
    lr=1e-3,
    batch_size=100,
    shuffle=True,
    balanced=True,
    steps_by_images=((1, 1000),),
    augment="flip_rotate",
)
"""The inner training of RaT-BPTT (Feng et al., 2024), with 100 images a step.

That is the published number of images, except for sets of more than 100 classes, of which 50 are trained on a step.
The authors test after 300, 600, 1000 and 3000 steps and report the best of the four; here the length is 1000.
"""


def _frepo_preprocess(dataset: str, ipc: int) -> str:
    return "standardise" if base_name(dataset) in ("digits", "mnist", "fashion_mnist") else "zca_frepo"


def _mtt_preprocess(dataset: str, ipc: int) -> str:
    whitened = {("cifar10", 1), ("cifar10", 10), ("cifar100", 1), ("cifar100", 50)}
    return "zca_kornia" if (base_name(dataset), ipc) in whitened else "standardise_mtt"


def _datm_preprocess(dataset: str, ipc: int) -> str:
    return "zca_kornia" if base_name(dataset) in ("cifar10", "cifar100", "tiny_imagenet") else "standardise_mtt"


def _soft_labels_preprocess(dataset: str, ipc: int) -> str:
    return "zca_kornia" if base_name(dataset) == "cifar10" else "standardise_mtt"


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("vico", recipe=vico_recipe(), preprocess=lambda dataset, ipc: "standardise_vico"),
        # Cazenavette et al., 2022
        Protocol("mtt", recipe=replace(vico_recipe(), learned_lr=True), preprocess=_mtt_preprocess),
        # Guo et al., 2024: MTT's recipe on soft labels, with ZCA everywhere
        Protocol("datm", recipe=replace(vico_recipe(), learned_lr=True), preprocess=_datm_preprocess),
        Protocol("soft_labels", recipe=soft_labels_recipe(), preprocess=_soft_labels_preprocess),
        Protocol("ncfm", recipe=NCFM_RECIPE, preprocess=lambda dataset, ipc: "standardise_vico"),
        Protocol(
            "frepo",
            recipe=FREPO_RECIPE,
            preprocess=_frepo_preprocess,
            network="convnet_doubling",
            distill_norm="batch",
            test_norm="none",
            krr=True,
        ),
        Protocol("rat_bptt", recipe=RAT_BPTT_RECIPE, preprocess=_frepo_preprocess),
        Protocol(
            "rcig",
            recipe=RCIG_RECIPE,
            preprocess=_frepo_preprocess,
            network="convnet_doubling",
            distill_norm="none",
            test_norm="none",
        ),
        # Squared error on learned labels, as KIP trains networks; the recipe is FRePo's.
        Protocol("kip", recipe=FREPO_RECIPE, preprocess=lambda dataset, ipc: "standardise"),
        # The same for all methods, so that only the distillation differs: chosen by how well networks learn from few
        # real images (``harness.choose_recipe``). The norm while distilling is a part of the method: DM, which compares
        # the images of one class, learns nothing through statistics of such a batch.
        Protocol(
            "common",
            recipe=vico_recipe(),
            preprocess=lambda dataset, ipc: "standardise",
            network="convnet_doubling",
            distill_norm=None,
            test_norm="batch",
        ),
    )
}
