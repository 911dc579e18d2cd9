"""The questions: data, preprocessing, networks, augmentation and evaluation recipes.

This layer knows nothing of methods, clocks or results. The names below are here, and not in the modules that implement
them, so that the command line can list them without importing torch.
"""

from benchmarks.registry import Registry

DATASETS = {
    "digits": "handwritten digits, 8×8, which scikit-learn brings",
    "patches": "a demo and no benchmark: pieces of scikit-learn's two photographs, 32×32, one class each",
    "mnist": "handwritten digits, 28×28",
    "fashion_mnist": "clothes, 28×28",
    "svhn": "house numbers, 32×32",
    "cifar10": "objects and animals, 32×32",
    "cifar100": "objects and animals, 32×32, 100 classes",
    "stl10": "objects and animals, 96×96, the labelled images",
    "tiny_imagenet": "200 classes of ImageNet, 64×64",
    "cub200": "200 species of birds, 32×32",
    "imagenette": "10 classes of ImageNet, 128×128",
    "imagewoof": "10 breeds of dogs of ImageNet, 128×128",
    "imagenet64": "ImageNet, 64×64",
}
"""Published data sets, and what they are; ``benchmarks.data.names`` has the forms of other names."""

NETWORK_REGISTRY = Registry(
    "network",
    "benchmarks.networks",
    classes={
        "alexnet": "alexnet:AlexNet",
        "convnet": "convnet:ConvNet",
        "convnet_doubling": "convnet:ConvNetDoubling",
        "frepo_alexnet": "alexnet:FRePoAlexNet",
        "frepo_alexnet_max": "alexnet:FRePoAlexNetMax",
        "frepo_dcconv": "convnet:FRePoDCConv",
        "frepo_kipconv": "convnet:FRePoKIPConv",
        "frepo_resnet18": "resnet:FRePoResNet18",
        "frepo_resnet18_ap": "resnet:FRePoResNet18AP",
        "frepo_vgg11": "vgg:FRePoVGG11",
        "frepo_vgg11_max": "vgg:FRePoVGG11Max",
        "lenet": "lenet:LeNet",
        "mlp": "mlp:MLP",
        "resnet18": "resnet:ResNet18",
        "resnet18_ap": "resnet:ResNet18AP",
        "vgg11": "vgg:VGG11",
    },
    group="frepo_bench.networks",
)
"""Networks by name; another package adds one under this entry-point group, ``name = "package.module:Class"``."""
NETWORKS = tuple(NETWORK_REGISTRY.names())
"""The names of all networks, built-in and installed when this process began."""
NORMS = ("none", "batch", "instance")
PREPROCESSINGS = ("standardise", "standardise_vico", "standardise_mtt", "zca_frepo", "zca_kornia")
