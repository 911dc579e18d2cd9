"""Requests of the command line. Every field of a request is a flag.

Nothing here imports torch: ``--help`` must not wait for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import methods
from benchmarks import NETWORKS, NORMS, PREPROCESSINGS
from benchmarks.data.names import check
from benchmarks.data.views import parse as parse_views
from benchmarks.errors import UserError, choose, printable
from benchmarks.protocols import PROTOCOLS
from harness import evaluations
from harness.command_line import LARGEST, Parser, file_path, finite, whole
from harness.devices import NAMES, check_name
from harness.launch import LAUNCHERS, needed
from harness.limits import parse_bytes, parse_seconds
from harness.plan.budgets import BUDGETS, COST, WIDTH
from harness.plan.jobs import WHOLE_DATA
from harness.plan.options import flag_of, typed

DEFAULT_OUTPUT = Path("results/local")
FLOOR = "random_real"
"""In every table: what a method adds to real images drawn at random is what it is worth."""
MOST_POINTS = 1000
"""The most points of a curve."""
TENSORBOARD = "tensorboard"


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them, each once."""
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise argparse.ArgumentTypeError("expected one or more names, comma between")
    return parts


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, each once."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[+-]?\d+\s*", part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers, comma between, not {text!r}")
    return tuple(dict.fromkeys(map(whole, parts)))


def experiment_number(text: str) -> int | str:
    """A number, or ``all``."""
    return text if text == "all" else whole(text)


def limit(parse: Callable[[str], float], most: float) -> Callable[[str], float]:
    """What reads a value as ``parse`` does, of at most ``most``, for an argument parser."""

    def read(text: str) -> float:
        try:
            value = parse(text)
        except OverflowError:
            value = math.inf
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is too large")
        return value

    return read


