"""What is to be run: budgets, cells, and the grid that a request spans.

A *cell* is everything that determines a result. Its configuration is resolved here, before a method is constructed:
the defaults of ``Config``, then ``PAPER`` for the data set and ipc, then ``BUDGETS`` for the budget, then the command
line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import DATASETS, NETWORKS
from benchmarks.errors import UserError, choose, printable
from harness.limits import show_bytes, total_bytes
from harness.plan.options import flag_of, parse, typed
from harness.records.record import PROTOCOL_VERSION

if TYPE_CHECKING:
    from benchmarks.datasets import RawData
    from methods.base import Method

PROTOCOLS = ("native", "common")
DEFAULT_OUTPUT = Path("results/local")


@dataclass(frozen=True)
class Budget:
    """What a budget fixes for every method; a method's own ``BUDGETS`` and ``PAPER`` add steps and hyper-parameters."""

    meaning: str
    seeds: tuple[int, ...]
    networks_evaluated: int
    evaluate_steps: int | None
    """At most so many optimiser steps per evaluated network; the schedule shrinks with them. None: as published."""
    cpu_width: int | None
    """Width of the network on a CPU. None: the protocol's, as on a GPU."""
    steps: int | None
    """Outer steps for a method whose ``BUDGETS`` name none. None: the published number is needed, or ``seconds``."""
    seconds: float | None = None
    """Steps are as many whole cycles as fit into this. None: a number of steps is fixed."""
    cycles: int = 1
    """At least so many whole cycles where seconds decide."""


BUDGETS = {
    "smoke": Budget("seconds: the real path, numbers without meaning", (0,), 1, 20, 8, 5),
    "quick": Budget("minutes: shortened schedules", (0,), 3, 1000, 32, 200),
    "paper": Budget("the published schedule", (0,), 5, None, None, None),
    "cost": Budget("time and memory of an iteration as published, no accuracy", (0,), 0, 0, 32, None, 20.0, 3),
}
WIDTH = 128
"""The published width of either network."""
MOST_POINTS = 1000
"""The most points of a curve."""


@dataclass(frozen=True)
class Cell:
    """Everything that determines a result, the configuration of the method apart."""

    method: str
    dataset: str
    """The name; of one's own folder ``folder:`` and its last part. ``data_fingerprint`` tells two of them apart."""
    ipc: int
    network: str
    width: int
    depth: int
    norm: str
    """Of the network that distils; the protocol says what the evaluated network has."""
    preprocess: str
    seed: int
    protocol: str
    budget: str
    steps: int | None
    """Outer steps; None where the method has none, or where ``seconds`` decide and the cell has not run yet."""
    seconds: float | None
    """Time budget from which the cell finds ``steps``."""
    seconds_include_prepare: bool
    device_kind: str
    dtype: str
    tf32: bool
    memory_limit_bytes: int | None
    image_size: int | None
    """Images were resized to this; None: as they come."""
    networks_evaluated: int
    evaluate_steps: int | None
    curve_points: int
    data_fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self, config: Mapping[str, Any]) -> str:
        """8 hex digits of a hash over the cell and the resolved configuration."""
        fields = self.to_dict()
        if self.seconds is not None:
            fields["steps"] = None
        whole = json.dumps([PROTOCOL_VERSION, fields, config], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:8]

    def stem(self, config: Mapping[str, Any]) -> str:
        """File name without ending: a readable part, then the identity."""
        size = f"{self.network}-w{self.width}"
        readable = f"{self.dataset}-ipc{self.ipc}-{self.method}-{size}-seed{self.seed}-{self.budget}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', readable)}-{self.identity(config)}"

    def __str__(self) -> str:
        return f"{self.method} on {self.dataset}, ipc {self.ipc}, width {self.width}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """A cell, its configuration, and where the process that runs it finds and leaves things."""

    cell: Cell
    config: dict[str, Any]
    """Every field, resolved, as JSON has it: lists for tuples."""
    source: str
    """The data set as ``benchmarks.datasets`` takes it: a name or ``folder:PATH``."""
    device: str
    data_root: str
    cache: str
    output: str
    command: str
    """The command line of the run, for the record."""
    time_limit_seconds: float | None = None
    """No part of the cell: what a limit did not stop is what it is without. A record that it did stop tells it."""
    networks_at_once: int | None = None
    """Networks trained at a time to evaluate; None: as the cell finds best. It moves accuracies by rounding alone."""
    forecast_bytes: int | None = None
    """Peak of live tensors as forecast, for the record."""

    @property
    def stem(self) -> str:
        return self.cell.stem(self.config)

    @property
    def record_path(self) -> Path:
        return Path(self.output) / f"{self.stem}.json"

    @property
    def artifact_path(self) -> Path:
        return Path(self.output) / f"{self.stem}.safetensors"

    @property
    def log_path(self) -> Path:
        return Path(self.output) / f"{self.stem}.log"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        return cls(**{**values, "cell": Cell(**values["cell"])})


@dataclass(frozen=True)
class Request:
    """A run as asked for: the lists span the grid; None stands for the default of budget or protocol."""

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    ipcs: tuple[int, ...] = (1,)
    network: str | None = None
    """``native`` is that of the protocol, as None is."""
    widths: tuple[int, ...] | None = None
    depth: int | None = None
    seeds: tuple[int, ...] | None = None
    budget: str = "quick"
    steps: int | None = None
    seconds: float | None = None
    seconds_include_prepare: bool = False
    protocol: str = "native"
    device: str | None = None
    data_root: Path | None = None
    cache: Path | None = None
    image_size: int | None = None
    download: bool = False
    networks_evaluated: int | None = None
    evaluate_steps: int | None = None
    networks_at_once: int | None = None
    curve_points: int = 0
    tf32: bool = False
    memory_limit: int | None = None
    """Bytes."""
    time_limit: float | None = None
    """Seconds."""
    forecast: bool = False
    """The cells are not to be run: published data and a GPU need not be there, and nothing is written."""
    output: Path = DEFAULT_OUTPUT
    options: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Method → its arguments on the command line, as ``--method.field value`` tokens."""
    command: str = ""


