"""The paper's tables and figures, and questions beyond it, as data: named lists of requests.

The facts are those of FRePo (Zhou, Nezhadarya and Ba, NeurIPS 2022) and of its released code. An experiment can be
asked for under any budget; what the user says overrides it. Where the paper does not say how a thing was done,
``unknown`` says so, and how it is done here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.errors import UserError, choose
from harness import devices
from harness.launch import LAUNCHERS
from harness.plan.budgets import BUDGETS, COST, default_width
from harness.plan.options import flag_of, typed
from harness.plan.request import EVALUATION_FIELDS, FLOOR, Request

Options = Mapping[str, Mapping[str, str]]
"""Method or evaluation → field → its value as on the command line."""


@dataclass(frozen=True)
class Part:
    """One grid of an experiment."""

    name: str
    settings: Mapping[str, Any]
    """Fields of ``Request``, where the command line says nothing else; ``options`` as `Options`."""
    where: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """``cpu``, the name of a budget, or both (``cpu quick``) → fields that differ there; the later ones hold."""
    not_mine: tuple[str, ...] = ()
    """Request fields that this part ignores."""
    one_width: bool = False
    """Whether only one of several widths is taken, the one nearest to the budget's own."""


@dataclass(frozen=True)
class Experiment:
    """A named request."""

    meaning: str
    parts: tuple[Part, ...]
    unknown: str = ""
    """What the paper leaves open, and what was chosen: sentences for the caption of its table."""
    images: bool = False
    """Whether its figures show the images and learned labels of its sets."""


# --- tables 1 to 3: accuracy ------------------------------------------------------------------------------------------

_ALL = ("frepo", "mtt", "kip", "dm", "dsa")
_TABLE1 = tuple(
    Part(dataset, {"datasets": (dataset,), "ipcs": ipcs, "methods": tuple(m for m in _ALL if m not in without)})
    for dataset, ipcs, *without in (  # without: what the table has no number for
        ("mnist", (1, 10, 50)),
        ("fashion_mnist", (1, 10, 50)),
        ("cifar10", (1, 10, 50)),
        ("cifar100", (1, 10)),
        ("cifar100", (50,), "kip"),
        ("tiny_imagenet", (1,), "kip"),
        ("tiny_imagenet", (10,), "kip", "dsa"),
        ("cub200", (1,), "kip"),
        ("cub200", (10,), "kip", "mtt"),
    )
)
ARCHITECTURES = {
    "own": "Conv",
    "own:none": "Conv-NN",
    "resnet18": "ResNet-DN",
    "resnet18:batch": "ResNet-BN",
    "vgg11:batch": "VGG-BN",
    "alexnet:none": "AlexNet",
}
"""Architecture of ``cross_architecture`` → column of table 2. All are trained alike, the own network too."""
_CIFAR10 = {"datasets": ("cifar10",), "ipcs": (10,)}
_TABLE2 = Part(
    "cross",
    {
        **_CIFAR10,
        "methods": _ALL,
        "evaluations": ("accuracy", "cross_architecture"),
        "options": {"cross_architecture": {"architectures": ",".join(ARCHITECTURES)}},
    },
    where={
        "smoke": {"options": {"cross_architecture": {"lr_search": "1.0", "held_out": "100"}}},
        "cpu quick": {
            "options": {"cross_architecture": {"steps": "500", "search_steps": "100", "networks": "1", "width": "16"}}
        },
    },
)
_TABLE3 = tuple(
    Part(dataset, {"datasets": (dataset,), "ipcs": ipcs, "methods": methods})
    for dataset, ipcs, methods in (
        ("imagenette", (1, 10), ("frepo", "mtt")),
        ("imagewoof", (1, 10), ("frepo", "mtt")),
        ("imagenet64", (1, 2), ("frepo",)),
    )
)

# --- table 4 and figure 5: applications -------------------------------------------------------------------------------