def flag(
    text: str,
    metavar: str = "",
    parse: Callable[[str], Any] | None = None,
    *,
    default: Any = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """A field of a request: ``text`` is its help. Without ``metavar`` it is a switch. ``parse``: text → value."""
    told = {"help": text, "metavar": metavar, "parse": parse, "aliases": aliases}
    return field(default=default if metavar else False, metadata=told)


def add_flags(parser: Parser, kind: type[Any]) -> None:
    """A flag for every field of the dataclass ``kind`` that was made by `flag`; what is not told stays None."""
    fields = sorted(dataclasses.fields(kind), key=lambda each: each.name not in kind.__annotations__)
    for each in fields:  # its own come before those of its base class
        if not each.metadata:
            continue
        shown = [f"--{name.replace('_', '-')}" for name in (each.name, *each.metadata["aliases"])]
        if each.metadata["metavar"]:
            parser.add_argument(
                *shown,
                type=each.metadata["parse"] or str,
                metavar=each.metadata["metavar"],
                help=each.metadata["help"],
            )
        else:
            parser.add_argument(*shown, action="store_true", default=None, help=each.metadata["help"])


def told(parsed: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The fields of ``kind`` that the command line sets."""
    known = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in vars(parsed).items() if name in known and value is not None}


_BUDGET_WORDS = "; ".join(f"{name}: {budget.meaning}" for name, budget in BUDGETS.items())
_NARROW = ", ".join(f"{b.cpu_width} under {name}" for name, b in BUDGETS.items() if b.cpu_width)


@dataclass(frozen=True, kw_only=True)
class Evaluating:
    """Fields that a run and an evaluation of sets that are there already have in common; None: the default."""

    known_protocols: ClassVar[tuple[str, ...]] = ("native", *PROTOCOLS)

    protocol: str = flag("native: each paper's own evaluation; common: one for all (native)", "NAME", default="native")
    network: str | None = flag("the same network for all, with its usual norm (by protocol)", "NAME")
    evaluations: tuple[str, ...] | None = flag("questions asked of each set (accuracy)", "NAMES", names)
    networks_evaluated: int | None = flag("networks trained on each distilled set (by budget)", "N", whole)
    evaluate_steps: int | None = flag("at most so many steps to train each of them (by budget)", "N", whole)
    networks_at_once: int | None = flag("train N of them at a time (as is fastest; 1 on a CPU)", "N", whole)
    device: str | None = flag(f"{NAMES} (cuda if there is one)", "NAME")
    tf32: bool = flag("let a GPU round products to TF32; off, the ridge does not survive it")
    data_root: Path | None = flag("where data sets lie (FREPO_BENCH_DATA or a cache folder)", "DIR", file_path)
    image_size: int | None = flag("resize images to N×N", "N", whole)
    download: bool = flag("fetch data sets that are missing")
    cache: Path | None = flag("for preprocessed data, expert trajectories (FREPO_BENCH_CACHE)", "DIR", file_path)
    output: Path = flag(f"records and sets ({DEFAULT_OUTPUT})", "DIR", file_path, default=DEFAULT_OUTPUT)
    time_limit: float | None = flag(
        "such as 2h: longer cells are stopped", "TIME", limit(parse_seconds, threading.TIMEOUT_MAX)
    )
    cell_timeout: float | None = flag(
        "such as 30min: a cell without progress for so long is killed (never)",
        "TIME",
        limit(parse_seconds, threading.TIMEOUT_MAX),
    )
    force: bool = flag("run again what has a result")
    jobs: int | None = flag("cells at a time (one for each GPU, unless --device names one; 1 on a CPU)", "N", whole)
    launcher: str = flag(f"who runs the cells: {', '.join(LAUNCHERS)} (local)", "NAME", default="local")
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Method, evaluation or launcher → its arguments on the command line, as ``--name.field value`` tokens."""
    command: str = ""

    def __post_init__(self) -> None:
        """Raises UserError for names that do not exist and numbers out of range, as far as that needs no data."""
        choose("protocol", self.protocol, self.known_protocols)
        if self.network is not None:
            choose("network", self.network, [*NETWORKS, "native"])
        choose("launcher", self.launcher, LAUNCHERS)
        known = evaluations.names() if self.evaluations else ()
        for name in self.evaluations or ():
            choose("evaluation", name, known)
        for name in ("networks_evaluated", "evaluate_steps", "networks_at_once", "image_size", "jobs"):
            _at_least(1, name, getattr(self, name))
        if self.device is not None:
            check_name(self.device)
        for name in self.options.keys() & LAUNCHERS.keys() - {self.launcher}:
            flags = ", ".join(flag_of(name, each) for each in typed(name, self.options[name]))
            raise UserError(f"{flags}: the launcher is {self.launcher}; say --launcher {name}, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Request(Evaluating):
    """A run as asked for: the lists span a grid; None stands for the default of budget or protocol."""

    known_protocols: ClassVar[tuple[str, ...]] = ("native", "common")

    methods: tuple[str, ...] = flag("what distils", "NAMES", names, default=(), aliases=("method",))
    datasets: tuple[str, ...] = flag("what is distilled", "NAMES", names, default=(), aliases=("dataset",))
    ipcs: tuple[int, ...] = flag("synthetic images per class (1)", "N,…", integers, default=(1,), aliases=("ipc",))
    widths: tuple[int, ...] | None = flag(
        f"of the networks, {WIDTH} as published ({WIDTH}; on a CPU {_NARROW})", "N,…", integers, aliases=("width",)
    )
    depth: int | None = flag("blocks of a ConvNet (by image size)", "N", whole)
    norm: str | None = flag("norm of the network that distils: none, batch or instance (by protocol)", "NAME")
    seeds: tuple[int, ...] | None = flag("distillation seeds (0)", "N,…", integers, aliases=("seed",))
    budget: str = flag(f"{_BUDGET_WORDS} (quick)", "NAME", default="quick")
    steps: int | None = flag("updates of the synthetic images (by method and budget)", "N", whole)
    seconds: float | None = flag("as many steps as fit into so many seconds", "S", finite)
    seconds_include_prepare: bool = flag("--seconds pays for one-off preparation too")
    curve_points: int = flag("evaluate at N log-spaced steps too (0)", "N", whole, default=0)
    ceiling: bool = flag("add networks trained on all real images, the ceiling of any table")
    no_random: bool = flag(f"do not add {FLOOR}, which else is in every table of accuracies")
    memory_limit: int | None = flag("such as 24GiB: more is out of memory", "SIZE", limit(parse_bytes, LARGEST))
    checkpoint_every: float = flag(
        "save the state of a cell so often, to go on from (5min)",
        "TIME",
        limit(parse_seconds, threading.TIMEOUT_MAX),
        default=300.0,
    )
    log: str | None = flag("tensorboard: losses, step times, memory and images, as they come", "NAME")
    interleave: bool = flag("take the steps of all methods by turns in one process; needs --budget cost")
    forecast: bool = flag("what each cell will need, and whether it fits; nothing is run")
    experiment: str = ""
    """The experiment that it is a part of; empty: none."""
    own_data: bool = False
    """Whether the experiment names the data sets, so that one that is not here is left out."""

    def __post_init__(self) -> None:
        """Raises UserError as that of the base class, and for flags that exclude each other."""
        known_methods = methods.names()
        for name in self.methods:
            choose("method", name, known_methods)
        for name in self.datasets:
            check(parse_views(name)[0])
        choose("budget", self.budget, BUDGETS)
        if self.norm is not None:
            choose("norm", self.norm, NORMS)
        if self.log is not None:
            choose("log", self.log, [TENSORBOARD])
            needed("--log tensorboard", "tensorboardX", "tensorboard")
        for name in ("ipcs", "widths", "depth", "steps"):
            _at_least(1, name, getattr(self, name))
        for name in ("seeds", "curve_points"):
            _at_least(0, name, getattr(self, name))
        super().__post_init__()
        if self.curve_points > MOST_POINTS:
            raise UserError(f"--curve-points must be at most {MOST_POINTS}, not {self.curve_points}")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds must be a positive number, not {self.seconds:g}")
        if self.seconds is not None and self.steps is not None:
            raise UserError("--steps and --seconds exclude each other: give one")
        timed = self.seconds or (self.steps is None and BUDGETS[self.budget].seconds)
        if self.seconds_include_prepare and not timed:
            raise UserError("--seconds-include-prepare means nothing without --seconds")
        if self.interleave and self.budget != COST:
            raise UserError("--interleave times steps alone: it needs --budget cost")
        if self.interleave and self.log:
            raise UserError("--interleave times steps and logs nothing: leave --log out")
        if self.interleave and self.steps is not None:
            raise UserError("--interleave takes steps for a time: give --seconds instead of --steps")
        if self.budget == COST:
            for name in EVALUATION_FIELDS:
                if getattr(self, name):
                    shown = f"--{name.replace('_', '-')}"
                    raise UserError(f"--budget cost evaluates nothing and times steps alone: leave {shown} out")
        for name, tokens in self.options.items():
            asked = self.asked_evaluations
            if name not in (*self.methods, *asked, self.launcher):
                flags = ", ".join(flag_of(name, each) for each in typed(name, tokens))
                kind, known = ("methods", self.methods) if name in methods.names() else ("evaluations", asked)
                raise UserError(f"{flags}: {name} is not among the {kind}, {', '.join(known) or 'none'}")

    @property
    def asked_evaluations(self) -> tuple[str, ...]:
        """The evaluations, by default that of accuracy; none where only costs are asked for."""
        return () if self.budget == COST else self.evaluations or ("accuracy",)


EVALUATION_FIELDS = (
    *("evaluations", "networks_evaluated", "evaluate_steps", "networks_at_once", "curve_points", "ceiling"),
    "seconds_include_prepare",
)
"""Fields that mean nothing where only costs are asked for."""


def with_floor(request: Request) -> Request:
    """``request`` with real images drawn at random among its methods, where accuracies are asked for."""
    if FLOOR in request.methods or request.budget == COST:
        return request
    return dataclasses.replace(request, methods=(*request.methods, FLOOR))


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(Evaluating):
    """Questions to sets that are there already, in a folder or in files. None: the default, or what the set says."""

    protocol: str = flag(
        "how networks are trained (as it was asked before; common for files)", "NAME", default="native"
    )
    budget: str | None = flag("how many networks, for how long (as it was asked before; quick)", "NAME")
    dataset: str | None = flag("what the set was distilled from; folder:PATH where records name a folder", "NAME")
    name: str | None = flag("what the set of a file is called in the tables", "NAME")
    preprocess: str | None = flag("the space its images lie in; a foreign file does not say", "NAME")
    experiment: int | str | None = flag(
        "which one of a file of DC, DSA or DM with several (0), or all, as so many seeds", "N", experiment_number
    )
    factor: int | None = flag("its images are cut into N by N by IDC's decoder (1); a file does not say", "N", whole)
    lr: float | None = flag("the step size that was learned with it, if no file has it", "X", finite)
    label_space: str | None = flag("of soft labels: probability, centred or logits (as their values say)", "NAME")
    class_order: str | None = flag(
        "what its label numbers mean: a file with a class on each line, or sorted, files, mtt, … (as its format says)",
        "ORDER",
    )
    width: int | None = flag(f"of the networks, {WIDTH} as published (by budget)", "N", whole)
    seed: int | None = flag("of the networks and of the order and augmentation they see (0)", "N", whole)

    def __post_init__(self) -> None:
        """Raises UserError as that of the base class, and for names that do not exist."""
        super().__post_init__()
        for kind, name, known in (
            ("preprocessing", self.preprocess, PREPROCESSINGS),
            ("budget", self.budget, BUDGETS),
            ("label space", self.label_space, ("probability", "centred", "logits")),
        ):
            if name is not None:
                choose(kind, name, known)
        if self.budget == COST:
            raise UserError("--budget cost evaluates nothing: take smoke, quick, long or paper")
        _at_least(1, "width", self.width)
        _at_least(1, "factor", self.factor)
        _at_least(0, "seed", self.seed)
        if self.name is not None:
            if self.name in (*methods.names(), WHOLE_DATA) or not self.name.strip():
                raise UserError(f"--name {self.name!r} is empty or taken: name the set, as in mtt_released")
            if self.name != printable(self.name):
                raise UserError(f"--name {self.name!r} cannot be printed: take letters and digits")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"--lr must be a positive number, not {self.lr:g}")
        for name in self.options:
            if name not in (*self.asked_evaluations, self.launcher):
                raise UserError(f"--{name}.…: {name} is not among the evaluations: name it in --evaluations")

    @property
    def asked_evaluations(self) -> tuple[str, ...]:
        """The evaluations, by default that of accuracy."""
        return self.evaluations or ("accuracy",)


FILE_FIELDS = (
    *("name", "preprocess", "experiment", "factor", "lr", "label_space", "class_order", "width", "seed", "output"),
)
"""Fields about sets in files: a folder of distillations knows them."""


def _at_least(minimum: int, name: str, value: int | Sequence[int] | None) -> None:
    for number in () if value is None else (value,) if isinstance(value, int) else value:
        if number < minimum:
            raise UserError(f"--{name.replace('_', '-')} must be at least {minimum}, not {number}")