@dataclass(frozen=True)
class Part:
    """One grid of an experiment."""

    settings: Mapping[str, Any]
    """Fields of ``Request``, where the command line says nothing else."""
    on_cpu: Mapping[str, Any]
    """Those that are others on a CPU."""
    not_mine: tuple[str, ...] = ()
    """Fields that say nothing to this part."""
    one_width: bool = False
    """Of several widths only the one nearest to the budget's own is taken."""


@dataclass(frozen=True)
class Experiment:
    """A named request."""

    meaning: str
    parts: tuple[Part, ...]


_FIGURE3 = {"methods": ("frepo", "mtt", "dsa", "dm", "bptt"), "network": "convnet_doubling"}
_FIGURE3_COST = Part(
    {**_FIGURE3, "budget": "cost", "widths": (16, 32, 64, 128, 256, 512)},
    on_cpu={"widths": (16, 32, 64)},
    not_mine=(
        *("budget", "curve_points", "networks_evaluated", "evaluate_steps", "networks_at_once"),
        "seconds_include_prepare",
    ),
)
_FIGURE3_ACCURACY = Part(
    {**_FIGURE3, "protocol": "common", "seconds": 300.0, "curve_points": 6}, on_cpu={"seconds": 60.0}, one_width=True
)
EXPERIMENTS = {
    "figure3": Experiment("both of the following", (_FIGURE3_COST, _FIGURE3_ACCURACY)),
    "figure3_cost": Experiment("time and memory of an iteration as the network grows", (_FIGURE3_COST,)),
    "figure3_accuracy": Experiment("accuracy against time and iterations, at one width", (_FIGURE3_ACCURACY,)),
}
"""Figure 3 of Zhou et al., NeurIPS 2022: a, b are the accuracies; c, d the costs."""


def requests(experiment: str, given: Mapping[str, Any]) -> list[Request]:
    """The requests that make up ``experiment``, one for each part; ``given``: the fields that the command line sets.

    Where there are several parts, each takes what is its own: the costs neither what is said about evaluation nor
    methods without steps. Raises UserError for an unknown experiment, and for fields that mean nothing to its one part.
    """
    import methods

    parts = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS)].parts
    device = find_device(given.get("device"), there=not given.get("forecast"))
    made = []
    for part in parts:
        own = {name: value for name, value in given.items() if name not in part.not_mine}
        if len(parts) == 1 and (left := [name for name in given if name not in own]):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
            raise UserError(f"{flags} says nothing to --experiment {experiment}: leave it out")
        fields = {**part.settings, **(part.on_cpu if device == "cpu" else {}), **own}
        if "steps" in own and "seconds" not in own:
            fields.pop("seconds", None)
        budget = fields.get("budget", Request.budget)
        if part.one_width and "widths" in own and budget in BUDGETS:
            usual = default_width(budget, device)
            fields["widths"] = (min(own["widths"], key=lambda width: abs(math.log(max(width, 1) / usual))),)
        if len(parts) > 1 and budget == "cost":
            kept = [name for name in fields["methods"] if methods.get(name).iterative]
            given_options = fields.get("options", {})
            fields["methods"] = tuple(kept)
            fields["options"] = {name: tokens for name, tokens in given_options.items() if name in kept}
        made.append(Request(**fields))
    return made