_ATTACKS = tuple(
    Part(
        name,
        {
            "datasets": ("mnist", "fashion_mnist"),
            "ipcs": (10,),
            "methods": ("frepo", "dm", "dsa"),
            "evaluations": ("membership_inference",),
            "ceiling": True,
            "options": {"membership_inference": {"augment": augment, "chunk": "0,1"}},
        },
        where={
            "smoke": {"ipcs": (1,), "options": {"membership_inference": {"chunk": "0"}}},
            "cpu quick": {"widths": (16,)},
            "paper": {"ipcs": (50,), "options": {"membership_inference": {"chunk": "0,1,2,3,4"}}},
        },
    )
    for name, augment in (("released-augmentation", "frepo"), ("no-augmentation", "none"))
)
_LIRA = Part(
    "lira",
    {"datasets": ("mnist",), "ipcs": (5,), "methods": ("frepo", "dm"), "evaluations": ("lira",), "ceiling": True},
    where={
        **{"smoke": {"ipcs": (1,)}, "cpu quick": {"widths": (16,)}},
        "paper": {"ipcs": (10,)},  # for which there are published settings
    },
)
_CONTINUAL = tuple(
    Part(
        f"{steps}-steps",
        {
            "datasets": ("cifar100",),
            "ipcs": (20,),
            "methods": ("frepo", "dm", "dsa", "herding"),
            "evaluations": ("continual_learning",),
            "options": {"continual_learning": {"class_steps": str(steps), "order": "0"}},
        },
        where={
            "smoke": {"ipcs": (1,)},
            "paper": {"options": {"continual_learning": {"order": "0,1,2,3,4"}}},
        },
    )
    for steps in (5, 10)
)

# --- figures of images and costs --------------------------------------------------------------------------------------

_FIGURE3 = {
    "datasets": ("cifar100",),
    "methods": ("frepo", "mtt", "dsa", "dm", "bptt"),
    "network": "convnet_doubling",
}
_FIGURE3_COST = Part(
    "cost",
    {**_FIGURE3, "budget": "cost", "widths": (16, 32, 64, 128, 256, 512)},
    where={"cpu": {"widths": (16, 32, 64)}},
    not_mine=("budget", *EVALUATION_FIELDS),
)
_FIGURE3_ACCURACY = Part(
    "accuracy",
    {**_FIGURE3, "protocol": "common", "seconds": 300.0, "curve_points": 6},
    where={"cpu": {"seconds": 60.0}},
    one_width=True,
)
_FIGURE1 = tuple(
    Part(dataset, {"datasets": (dataset,), "methods": ("frepo",)})
    for dataset in ("cifar100", "tiny_imagenet", "imagenette", "imagewoof")
)
_FIGURE4 = Part("images", {"datasets": ("cifar100",), "methods": ("frepo", "mtt", "dsa")})

# --- beyond the paper -------------------------------------------------------------------------------------------------


def _ablation(name: str, *values: str, option: str | None = None, of: str = "") -> tuple[Part, ...]:
    """A part for each value of a hyper-parameter of FRePo, or of the field ``of`` of a request."""
    base = {**_CIFAR10, "methods": ("frepo",)}
    field = option or name.replace("-", "_")
    changes = [{of: value} if of else {"options": {"frepo": {field: value}}} for value in values]
    return tuple(Part(name, {**base, **change}) for change in changes)


_ABLATIONS = (
    Part("published", {**_CIFAR10, "methods": ("frepo",)}),
    *_ablation("pool-size", "1", "5", "20"),
    *_ablation("online-updates", "1", "10", "1000", option="max_online_updates"),
    *_ablation("batch-size", "128", "512", "2048"),
    *_ablation("init", "noise"),
    *_ablation("learn-label", "False"),
    *_ablation("flip", "False", option="use_flip"),
    *_ablation("optimiser", "adam"),
    *_ablation("norm", "none", "instance", of="norm"),
    *_ablation("network", "convnet", of="network"),
    Part("width", {**_CIFAR10, "methods": ("frepo",), "widths": (32, 64, 256)}, where={"cpu": {"widths": (8, 16, 64)}}),
)
_RECIPES = ("vico", "mtt", "frepo", "common")
_NETWORKS = ("convnet:instance", "convnet:none", "convnet_doubling:none", "resnet18:batch", "alexnet:none")
MATRIX = tuple(f"{network}@{recipe}" for network in _NETWORKS for recipe in _RECIPES)
"""Architectures of ``cross_architecture``: every network by every recipe."""
_MATRIX = Part(
    "matrix",
    {
        **_CIFAR10,
        "methods": ("frepo", "mtt", "dm", "dsa"),
        "evaluations": ("accuracy", "cross_architecture"),
        "options": {"cross_architecture": {"architectures": ",".join(MATRIX), "lr_search": "1.0"}},
    },
    where={
        "smoke": {"options": {"cross_architecture": {"held_out": "100"}}},
        "cpu quick": {"options": {"cross_architecture": {"steps": "500", "networks": "1", "width": "16"}}},
    },
)

