"""Rows of tables: distillations that differ in nothing but the seed, with the evaluations of their sets by one recipe.

A row is keyed by its *settings*, which are all that was asked for, and by its *conditions*, which are all that it was
measured with. A set that was evaluated by two recipes stands in two rows.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.data.views import split
from benchmarks.errors import UserError
from benchmarks.protocols import PROTOCOLS
from harness import evaluations
from harness.plan.jobs import ACCURACY, WHOLE_DATA, as_json
from harness.records.record import Decoder, Distilled, EvaluationRecord, Record

if TYPE_CHECKING:
    from harness.evaluations.base import Evaluation

EVALUATED = ("network", "width", "depth")
"""What a recipe says of the evaluated networks."""
METERS = {
    "nvml": ("device_bytes", "peak GPU memory, NVML (MiB)"),
    "torch": ("allocated_bytes", "peak GPU memory, allocated by torch (MiB)"),
    "host_rss": ("host_rss_bytes", "peak host RSS above baseline (MiB)"),
}
"""Meter → the number of the record it gives, and the column that shows it."""
LISTED = ("python", "torchvision", "frepo_bench", "platform", "commit", "dirty")
"""Fields of the provenance in which the records of a row may differ; the caption lists all that there were."""
IMMATERIAL = {
    "command": "how the cell was asked for: what it asked for is in the distillation and the configuration",
    "started": "when it began",
    "source": "where the images lay; the fingerprint tells them apart",
    "data_fingerprint": "the distillation has it",
    "files": "their SHA-256 are in the configuration, and a note names them",
    "class_order": "the configuration has another order than ours",
    "doubts": "they follow from the set and the data, and a note has them",
    "device": "tables hold one",
}
"""Fields of the provenance that do not tell rows apart, and why. Every other field does, an unknown one as well."""
RECIPE = ("protocol", "network", "width", "depth", "steps")
"""Fields of an evaluation's configuration that say how networks are trained: evaluations that agree share a row."""
COUNTS = ("networks", "networks_at_once")
"""Fields of an evaluation's configuration in which the evaluations of a row may differ."""
ALIKE = ("image_size", "preprocess", "dtype")
"""Fields of a distillation in which sets must agree, beside their task and recipe, to have been tested alike."""
LOOK = ("method", "dataset", "ipc", "network", "width", "steps")
"""Fields of a distillation that have a column of their own."""
OURS = "frepo"
"""The method that ratios are taken to."""
NONE = "–"


@dataclass(frozen=True)
class CurvePoint:
    """The synthetic sets of several seeds after the same share of their steps."""

    step: float
    """Mean over the seeds, as ``seconds`` of distilling is."""
    seconds: float
    values: tuple[float, ...]
    """Test accuracies over networks and seeds."""


@dataclass(frozen=True)
class Result:
    """An evaluation of a set of one distillation."""

    record: EvaluationRecord
    step: int | None
    """The set after so many steps; None: the last one."""
    own: str
    """JSON of the fields of its configuration that are neither part of a recipe nor counts."""

    @property
    def name(self) -> str:
        return self.record["evaluation"] + ("" if self.step is None else f" after step {self.step}")

    def values(self, quantity: str) -> list[float]:
        """The raw values, of an evaluation that ended well."""
        return self.record["values"].get(quantity, []) if self.record["status"] == "ok" else []


@dataclass(frozen=True)
class Member:
    """A distillation, and what one recipe says of its set."""

    record: Record
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How networks were trained, and on which kind of device; empty where no recipe was asked for."""
    evaluated_with: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Circumstances of the evaluations that are not those of the distillation."""
    results: tuple[Result, ...] = ()

    @property
    def seed(self) -> int:
        return int(self.record["distillation"]["seed"])

    def last(self, evaluation: str, own: str = "{}") -> list[Result]:
        """Evaluations of the last set."""
        return [r for r in self.results if (r.record["evaluation"], r.own, r.step) == (evaluation, own, None)]

    def values(self, quantity: str = ACCURACY) -> list[float]:
        """Values of the evaluation of the accuracy of the last set."""
        return [value for result in self.last(ACCURACY) for value in result.values(quantity)]

    @property
    def status(self) -> str:
        """How the distillation ended, or where that went well, its evaluation."""
        endings = [self.record["status"], *(result.record["status"] for result in self.last(ACCURACY))]
        return next((status for status in endings if status != "ok"), "ok")

    @property
    def points(self) -> list[CurvePoint]:
        """The curve from the snapshots to the last set. A point has no values where its set could not be tested."""
        record, tested = self.record, dict[int, list[float]]()
        for result in self.results:
            if result.record["evaluation"] == ACCURACY and result.step is not None:
                tested.setdefault(result.step, []).extend(result.values(ACCURACY))
        steps, seconds, last = record["steps"], record["cost"]["distill_seconds"], self.values()
        if not steps or not seconds or not tested or not last:
            return []
        # Times are drawn and interpolated by their logarithms, so a point at 0 seconds has no place.
        snapshots = sorted((s["step"], s["seconds"]) for s in record["snapshots"] if s["step"] < steps)
        points = [CurvePoint(step, after, tuple(tested.get(step, ()))) for step, after in snapshots if after > 0]
        return [*points, CurvePoint(steps, seconds, tuple(last))]