def check(request: Request) -> None:
    """Everything that can be checked without importing torch.

    Raises UserError for unknown names and numbers out of range. Writes nothing.
    """
    import methods

    for name in request.methods:
        choose("method", name, methods.names())
    for name in request.datasets:
        if not name.startswith("folder:"):
            choose("data set", name, [*DATASETS, "folder:PATH"])
        elif not name.removeprefix("folder:").strip():
            raise UserError("--dataset folder: has no path: write folder:PATH")
    if request.network is not None:
        choose("network", request.network, [*NETWORKS, "native"])
    choose("budget", request.budget, BUDGETS)
    choose("protocol", request.protocol, PROTOCOLS)
    _at_least(1, "--ipcs", request.ipcs)
    _at_least(1, "--widths", request.widths or ())
    _at_least(0, "--seeds", request.seeds or ())
    for flag, value in (
        ("--depth", request.depth),
        ("--steps", request.steps),
        ("--image-size", request.image_size),
        ("--networks-evaluated", request.networks_evaluated),
        ("--evaluate-steps", request.evaluate_steps),
        ("--networks-at-once", request.networks_at_once),
    ):
        _at_least(1, flag, () if value is None else (value,))
    _at_least(0, "--curve-points", (request.curve_points,))
    if request.curve_points > MOST_POINTS:
        raise UserError(f"--curve-points must be at most {MOST_POINTS}, not {request.curve_points}")
    if request.seconds is not None and not 0 < request.seconds < float("inf"):
        raise UserError(f"--seconds must be a positive number, not {request.seconds:g}")
    if request.seconds is not None and request.steps is not None:
        raise UserError("--steps and --seconds exclude each other: give one")
    if request.seconds_include_prepare and request.seconds is None:
        raise UserError("--seconds-include-prepare means nothing without --seconds")
    if request.budget == "cost":
        for flag, told in (
            ("--networks-evaluated", request.networks_evaluated),
            ("--evaluate-steps", request.evaluate_steps),
            ("--networks-at-once", request.networks_at_once),
            ("--curve-points", request.curve_points),
            ("--seconds-include-prepare", request.seconds_include_prepare),
        ):
            if told:
                raise UserError(f"--budget cost evaluates nothing and times steps alone: leave {flag} out")
    if request.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", request.device):
        raise UserError(f"--device must be cpu, cuda or cuda:N, not {request.device!r}")
    for name, tokens in request.options.items():
        fields = typed(name, tokens)
        if name not in request.methods:
            flags = ", ".join(flag_of(name, field) for field in fields)
            raise UserError(f"{flags}: {name} is not among the methods, {', '.join(request.methods)}")


def plan(request: Request) -> list[Job]:
    """The cells of ``request``, each with its configuration; data set by data set, all methods of a seed together.

    Loads the data to check it. Raises UserError for everything ``check`` does, for folders that cannot be written,
    missing or unreadable data, an ipc above the smallest class, a depth that the images do not allow, hyper-parameters
    that do not exist or do not fit, a budget without published settings, and a device that is not there.
    """
    check(request)
    import methods
    from benchmarks.folders import default_cache, default_root

    device = find_device(request.device, there=not request.forecast)
    if request.tf32 and not device.startswith("cuda"):
        raise UserError("--tf32 needs a CUDA device")
    cache = request.cache or default_cache()
    root = request.data_root or default_root()
    classes = {name: methods.get(name) for name in request.methods}
    left_out = unpublished(request)
    # Before the data and folders: a mistyped hyper-parameter should neither wait for a download nor leave a trace.
    resolved = {
        (dataset, ipc): resolve(
            {name: method for name, method in classes.items() if (name, dataset, ipc) not in left_out},
            *(dataset, ipc, request.budget, request.options),
        )
        for dataset, ipc in itertools.product(request.datasets, request.ipcs)
    }
    if not request.forecast:
        _writable(request.output, "--output")
        _writable(cache, "cache folder" if request.cache is None else "--cache")
    seeds = BUDGETS[request.budget].seeds if request.seeds is None else request.seeds
    jobs: dict[str, Job] = {}
    for source in request.datasets:
        raw = _load(source, root, cache, request)
        for ipc, width, seed, name in itertools.product(
            request.ipcs, request.widths or (default_width(request.budget, device),), seeds, request.methods
        ):
            if name not in resolved[source, ipc]:
                continue
            config, steps = resolved[source, ipc][name]
            job = Job(
                cell=_cell(request, classes[name], name, raw, ipc, width, seed, steps, device),
                config=json.loads(json.dumps(dataclasses.asdict(config))),
                source=source,
                device=device,
                data_root=str(root),
                cache=str(cache),
                output=str(request.output),
                command=request.command,
                time_limit_seconds=request.time_limit,
                networks_at_once=request.networks_at_once,
            )
            jobs[job.stem] = job
    return list(jobs.values())