_ATTACK_UNKNOWN = (
    "Unknown: after how many training steps table 4 attacks, which code trained on the sets of DSA and DM, and whether "
    "the row FRePo is of the distilled set: the released script trains on the real images that it starts from. Here "
    "every network is trained on the set itself, by the released recipe, with and without its augmentation"
)
EXPERIMENTS = {
    "table1": Experiment(
        "accuracy of sets by five methods on six data sets, KRR in brackets",
        _TABLE1,
        "KIP is reported for a convolutional kernel, and here has the kernel of a fully connected network",
    ),
    "table2": Experiment(
        "cross-architecture: networks that did not distil the sets, CIFAR-10, 10 images per class",
        (_TABLE2,),
        "Unknown: how networks are trained for table 2, and the norm of ResNet-DN for KIP and FRePo. Here each by the "
        "recipe of the set's own method, with a step size searched on held-out training images; DN is instance norm "
        "where the method's own network has none or is tested without",
    ),
    "table3": Experiment(
        "high resolution: Imagenette and Imagewoof at 128², ImageNet at 64²",
        _TABLE3,
        "Unknown: FRePo's network and preprocessing in table 3. Here the depth follows the image size",
    ),
    "table4": Experiment("membership inference: attacks on networks trained on the sets", _ATTACKS, _ATTACK_UNKNOWN),
    "figure1": Experiment("images of FRePo's sets, one per class", _FIGURE1, images=True),
    "figure3": Experiment("both of the following", (_FIGURE3_COST, _FIGURE3_ACCURACY)),
    "figure3_cost": Experiment("time and memory of an iteration as the network grows", (_FIGURE3_COST,)),
    "figure3_accuracy": Experiment("accuracy against time and iterations, at one width", (_FIGURE3_ACCURACY,)),
    "figure4": Experiment(
        "images and learned labels of CIFAR-100, one per class, by FRePo, MTT and DSA", (_FIGURE4,), images=True
    ),
    "figure5ab": Experiment(
        "continual learning: accuracy on all classes seen, 5 and 10 steps",
        _CONTINUAL,
        "Unknown: how DSA, DM and herding sets were made for each step, and how seeds were pooled. Preprocessing is "
        "fitted on the classes seen; the released code fits it on all (--continual-learning.leak True)",
    ),
    "figure5cd": Experiment(
        "membership inference against the training steps: the runs of table 4", _ATTACKS, _ATTACK_UNKNOWN
    ),
    "ablations": Experiment(
        "what the parts of FRePo are worth: pool, batch, start, labels, network, optimiser",
        _ABLATIONS,
        "The paper's numbers are in an appendix that is not at hand. LAMB and Adam have the same step size here",
    ),
    "lira": Experiment(
        "the likelihood-ratio attack, with a set distilled from each of several halves of the data", (_LIRA,)
    ),
    "protocol_matrix": Experiment("each set under every recipe and network", (_MATRIX,)),
}


# --- from a name to requests ------------------------------------------------------------------------------------------