@dataclass(frozen=True)
class Group:
    """The distillations of a row, a seed each."""

    members: tuple[Member, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(member.record for member in self.members)

    @property
    def distillation(self) -> dict[str, Any]:
        return self.records[0]["distillation"]

    @property
    def method(self) -> str:
        return str(self.distillation["method"])

    @property
    def ceiling(self) -> bool:
        """Whether the networks were trained on all real images."""
        return self.method == WHOLE_DATA

    @property
    def is_part(self) -> bool:
        """Whether its data are a view of a data set: such sets are there for other questions than the accuracy."""
        return bool(split(self.distillation["dataset"])[1])

    @property
    def ipc(self) -> str:
        """Images per class, in words."""
        return "all" if self.ceiling else str(self.distillation["ipc"])

    @property
    def decoder(self) -> Decoder | None:
        """How the images are stored, where networks are not trained on them as they are."""
        return next((r["decoder"] for r in self.records if "decoder" in r), None)

    @property
    def evaluated(self) -> bool:
        """Whether accuracies were asked for."""
        return self.records[0]["asked"]["budget"] != "cost"

    # --- what the row is keyed by

    @property
    def recipe(self) -> Mapping[str, Any]:
        return next((member.recipe for member in self.members if member.recipe), {})

    @property
    def evaluated_on(self) -> str:
        """Network, width and depth of the evaluated networks, where they are not those of the one that distilled."""
        own = ((name, self.recipe.get(name)) for name in EVALUATED)
        return ", ".join(f"{name} {value}" for name, value in own if value not in (None, self.distillation[name]))

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that was asked for, the seed apart: the distillation, its configuration, and the recipe."""
        flat = {**_flat("config", self.records[0]["config"]), **self.distillation, **_flat("evaluation", self.recipe)}
        return {name: value for name, value in flat.items() if name != "seed"}

    @property
    def circumstances(self) -> dict[str, Any]:
        """Device, threads, versions and environment, without nulls; of the evaluation where they are others."""
        parts = [*(circumstances(r["provenance"]) for r in self.records), *(m.evaluated_with for m in self.members)]
        return {name: value for part in parts for name, value in part.items()}

    @property
    def conditions(self) -> dict[str, Any]:
        """The circumstances, the meter of memory, and whether less was prepared than is needed.

        In the last two rows may differ whose seconds are compared.
        """
        pairs = [(r["cost"]["memory"]["meter"], r["cost"]["prepare"]) for r in self.records]
        meter, prepare = (next(filter(None, values), None) for values in zip(*pairs, strict=True))
        known = {"meter": meter, "prepare": prepare}
        return self.circumstances | {name: value for name, value in known.items() if value}

    @property
    def table(self) -> tuple[str, str, str, str]:
        """Settings that all rows of a table share: device, budget, native or common protocol, and its version."""
        parts = [part["provenance"] for m in self.members for part in (m.record, *(r.record for r in m.results))]
        names = (provenance.get("device") for provenance in parts)
        device = next(filter(None, names), None) or self.distillation["device_kind"] or "unknown device"
        asked, version = self.records[0]["asked"], self.records[0]["protocol_version"]
        kind = "common" if (self.recipe or asked).get("protocol") == "common" else "native"
        tested = {r.record["protocol_version"] for m in self.members for r in m.results} - {version}
        version += f" (evaluated by {', '.join(sorted(tested))})" if tested else ""
        return device, asked["budget"], kind, version

    @property
    def contest(self) -> tuple[Any, ...]:
        """The task: data and number of images per class."""
        return self.distillation["dataset"], self.distillation["data_fingerprint"], self.distillation["ipc"]

    @property
    def test(self) -> tuple[Any, ...]:
        """Shared by groups that were evaluated alike: the task, the recipe, and images that share the pixels of one.

        The norm of the evaluated network is the protocol's.
        """
        shared = {name: self.distillation.get(name) for name in ALIKE}
        factor = 1 if self.decoder is None else self.decoder["factor"]
        return self.contest, json.dumps([shared, self.recipe], sort_keys=True), factor

    @property
    def protocol(self) -> str:
        """The name of the recipe; where nothing was evaluated, of the one that the method's paper evaluates by."""
        asked = self.records[0]["asked"]["protocol"]
        if self.recipe.get("protocol") or asked != "native":
            return str(self.recipe.get("protocol") or asked)
        import methods

        try:
            return methods.get(self.method).PROTOCOL
        except UserError:  # a method that is not installed here
            return asked

    @property
    def on_own_network(self) -> bool:
        """Whether it was evaluated as its paper does, and distilled on the network of that protocol."""
        protocol = PROTOCOLS.get(self.protocol)
        return self.table[2] == "native" and protocol is not None and protocol.network == self.distillation["network"]

    # --- what was measured

    @property
    def measured(self) -> bool:
        """Whether there is any number of a clock or a test in it."""
        return any(
            m.record["status"] == "ok"
            or m.record["cost"]["step_seconds"]
            or any(any(result.record["values"].values()) for result in m.results)
            for m in self.members
        )

    @property
    def ok(self) -> int:
        """How many distillations ended well."""
        return sum(r["status"] == "ok" for r in self.records)

    @property
    def counted(self) -> tuple[Record, ...]:
        """The distillations that ended well; all, where none did."""
        return tuple(r for r in self.records if r["status"] == "ok") or self.records

    @property
    def statuses(self) -> list[tuple[str, int]]:
        return sorted(Counter(member.status for member in self.members).items())

    @property
    def values(self) -> list[float]:
        """Test accuracies over networks and seeds."""
        return [value for member in self.members for value in member.values()]

    @property
    def step_seconds(self) -> list[float]:
        return [value for r in self.counted for value in r["cost"]["step_seconds"]]

    @property
    def median(self) -> float | None:
        """Median seconds of a step."""
        return statistics.median(self.step_seconds) if self.step_seconds else None

    @property
    def flops_per_second(self) -> float | None:
        """Operations of a step over the median of its seconds."""
        operations = self.most("flops_per_step")
        return operations / self.median if operations is not None and self.median else None

    @property
    def curve(self) -> list[CurvePoint]:
        """The points that all seeds have. Points are counted from the end: short runs lack the first ones."""
        together = zip(*(reversed(m.points) for m in self.members if m.points), strict=False)
        return [
            CurvePoint(
                statistics.fmean(point.step for point in same),
                statistics.fmean(point.seconds for point in same),
                tuple(value for point in same for value in point.values),
            )
            for same in together
            if all(point.values for point in same)
        ][::-1]

    @property
    def selection_gaps(self) -> list[float]:
        """For every seed with a curve, its highest mean accuracy less the last one: what a choice on the test images
        adds.
        """
        curves = [[statistics.fmean(p.values) for p in member.points if p.values] for member in self.members]
        return [max(means) - means[-1] for means in curves if len(means) > 1]

    def costs(self, name: str) -> list[float]:
        """A number of the cost of every distillation that has it."""
        numbers: list[Any] = [dict(r["cost"])[name] for r in self.counted]
        return [number for number in numbers if number is not None]

    def test_costs(self, name: str) -> list[float]:
        """A number of the cost of every evaluation of the accuracy that has it."""
        numbers = [result.record["cost"].get(name) for m in self.members for result in m.last(ACCURACY)]
        return [number for number in numbers if number is not None]

    def most(self, name: str) -> float | None:
        """The largest of ``costs``; None where no record has the number."""
        return max(self.costs(name), default=None)

    def peaks(self, number: str, meter: str | None = None) -> list[int]:
        """A number of bytes of every distillation that has it and whose headline meter is ``meter``."""
        memories: list[dict[str, Any]] = [dict(r["cost"]["memory"]) for r in self.counted]
        return [m[number] for m in memories if m[number] is not None and meter in (None, m["meter"])]

    def peak(self, number: str, meter: str | None = None) -> int | None:
        """The largest of ``peaks``."""
        return max(self.peaks(number, meter), default=None)

    def headline(self, meter: str) -> int | None:
        """The largest peak in bytes by ``meter``, of those records whose headline meter it is."""
        return self.peak(METERS[meter][0], meter)

    @property
    def meters(self) -> set[str]:
        """The headline meters."""
        return {str(r["cost"]["memory"]["meter"]) for r in self.counted if r["cost"]["memory"]["meter"]}

    @property
    def reduced(self) -> bool:
        """Whether less was prepared than the method needs."""
        return any(r["cost"]["prepare"] == "reduced" for r in self.counted)


def _flat(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{part}.{name}": value for name, value in values.items()}


# --- from folders to rows ---------------------------------------------------------------------------------------------


def grouped(distilled: Iterable[Distilled]) -> list[Group]:
    """The rows of all tables, sorted.

    A distillation that no recipe was asked for, as of a seed that failed, joins every row that is otherwise its own.
    """
    folders = distinct(distilled)
    names = {evaluation["evaluation"] for folder in folders for evaluation in folder.evaluations}
    grows = {name: known.grows for name in names if (known := plugin(name))}
    together: dict[str, list[Group]] = {}
    for folder in folders:
        for member in members(folder, grows):
            key = [Group((member,)).table, Group((Member(folder.record),)).settings]
            together.setdefault(json.dumps(key, sort_keys=True), []).append(Group((member,)))
    rows = []
    for same in together.values():
        for part in parted(same, lambda group: Group((Member(group.records[0]),)).conditions):
            recipes: dict[str, list[Member]] = {}
            for (member,) in (group.members for group in part):
                key = [member.recipe, member.evaluated_with]
                recipes.setdefault(json.dumps(key, sort_keys=True) if member.recipe else "", []).append(member)
            without = recipes.pop("", [])
            for evaluated in recipes.values() or [[]]:
                rows.append(Group(tuple(sorted([*evaluated, *without], key=lambda member: member.seed))))
    return sorted(rows, key=_order)


def costs_only(distilled: Iterable[Distilled]) -> list[Group]:
    """The rows that there would be without any evaluation: what distilling cost."""
    return grouped(dataclasses.replace(folder, evaluations=()) for folder in distilled)


def distinct(distilled: Iterable[Distilled]) -> list[Distilled]:
    """``distilled`` without copies, which are no second measurement; they may have been evaluated further."""
    kept: dict[str, Distilled] = {}
    for folder in distilled:
        key = json.dumps(folder.record, sort_keys=True)
        before = kept[key].evaluations if key in kept else ()
        kept[key] = dataclasses.replace(folder, evaluations=(*before, *folder.evaluations))
    return list(kept.values())


def plugin(name: str) -> type[Evaluation] | None:
    """The evaluation called ``name``; None for one that is not installed here."""
    try:
        return evaluations.get(name)
    except UserError:
        return None


def config_of(evaluation: EvaluationRecord) -> dict[str, Any]:
    """Its configuration; fields that are missing, as of an earlier version, have their defaults."""
    known = plugin(evaluation["evaluation"])
    return {**(as_json(known.Config()) if known else {}), **evaluation["config"]}


def parted(groups: Iterable[Group], known: Callable[[Group], Mapping[str, Any]]) -> list[list[Group]]:
    """``groups`` by what is ``known`` of their measurement.

    The record of a cell that was killed knows little of it and has no number: it joins those that it does not
    contradict, where these are of one kind.
    """
    pairs = [(group, known(group)) for group in groups]
    order = sorted(range(len(pairs)), key=lambda place: (not pairs[place][0].measured, -len(pairs[place][1])))
    parts: dict[str, list[int]] = {}
    for place in order:
        group, mine = pairs[place]
        fitting = [
            part
            for part in parts.values()
            if not group.measured and all(pairs[part[0]][1].get(name) == value for name, value in mine.items())
        ]
        own = parts.setdefault(json.dumps(mine, sort_keys=True), []) if len(fitting) != 1 else fitting[0]
        own.append(place)
    return [[pairs[place][0] for place in sorted(part)] for part in parts.values()]


def circumstances(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance that tells rows apart, flat and without nulls: threads, torch, driver, environment, …"""
    flat: dict[str, Any] = {}
    for name, value in provenance.items():
        if name not in LISTED and name not in IMMATERIAL:
            flat |= _flat(name, value) if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if value is not None}


def variants(groups: Sequence[Group], shown: Sequence[str] = ()) -> list[str]:
    """The settings in which groups differ that would look the same, and the circumstances in which any two differ.

    What is null says nothing. ``shown``: settings that have a column beside those of ``LOOK``.
    """
    known = [group.conditions | group.settings for group in groups]
    looks = [[settings.get(name) for name in (*LOOK, *shown)] for settings in known]
    measured = [group.circumstances for group in groups if group.measured]
    texts = []
    for group, look, mine in zip(groups, looks, known, strict=True):
        twins = [settings for settings, other in zip(known, looks, strict=True) if other == look]
        own = group.circumstances
        parts = [
            f"{name.removeprefix('config.').removeprefix('environment.')}="
            f"{str(value)[:8] if name == 'data_fingerprint' else value}"
            for name, value in mine.items()
            if value is not None
            and (
                any(twin.get(name) != value for twin in twins)
                or (name in own and any(other.get(name) != value for other in measured))
            )
        ]
        texts.append(", ".join(parts) or NONE)
    return texts


def by_table(groups: Iterable[Group]) -> dict[tuple[str, str, str, str], list[Group]]:
    """``groups`` by the table they stand in, in the order of the tables."""
    found = defaultdict[tuple[str, str, str, str], list[Group]](list)
    for group in groups:
        found[group.table].append(group)
    return dict(sorted(found.items()))


def quartiles(samples: Sequence[float]) -> tuple[float, float] | None:
    """The lower and the upper quartile; None of fewer than two samples."""
    if len(samples) < 2:
        return None
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, upper


def members(folder: Distilled, grows: Mapping[str, str | None]) -> list[Member]:
    """The distillation once for every recipe by which its set was evaluated; once without, where there is none.

    An evaluation without any field of a recipe belongs to all of them. What was asked of a set that is no longer there,
    because it was distilled again, belongs to none. ``grows``: evaluation → the field of its configuration that counts
    the values.
    """
    record = folder.record
    rows: list[tuple[dict[str, Any], dict[str, Any], list[Result]]] = []
    shared: list[Result] = []
    once = {evaluation["identity"]: evaluation for evaluation in folder.evaluations}.values()  # copies count once
    files: dict[int | None, Any] = {None: record["artifact"], **{s["step"]: s for s in record["snapshots"]}}
    for evaluation in sorted(once, key=lambda evaluation: evaluation["evaluation"] != ACCURACY):
        steps = [
            asked["step"]
            for asked in evaluation["sets"]
            if asked["distillation"] == record["identity"]
            and asked["step"] in files
            and asked["sha256"] == (files[asked["step"]] or {}).get("sha256")
        ]
        if not steps:
            continue
        name, config = evaluation["evaluation"], evaluation["config"]
        counts = {*COUNTS, grows.get(name)}
        trained = {k: v for k, v in config.items() if (k in RECIPE or name == ACCURACY) and k not in counts}
        own = {k: v for k, v in config.items() if k not in counts and k not in trained}
        result = Result(evaluation, steps[0], json.dumps(own, sort_keys=True))
        if not trained:
            shared.append(result)
            continue
        recipe = trained | {k: dict(evaluation)[k] for k in ("device_kind", "tf32")}
        differing = _differing(evaluation, record)
        fitting = [
            results
            for known, elsewhere, results in rows
            if elsewhere == differing
            and (known == recipe or (name != ACCURACY and all(known.get(k) == v for k, v in recipe.items())))
        ]
        for results in fitting:
            results.append(result)
        if not fitting:
            rows.append((recipe, differing, [result]))
    return [
        Member(record, recipe, differing, (*results, *shared)) for recipe, differing, results in rows or [({}, {}, [])]
    ]


def _differing(evaluation: EvaluationRecord, record: Record) -> dict[str, Any]:
    """Circumstances of ``evaluation`` that are not those of the distillation; a killed one knows few of them."""
    own, others = circumstances(evaluation["provenance"]), circumstances(record["provenance"])
    if any(evaluation["values"].values()):
        own |= {name: "not set" for name in others.keys() - own.keys() if name.startswith("environment.")}
    devices = [part["provenance"].get("device") for part in (evaluation, record)]
    if all(devices):
        own["device"], others["device"] = devices
    return {f"evaluation.{name}": value for name, value in sorted(own.items()) if others.get(name) != value}


def _order(group: Group) -> tuple[Any, ...]:
    asked = group.distillation
    task = (asked["dataset"], group.ceiling, asked["ipc"], asked["width"], group.method)
    return group.table, *task, json.dumps(group.circumstances | group.settings, sort_keys=True)