def resolve(
    classes: Mapping[str, type[Method]], dataset: str, ipc: int, budget: str, options: Mapping[str, Sequence[str]]
) -> dict[str, tuple[Any, int | None]]:
    """Method → its configuration for this data set, ipc and budget, and the number of outer steps.

    Raises UserError for ``paper`` without a published setting, and for options that do not exist or do not fit.
    """
    defaults, steps = {}, {}
    for name, method in classes.items():
        if budget == "cost" and not method.iterative:
            raise UserError(f"{name} has no steps that --budget cost could time: leave it out")
        published = method.PAPER.get((dataset, ipc))
        if budget == "paper" and not has_published(method, dataset, ipc):
            known: dict[str, list[str]] = {}
            for other, number in method.PAPER:
                known.setdefault(other, []).append(str(number))
            listed = ", ".join(f"{other} {'/'.join(numbers)}" for other, numbers in known.items()) or "nothing"
            raise UserError(
                f"no published setting for {name} on {dataset} at ipc {ipc}: take --budget quick (published: {listed})"
            )
        changes = {**(published or {})}
        if budget != "paper":
            changes = {**changes, "steps": BUDGETS[budget].steps, **method.BUDGETS.get(budget, {})}
        number = changes.pop("steps", None)
        steps[name] = number if method.iterative else None
        defaults[name] = dataclasses.replace(method.Config(), **changes)
    configs = parse(defaults, options)
    return {name: (configs[name], steps[name]) for name in classes}


def has_published(method: type[Method], dataset: str, ipc: int) -> bool:
    """Whether ``--budget paper`` has settings for ``method``; one without steps needs none."""
    return not method.iterative or "steps" in method.PAPER.get((dataset, ipc), {})


def unpublished(request: Request) -> list[tuple[str, str, int]]:
    """(method, data set, ipc) that a forecast of ``--budget paper`` leaves out; none where nothing is left."""
    import methods

    if not request.forecast or request.budget != "paper":
        return []
    asked = [
        (name, dataset, ipc)
        for name, dataset, ipc in itertools.product(request.methods, request.datasets, request.ipcs)
        if methods.get(name).iterative
    ]
    missing = [each for each in asked if not has_published(methods.get(each[0]), *each[1:])]
    return missing if len(missing) < len(asked) else []


def prepare_is_reduced(method: type[Method], cell: Cell, config: Mapping[str, Any]) -> bool:
    """Whether a cost cell prepares less than the method does: what its ``BUDGETS`` change for it is in force."""
    published = {**dataclasses.asdict(method.Config()), **method.PAPER.get((cell.dataset, cell.ipc), {})}
    full = json.loads(json.dumps(published))
    changed = method.BUDGETS.get("cost", {}).keys() - {"steps"}
    return cell.budget == "cost" and any(config[name] != full[name] for name in changed)


def default_width(budget: str, device: str) -> int:
    """The published width, but narrower on a CPU under the short budgets."""
    narrow = BUDGETS[budget].cpu_width
    return narrow if narrow is not None and device == "cpu" else WIDTH


