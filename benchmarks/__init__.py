"""The questions: data, preprocessing, networks, augmentation and evaluation recipes.

This layer knows nothing of methods, clocks or results. The names below are here, and not in the modules that implement
them, so that the command line can list them without importing torch.
"""

DATASETS = (
    "digits",
    "mnist",
    "fashion_mnist",
    "svhn",
    "cifar10",
    "cifar100",
    "tiny_imagenet",
    "cub200",
    "imagenette",
    "imagewoof",
    "imagenet64",
)
"""Data sets by name; besides these, ``folder:PATH`` is an image folder of the user."""

NETWORKS = ("convnet", "convnet_doubling")
NORMS = ("none", "batch", "instance")
PREPROCESSINGS = ("standardise", "standardise_vico", "standardise_mtt", "zca_frepo", "zca_kornia")