def requests(experiment: str, told: Mapping[str, Any], only: Sequence[str] = ()) -> list[Request]:
    """The requests that make up ``experiment``, one for each part.

    ``told``: the fields that the command line sets. ``only``: names of parts, data sets and methods; names of one kind
    are alternatives, and those of different kinds hold together.

    Where there are several parts, each takes what is its own: the costs neither what is said about evaluation nor
    methods without steps. Raises UserError for an unknown experiment, for names in ``only`` that nothing has, and for
    fields that mean nothing to its one part.
    """
    parts = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS)].parts
    device = devices.find(told.get("device"), there=not told.get("forecast") and "launcher" not in told)
    made = []
    for part in parts:
        own = {name: value for name, value in told.items() if name not in part.not_mine}
        if len(parts) == 1 and (left := [name for name in told if name not in own]):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
            raise UserError(f"{flags} means nothing for --experiment {experiment}: leave it out")
        budget = own.get("budget", part.settings.get("budget", Request.budget))
        fields = _fields(part, own, budget, device, alone=len(parts) == 1)
        made.append((part, {**fields, "experiment": experiment, "own_data": "datasets" not in told}))
    for name, tokens in told.get("options", {}).items():
        if not any(name in fields["options"] for _, fields in made):
            flags = ", ".join(flag_of(name, each) for each in typed(name, tokens))
            raise UserError(f"{flags}: {name} is neither a method nor an evaluation of --experiment {experiment}")
    return [Request(**fields) for fields in _chosen(made, only) if fields["methods"]]


def _fields(part: Part, own: Mapping[str, Any], budget: str, device: str, *, alone: bool) -> dict[str, Any]:
    """The fields of the request of ``part``, where the command line says ``own``."""
    import methods

    kind = device.partition(":")[0]
    fields, options = dict[str, Any](), dict[str, dict[str, str]]()
    for settings in (part.settings, *(part.where.get(word, {}) for word in (kind, budget, f"{kind} {budget}"))):
        fields |= settings
        for name, values in settings.get("options", {}).items():
            options[name] = {**options.get(name, {}), **values}
    fields |= own
    if "steps" in own and "seconds" not in own:
        fields.pop("seconds", None)
    if part.one_width and "widths" in own and budget in BUDGETS:
        usual = default_width(budget, device)
        fields["widths"] = (min(own["widths"], key=lambda width: abs(math.log(max(width, 1) / usual))),)
    if not alone and budget == COST:
        fields["methods"] = tuple(name for name in fields["methods"] if methods.get(name).iterative)
    asked = (*fields["methods"], *(fields.get("evaluations") or ("accuracy",)), *LAUNCHERS)
    fields["options"] = _tokens(options, own, asked)
    return fields


def _tokens(options: Options, own: Mapping[str, Any], asked: Iterable[str]) -> dict[str, list[str]]:
    """The ``options`` of a part and those of the command line, which hold, for all that is ``asked``."""
    said = own.get("options", {})
    flags = {"networks": "networks_evaluated", "steps": "evaluate_steps", "networks_at_once": "networks_at_once"}
    tokens = {}
    for name in asked:
        mine = {
            field: [value]
            for field, value in options.get(name, {}).items()
            if own.get(flags.get(field, "")) is None  # else it would be said twice
        }
        words = {**mine, **typed(name, said.get(name, ()))}
        tokens[name] = [token for field, values in words.items() for token in (f"--{name}.{field}", *values)]
    return {name: values for name, values in tokens.items() if values}


def _chosen(made: Sequence[tuple[Part, dict[str, Any]]], only: Sequence[str]) -> list[dict[str, Any]]:
    """The fields of those parts that ``only`` leaves, with the methods and data sets that it names."""
    import methods

    parts = dict.fromkeys(part.name for part, _ in made)
    datasets = dict.fromkeys(name for _, fields in made for name in fields["datasets"])
    every = methods.names()
    known = [*datasets, *every, *parts]
    words = [word if word in known else choose("part, data set or method", word, known) for word in only]
    of_data = {word for word in words if word in datasets}
    of_methods = {word for word in words if word in every}
    of_parts = {word for word in words if word not in of_data | of_methods}
    kept = []
    for part, fields in made:
        if of_parts and part.name not in of_parts:
            continue
        if of_data:
            fields["datasets"] = tuple(name for name in fields["datasets"] if name in of_data)
        if of_methods:
            there = dict.fromkeys((*fields["methods"], FLOOR))
            fields["methods"] = tuple(name for name in there if name in of_methods)
        options = fields["options"].items()
        fields["options"] = {name: tokens for name, tokens in options if name not in every or name in fields["methods"]}
        if fields["datasets"] and fields["methods"]:
            kept.append(fields)
    if only and not kept:
        raise UserError(f"nothing in the experiment is all of {', '.join(only)}")
    return kept