def find_device(wanted: str | None, *, there: bool = True) -> str:
    """``wanted``, or a GPU where there is one. Raises UserError where CUDA is asked for, must be there, and is not."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is None:
        return "cuda" if count else "cpu"
    if wanted.startswith("cuda") and there:
        index = int(wanted.partition(":")[2] or 0)
        if index >= count:
            raise UserError(f"--device {wanted}: there are {count} CUDA devices here; take --device cpu")
    return wanted


def _cell(
    request: Request,
    method: type[Method],
    name: str,
    raw: RawData,
    ipc: int,
    width: int,
    seed: int,
    steps: int | None,
    device: str,
) -> Cell:
    from benchmarks import protocols
    from benchmarks.networks import NetworkSpec

    budget = BUDGETS[request.budget]
    protocol = protocols.PROTOCOLS[method.PROTOCOL if request.protocol == "native" else request.protocol]
    seconds = request.seconds if request.steps or request.seconds else budget.seconds
    channels, height, breadth = raw.train_images.shape[1:]
    network = protocol.network if request.network in (None, "native") else request.network
    spec = NetworkSpec(
        name=network,  # type: ignore[arg-type]  # checked on construction
        in_channels=channels,
        image_size=(height, breadth),
        num_classes=len(raw.class_names),
        width=width,
        depth=request.depth,
        norm=protocol.distill_norm,
    )
    if not request.forecast:
        _fits(4 * spec.parameters(), device, f"--widths {width}: the parameters of the network alone")
    smallest, count = _smallest_class(raw)
    if ipc > count:
        raise UserError(f"ipc {ipc} is too many for {raw.name}: class {smallest!r} has {count} training images")
    return Cell(
        method=name,
        dataset=raw.name,
        ipc=ipc,
        network=spec.name,
        width=spec.width,
        depth=spec.blocks,
        norm=spec.norm,
        preprocess=protocol.preprocess(raw.name, ipc),
        seed=seed,
        protocol=protocol.name,
        budget=request.budget,
        steps=None if not method.iterative or seconds is not None else (request.steps or steps),
        seconds=seconds if method.iterative else None,
        seconds_include_prepare=request.seconds_include_prepare and method.iterative,
        device_kind=device.partition(":")[0],
        dtype="float32",
        tf32=request.tf32,
        memory_limit_bytes=request.memory_limit,
        image_size=request.image_size,
        networks_evaluated=request.networks_evaluated or budget.networks_evaluated,
        evaluate_steps=request.evaluate_steps or budget.evaluate_steps,
        curve_points=request.curve_points if method.iterative else 0,
        data_fingerprint=raw.fingerprint,
    )


def _load(source: str, root: Path, cache: Path, request: Request) -> RawData:
    from benchmarks.datasets import PUBLISHED, load_raw, stand_in

    if request.forecast and source in PUBLISHED:
        return stand_in(source, request.image_size)
    check_image_size(source, request.image_size)
    raw = load_raw(source, root, image_size=request.image_size, download=request.download, cache=cache)
    if source.startswith("folder:"):
        name = Path(source.removeprefix("folder:")).resolve().name
        # The path belongs to this machine; the fingerprint tells two folders of the same name apart.
        raw = dataclasses.replace(raw, name=f"folder:{printable(name)}")
    if raw.left_out:
        _tell(raw.left_out)
    return raw


@functools.cache
def _tell(line: str) -> None:
    """Say ``line`` to the user, once however many experiments load the same data."""
    print(printable(line), file=sys.stderr, flush=True)


def check_image_size(source: str, size: int | None) -> None:
    """Raises UserError where the images of ``source``, resized to ``size``, are larger than the machine's memory."""
    from benchmarks.datasets import PUBLISHED

    if size is not None:
        shape = PUBLISHED.get(source)
        pixels = size**2 * (1 if shape is None else (shape.train + shape.test) * shape.channels)
        _fits(pixels, "cpu", f"--image-size {size}: the images alone")


def tuples(value: Any) -> Any:
    """JSON has no tuples; frozen configurations have no lists."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def _smallest_class(raw: RawData) -> tuple[str, int]:
    counts = raw.train_labels.bincount(minlength=len(raw.class_names))
    index = int(counts.argmin())
    return raw.class_names[index], int(counts[index])


def _fits(needed: int, device: str, what: str) -> None:
    """Raises UserError where ``needed`` bytes are more than the machine has: that is a slip, and no measurement."""
    room = total_bytes(device)
    if room is not None and needed > room:
        raise UserError(f"{what} would take {show_bytes(needed)}, and there are {show_bytes(room)}")


def _at_least(minimum: int, flag: str, values: Sequence[int]) -> None:
    for value in values:
        if value < minimum:
            raise UserError(f"{flag} must be at least {minimum}, not {value}")


def _writable(folder: Path, what: str) -> None:
    """Make ``folder`` and try to write into it. Raises UserError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(f"{what} {folder} cannot be written ({reason}): name another folder") from error
