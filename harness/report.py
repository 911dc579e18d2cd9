"""Records → tables: on screen, ``table.md``, ``table.tex``, ``table.csv``.

A row is a group of records that differ in nothing but the seed: the same was asked for, and it was measured with the
same. A table holds one device, one budget and one kind of protocol; what was measured by different meters, and what was
measured and what a paper reports, stand in columns apart.

    python -m harness.report results/local
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from benchmarks.errors import UserError, printable
from harness.command_line import Parser, end, exit_status, file_path
from harness.plan.experiments import BUDGETS, DEFAULT_OUTPUT
from harness.records.files import write_texts
from harness.records.record import Record, load_all, summarise

PROGRAM = "python -m harness.report"
METERS = {
    "nvml": ("device_bytes", "peak GPU memory, NVML (MiB)"),
    "torch": ("allocated_bytes", "peak GPU memory, allocated by torch (MiB)"),
    "host_rss": ("host_rss_bytes", "peak host RSS above baseline (MiB)"),
}
"""Meter → the number of the record it gives, and the column that shows it."""
LISTED = ("python", "torchvision", "frepo_bench", "platform", "commit", "dirty")
"""Fields of the provenance in which the records of a row may differ; the caption lists all that there were."""
IMMATERIAL = {
    "command": "how the cell was asked for: what it asked for is in the cell and the configuration",
    "started": "when it began",
    "data_fingerprint": "the cell has it",
    "files": "their SHA-256 are in the configuration, and a note names them",
    "class_order": "the configuration has another order than ours",
    "doubts": "they follow from the set and the data, and a note has them",
    "device": "tables hold one",
}
"""Fields of the provenance that do not tell rows apart, and why. Every other field does, an unknown one as well."""
NONE = "–"
OURS = "frepo"
"""The method that ratios are taken to."""
EVALUATION = (
    *("protocol", "network", "width", "depth", "image_size", "preprocess", "dtype", "tf32"),
    *("evaluate_steps", "networks_evaluated"),
)
"""Fields of a cell in which sets must agree, their task apart, for their accuracies to be those of the same test."""
OWN = (
    *("method", "norm", "preprocess", "protocol", "steps", "seconds_include_prepare"),
    *("networks_evaluated", "evaluate_steps", "curve_points"),
)
"""Fields of a cell in which methods may differ whose costs are compared: a method's own, and the evaluation's."""
CLAIM = (
    "Claimed by Zhou et al., NeurIPS 2022, for their GPU and cifar100 at ipc 1: frepo needs a hundredth of the time of "
    "mtt, the second best, and a tenth of the memory"
)


@dataclass(frozen=True)
class CurvePoint:
    """The synthetic sets of several seeds after the same share of their steps."""

    step: float
    """Mean over the seeds, as ``seconds`` of distilling is."""
    seconds: float
    values: tuple[float, ...]
    """Test accuracies over networks and seeds."""


@dataclass(frozen=True)
class Group:
    """Records of one setting, a seed each."""

    records: tuple[Record, ...]

    @property
    def cell(self) -> dict[str, Any]:
        return self.records[0]["cell"]

    @property
    def request(self) -> dict[str, Any]:
        """Everything that was asked for but the seed, flat."""
        flat = {**{f"config.{k}": v for k, v in self.records[0]["config"].items()}, **self.cell}
        if flat.get("seconds") is not None:
            flat.pop("steps", None)  # follows from the time, anew for every seed
        flat.pop("time_limit_seconds", None)  # only where it struck, which is a status and no setting
        flat.pop("seed")
        return flat

    @property
    def circumstances(self) -> dict[str, Any]:
        """Provenance that tells rows apart, flat and without nulls: threads, torch, driver, environment, …"""
        return {name: value for r in self.records for name, value in _circumstances(r).items()}

    @property
    def measured_with(self) -> dict[str, Any]:
        """``circumstances``, the headline meter, and whether less was prepared than the method needs."""
        parts = [(r["cost"]["memory"]["meter"], r["cost"]["prepare"]) for r in self.records]
        meter, prepare = (next(filter(None, values), None) for values in zip(*parts, strict=True))
        known = {"meter": meter, "prepare": prepare}
        return self.circumstances | {name: value for name, value in known.items() if value is not None}

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that tells the rows of a table apart, flat."""
        return self.circumstances | self.request

    @property
    def measured(self) -> bool:
        """Whether there is any number of a clock or a test in it."""
        return any(r["status"] == "ok" or r["cost"]["step_seconds"] or r["accuracy"]["values"] for r in self.records)

    @property
    def table(self) -> tuple[str, str, str, str]:
        """What all rows of a table share: device, budget, native or common protocol, and its version."""
        kind = "common" if self.cell["protocol"] == "common" else "native"
        return device(self.records[0]), self.cell["budget"], kind, self.records[0]["protocol_version"]

    @property
    def contest(self) -> tuple[Any, ...]:
        """The task: data and number of images per class."""
        return self.cell["dataset"], self.cell.get("data_fingerprint"), self.cell["ipc"]

    @property
    def evaluation(self) -> tuple[Any, ...]:
        """Shared by groups that were evaluated alike. The norm of the evaluated network is the protocol's."""
        return self.contest, *(self.cell.get(name) for name in EVALUATION)

    @property
    def counted(self) -> tuple[Record, ...]:
        """The records that ended well; all, where none did."""
        return tuple(r for r in self.records if r["status"] == "ok") or self.records

    @property
    def ok(self) -> int:
        return sum(r["status"] == "ok" for r in self.records)

    @property
    def values(self) -> list[float]:
        """Test accuracies over networks and seeds."""
        return [value for r in self.counted for value in r["accuracy"]["values"]]

    @property
    def krr_values(self) -> list[float]:
        return [value for r in self.counted for value in r["accuracy"]["krr_values"]]

    @property
    def step_seconds(self) -> list[float]:
        return [value for r in self.counted for value in r["cost"]["step_seconds"]]

    @property
    def evaluated(self) -> bool:
        """Whether accuracies were asked for."""
        return bool(self.cell["budget"] != "cost")

    @property
    def curve(self) -> list[CurvePoint]:
        """The points that all seeds have. Points are counted from the end: short runs lack the first ones."""
        together = zip(*(reversed(r["accuracy"]["curve"]) for r in self.counted), strict=False)
        points = [
            CurvePoint(
                statistics.fmean(point["step"] for point in same),
                statistics.fmean(point["seconds"] for point in same),
                tuple(value for point in same for value in point["values"]),
            )
            for same in together
            if all(point["values"] for point in same)  # none where the set could not be trained with as it was then
        ]
        return points[::-1]

    def costs(self, name: str) -> list[float]:
        """A number of the cost of every record that has it."""
        numbers: list[Any] = [dict(r["cost"])[name] for r in self.counted]
        return [number for number in numbers if number is not None]

    def most(self, name: str) -> float | None:
        """The largest of ``costs``; None where no record has the number."""
        return max(self.costs(name), default=None)

    def peak(self, meter: str) -> int | None:
        """The largest peak in bytes over the seeds, of those records whose headline meter is ``meter``."""
        memories = [dict(r["cost"]["memory"]) for r in self.counted]
        peaks: list[Any] = [m[METERS[meter][0]] for m in memories if m["meter"] == meter]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def allocated(self) -> int | None:
        """The largest peak in bytes that torch allocated on a GPU, whatever the headline meter."""
        peaks: list[Any] = [r["cost"]["memory"]["allocated_bytes"] for r in self.counted]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def meters(self) -> set[str]:
        """The headline meters."""
        return {str(r["cost"]["memory"]["meter"]) for r in self.counted if r["cost"]["memory"]["meter"]}


@dataclass(frozen=True)
class Table:
    """Cells of text, made printable; ``bold`` holds the (row, column) of the best."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", printable(self.caption))
        object.__setattr__(self, "rows", tuple(tuple(map(printable, row)) for row in self.rows))
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))


def write(records: Sequence[Record], folder: Path) -> None:
    """Write ``table.md``, ``table.tex`` and ``table.csv`` into ``folder``.

    Raises UserError where there are no records, and where the files cannot be written.
    """
    if not records:
        raise UserError(f"no records in {folder}")
    groups = grouped(records)
    tables = tabulate_all(groups)
    contents = {
        "table.md": "\n\n".join(markdown(table) for table in tables) + "\n",
        "table.tex": TEX_HEAD + "\n".join(latex(table) for table in tables),
        "table.csv": csv({**raw(group), **_raw_ratios(group, groups)} for group in groups),
    }
    write_texts(contents, folder, "the tables")


def show(records: Sequence[Record]) -> str:
    """The tables of ``records`` for a terminal."""
    return "\n\n".join(screen(table) for table in tabulate_all(grouped(records)))


def tabulate_all(groups: Sequence[Group]) -> list[Table]:
    """One table for each device, budget, kind of protocol and version of it."""
    return [tabulated([group for group in groups if group.table == key]) for key in sorted({g.table for g in groups})]


def grouped(records: Iterable[Record]) -> list[Group]:
    """Records that differ in nothing but the seed, together; sorted for a table."""
    together: dict[str, list[Group]] = {}
    for record in records:
        group = Group((record,))
        together.setdefault(json.dumps([group.table, group.request], sort_keys=True), []).append(group)
    groups = [
        Group(tuple(sorted((record for group in part for record in group.records), key=lambda r: r["cell"]["seed"])))
        for same in together.values()
        for part in parted(same, lambda group: group.measured_with)
    ]
    return sorted(groups, key=_order)


def parted(groups: Iterable[Group], known: Callable[[Group], Mapping[str, Any]]) -> list[list[Group]]:
    """``groups`` by what is ``known`` of their measurement.

    The record of a cell that was killed knows little of it and has no number: it joins those that it does not
    contradict, where these are of one kind.
    """
    groups = list(groups)
    places = {id(group): place for place, group in enumerate(groups)}
    parts: dict[str, list[Group]] = {}
    for group in sorted(groups, key=lambda group: (not group.measured, -len(known(group)))):
        mine = known(group)
        fitting = [
            part
            for part in parts.values()
            if not group.measured and all(known(part[0]).get(name) == value for name, value in mine.items())
        ]
        own = parts.setdefault(json.dumps(mine, sort_keys=True), []) if len(fitting) != 1 else fitting[0]
        own.append(group)
    return [sorted(part, key=lambda group: places[id(group)]) for part in parts.values()]


def _circumstances(record: Record) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record["provenance"].items():
        if name not in LISTED and name not in IMMATERIAL:
            flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if value is not None}


def _order(group: Group) -> tuple[Any, ...]:
    cell = group.cell
    return (
        group.table,
        cell["dataset"],
        cell["ipc"],
        cell.get("width") or 0,
        cell["method"],
        json.dumps(group.settings, sort_keys=True),
    )


def device(record: Record) -> str:
    """What the record was measured on."""
    return record["provenance"].get("device") or record["cell"].get("device_kind") or "unknown device"


# --- one group, in numbers and in words -------------------------------------------------------------------------------


def raw(group: Group) -> dict[str, Any]:
    """One row of ``table.csv``: nothing rounded; accuracies are fractions, units stand in the names."""
    name, budget, kind, version = group.table
    mean, std = summarise(group.values)
    krr_mean, krr_std = summarise(group.krr_values)
    seconds = group.step_seconds
    lower, upper = quartiles(seconds) or (None, None)
    memories: list[dict[str, Any]] = [dict(r["cost"]["memory"]) for r in group.counted]
    reported = next(iter(reported_for(group)), {})
    to_share, is_bound = time_to_share(group) or (None, None)
    return {
        "device": name,
        "protocol_kind": kind,
        "protocol_version": version,
        **group.settings,
        "steps": steps(group),
        "budget": budget,
        "seeds": " ".join(str(r["cell"]["seed"]) for r in group.records),
        "statuses": " ".join(f"{status}:{count}" for status, count in sorted(_statuses(group).items())),
        "n": len(group.values),
        "accuracy_mean": mean,
        "accuracy_std": std,
        "krr_accuracy_mean": krr_mean,
        "krr_accuracy_std": krr_std,
        "step_seconds_median": statistics.median(seconds) if seconds else None,
        "step_seconds_lower_quartile": lower,
        "step_seconds_upper_quartile": upper,
        "step_seconds_mean": statistics.fmean(seconds) if seconds else None,
        **{
            f"{part}_mean": statistics.fmean(group.costs(part)) if group.costs(part) else None
            for part in ("prepare_seconds", "compile_seconds", "distill_seconds", "evaluate_seconds")
        },
        "seconds_to_92_percent_of_final_accuracy": to_share,
        "seconds_to_92_percent_are_upper_bound": is_bound,
        **{
            f"peak_{number}": max((m[number] for m in memories if m[number] is not None), default=None)
            for number in ("device_bytes", "allocated_bytes", "reserved_bytes", "host_rss_bytes")
        },
        "headline_meter": " ".join(sorted(group.meters)) or None,
        "prepare": "reduced" if _reduced(group) else None,
        **{name: group.most(name) for name in COUNTERS},
        "parameters": next(iter(group.costs("parameters")), None),
        "parameters_evaluated": next(iter(group.costs("parameters_evaluated")), None),
        **{name: _listed(r["provenance"].get(name) for r in group.records) for name in LISTED},
        "reported_accuracy": reported.get("accuracy"),
        "reported_std": reported.get("std"),
        "reported_source": sources()[reported["source"]] if reported else None,
    }


COUNTERS = ("peak_live_bytes", "flops_per_step", "saved_bytes_per_step", "forecast_bytes", "joules_per_step")


def quartiles(samples: Sequence[float]) -> tuple[float, float] | None:
    """The lower and the upper one; None of fewer than two samples."""
    if len(samples) < 2:
        return None
    lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return lower, upper


def _reduced(group: Group) -> bool:
    return any(r["cost"]["prepare"] == "reduced" for r in group.counted)


@dataclass(frozen=True)
class Ratios:
    """What a method takes of what ``OURS`` takes; None where one of the two was not measured."""

    seconds: float | None = None
    """Ratio of the medians of an iteration."""
    operations: float | None = None
    """Ratio of the operations of an iteration, which take no clock to count."""
    memory: float | None = None
    """Ratio of the peaks, as ``meter`` has both."""
    meter: str | None = None
    allocated: float | None = None
    """Ratio of the peaks that torch allocated on the GPU: without context, cache and libraries, which flatten it."""
    live: float | None = None
    """Ratio of the peaks of live tensors."""


def ratios(group: Group, groups: Iterable[Group]) -> Ratios:
    """To the one group of ``OURS`` among ``groups`` on the same device, data, network and width.

    None where there is no such group, where there are several by the same meter, and where one of the two did not end
    well.
    """
    same = [g for g in groups if g.cell["method"] == OURS and g.ok and _setting(g) == _setting(group)]
    if len(same) > 1:
        same = [g for g in same if g.meters == group.meters]
    if len(same) != 1 or not group.ok:
        return Ratios()
    (ours,) = same

    def ratio(theirs: float | None, own: float | None) -> float | None:
        return theirs / own if theirs is not None and own else None

    meter = next((meter for meter in METERS if meter in group.meters & ours.meters), None)
    return Ratios(
        seconds=ratio(_median(group.step_seconds), _median(ours.step_seconds)),
        operations=ratio(group.most("flops_per_step"), ours.most("flops_per_step")),
        memory=ratio(group.peak(meter), ours.peak(meter)) if meter else None,
        meter=meter,
        allocated=ratio(group.allocated, ours.allocated),
        live=ratio(group.most("peak_live_bytes"), ours.most("peak_live_bytes")),
    )


def _setting(group: Group) -> tuple[Any, ...]:
    """What groups share whose costs are compared: everything but the method and what is the method's own."""
    shared = {k: v for k, v in group.settings.items() if k not in OWN and not k.startswith("config.") and v is not None}
    return group.table, group.contest, json.dumps(shared, sort_keys=True)


def _raw_ratios(group: Group, groups: Sequence[Group]) -> dict[str, float | None]:
    """For ``table.csv``; the iterations of a shortened schedule are not the published ones, and have none."""
    found = Ratios() if group.evaluated else ratios(group, groups)
    return {
        f"step_seconds_over_{OURS}": found.seconds,
        f"flops_per_step_over_{OURS}": found.operations,
        f"peak_memory_over_{OURS}": found.memory,
        f"peak_allocated_over_{OURS}": found.allocated,
        f"peak_live_bytes_over_{OURS}": found.live,
    }


def _median(samples: Sequence[float]) -> float | None:
    return statistics.median(samples) if samples else None


def steps(group: Group) -> str | None:
    """The number of outer steps, or the range of those that a time budget gave the seeds."""
    found = sorted({r["cell"]["steps"] for r in group.records if r["cell"].get("steps") is not None})
    if not found:
        return None
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def _statuses(group: Group) -> Counter[str]:
    return Counter(r["status"] for r in group.records)


def accuracy(group: Group) -> str:
    """``93.0 ± 0.4``, with a mark for the seeds that did not end well."""
    failed = [f"{status} {count} of {len(group.records)}" for status, count in sorted(_statuses(group).items())]
    if not group.ok:
        return failed[0] if len(group.records) > 1 else group.records[0]["status"]
    marks = [mark for mark in failed if not mark.startswith("ok ")]
    return " ".join([_percent(*summarise(group.values)), *(f"({mark})" for mark in marks)])


def _count(group: Group) -> str:
    """``networks × seeds``."""
    total = len(group.values) if group.ok else 0
    return f"{total // group.ok} × {group.ok}" if total and total % group.ok == 0 else str(total)


def _percent(mean: float | None, std: float | None) -> str:
    if mean is None:
        return NONE
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def _number(values: Sequence[float], summary: Callable[[Sequence[float]], float], form: str) -> str:
    return format(summary(values), form) if values else NONE


# --- what the papers report -------------------------------------------------------------------------------------------


@cache
def _reported() -> dict[str, Any]:
    file = Path(__file__).with_name("reports") / "reported.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def sources() -> Mapping[str, str]:
    """The publications of ``reported.json``: key → citation."""
    found: dict[str, str] = _reported()["sources"]
    return found


def reported_for(group: Group) -> list[dict[str, Any]]:
    """What papers report for the method, data set and ipc of ``group``."""
    wanted = tuple(group.cell[key] for key in ("method", "dataset", "ipc"))
    return [e for e in _reported()["entries"] if (e["method"], e["dataset"], e["ipc"]) == wanted]


def _reported_text(group: Group, numbering: Mapping[str, int]) -> str:
    parts = []
    for entry in reported_for(group):
        text = _percent(entry["accuracy"], entry["std"]) + ("†" if entry["rerun"] else "")
        if "krr_accuracy" in entry:
            text += f", KRR {_percent(entry['krr_accuracy'], entry['krr_std'])}"
        parts.append(f"{text} [{numbering[entry['source']]}]")
    return "; ".join(parts) or NONE


# --- a table ----------------------------------------------------------------------------------------------------------


def tabulated(groups: Sequence[Group]) -> Table:
    """The table of groups that share device, budget and kind of protocol; columns that nobody fills are left out."""
    evaluated = groups[0].evaluated
    used = dict.fromkeys(entry["source"] for group in groups for entry in reported_for(group) if evaluated)
    numbering = {source: i for i, source in enumerate(used, start=1)}

    score = "accuracy (%)"
    columns: dict[str, list[str]] = {
        "method": [group.cell["method"] for group in groups],
        "setting": variants(groups),
        "data set": [group.cell["dataset"] for group in groups],
        "ipc": [str(group.cell["ipc"]) for group in groups],
        "network": [str(group.cell.get("network") or NONE) for group in groups],
        "width": [str(group.cell.get("width") or NONE) for group in groups],
        "parameters": [_number(group.costs("parameters"), max, ",.0f") for group in groups],
        "steps": [steps(group) or NONE for group in groups],
        **({score: [accuracy(group) for group in groups], **_scores(groups)} if evaluated else _costs(groups)),
        "prepare (s)": [_prepare(group) for group in groups],
        "distil (s)": [_number(group.costs("distill_seconds"), statistics.fmean, ".1f") for group in groups],
    }
    if evaluated:
        columns["reported by papers, not measured here (%)"] = [_reported_text(group, numbering) for group in groups]
    filled = {title: cells for title, cells in columns.items() if set(cells) - {NONE}}
    best = _best(groups)
    notes = [*claims(groups), *(f"[{number}] {sources()[source]}." for source, number in numbering.items())]
    if any(entry["rerun"] for group in groups for entry in reported_for(group) if evaluated):
        first = numbering["frepo-table1"]
        notes.append(f"† run again by the authors of [{first}], better than first published.")
    notes += [_origin(group) for group in groups if "files" in group.records[0]["provenance"]]
    notes += [
        f"{r['status']}: {r['cell']['method']} on {r['cell']['dataset']}, ipc {r['cell']['ipc']}, "
        f"width {r['cell'].get('width')}, seed {r['cell']['seed']}: {' '.join((r['message'] or 'no message').split())}"
        for group in groups
        for r in group.records
        if r["status"] != "ok" or r["message"] is not None
    ]
    notes += [
        f"{title}: {r['cell']['method']} on {r['cell']['dataset']}, ipc {r['cell']['ipc']}, "
        f"width {r['cell'].get('width')}, seed {r['cell']['seed']}: {words}."
        for title, name in (
            ("Other work on the device", "busy"),
            ("No peak by NVML, or not of all the time", "missing"),
        )
        for group in groups
        for r in group.records
        if (words := dict(r["cost"]["memory"])[name])
    ]
    return Table(
        caption=_caption(groups, best, reported=bool(used)),
        columns=tuple(filled),
        rows=tuple(zip(*filled.values(), strict=True)),
        bold=frozenset((i, list(filled).index(score)) for i in best),
        notes=tuple(notes),
    )


def _origin(group: Group) -> str:
    """Where a set comes from that was only evaluated here."""
    files = [f"{f['name']} (SHA-256 {f['sha256'][:8]}…)" for f in group.records[0]["provenance"]["files"]]
    cell = group.cell
    return " ".join(
        [
            f"{cell['method']} on {cell['dataset']}, ipc {cell['ipc']}: not distilled here but read from "
            f"{', '.join(files)}; real images go through its own preprocessing, {cell['preprocess']}.",
            *group.records[0]["provenance"].get("doubts", []),
        ]
    )


def _scores(groups: Sequence[Group]) -> dict[str, list[str]]:
    """What stands beside the accuracy."""
    return {
        "n": [_count(group) for group in groups],
        "KRR accuracy (%)": [_percent(*summarise(group.krr_values)) for group in groups],
        "s/iteration (median)": [_number(group.step_seconds, statistics.median, ".3g") for group in groups],
        **{title: [_mebibytes(group.peak(meter)) for group in groups] for meter, (_, title) in METERS.items()},
    }


def _costs(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Of a table without accuracies: the costs, and beside each what it is of that of ``OURS``; a mark for failure."""
    found = [ratios(group, groups) for group in groups]
    seconds = [_number(group.step_seconds, statistics.median, ".3g") for group in groups]
    spreads = [quartiles(group.step_seconds) for group in groups]
    return {
        "s/iteration (median)": [
            (text if group.ok else "") + _marks(group) for group, text in zip(groups, seconds, strict=True)
        ],
        "s/iteration (quartiles)": [
            NONE if spread is None or not group.ok else f"{spread[0]:.3g} to {spread[1]:.3g}"
            for group, spread in zip(groups, spreads, strict=True)
        ],
        "s/iteration (mean)": [
            _number(group.step_seconds, statistics.fmean, ".3g") if group.ok else NONE for group in groups
        ],
        f"s/iteration (median) ÷ {OURS}": [_times(ratio.seconds) for ratio in found],
        f"operations ÷ {OURS}": [_times(ratio.operations) for ratio in found],
        **{
            title: [_mebibytes(group.peak(meter)) if group.ok else NONE for group in groups]
            for meter, (_, title) in METERS.items()
        },
        METERS["torch"][1]: [_mebibytes(group.allocated) if group.ok else NONE for group in groups],
        f"memory ÷ {OURS}": [_times(ratio.memory) for ratio in found],
        f"allocated ÷ {OURS}": [_times(ratio.allocated) for ratio in found],
        "peak of live tensors (MiB)": [
            _mebibytes(group.most("peak_live_bytes")) if group.ok else NONE for group in groups
        ],
        f"live tensors ÷ {OURS}": [_times(ratio.live) for ratio in found],
        "GFLOP/iteration": [_short(group.most("flops_per_step"), 1e9) for group in groups],
        "J/iteration": [_number(group.costs("joules_per_step"), statistics.fmean, ".3g") for group in groups],
    }


def _marks(group: Group) -> str:
    """The status where the group did not end well; behind a number, that of the seeds that did not."""
    if not group.ok:
        return accuracy(group)
    failed = [f" ({s} {n} of {len(group.records)})" for s, n in sorted(_statuses(group).items()) if s != "ok"]
    return "".join(failed)


def _short(number: float | None, unit: float = 1.0) -> str:
    """Three digits, or all before the point."""
    return NONE if number is None else f"{number / unit:{'.3g' if number < 999.5 * unit else ',.0f'}}"


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def _prepare(group: Group) -> str:
    return _number(group.costs("prepare_seconds"), statistics.fmean, ".1f") + (" (reduced)" if _reduced(group) else "")


# --- what the paper claims, and what was measured here ----------------------------------------------------------------


def time_to(curve: Sequence[CurvePoint], target: float) -> tuple[float, bool] | None:
    """Seconds of distilling until the mean accuracy first reaches ``target``, and whether they are an upper bound.

    Between the last point below and the first one not below, the accuracy is taken as linear in the logarithm of the
    time. An upper bound: the first point measured is not below. None: no point reaches it.
    """
    before: tuple[float, float] | None = None
    for point in curve:
        mean = statistics.fmean(point.values)
        if mean >= target:
            if before is None or not before[1]:
                return point.seconds, True
            low, start = before
            share = (target - low) / (mean - low)
            return start * math.exp(share * math.log(point.seconds / start)), False
        before = mean, point.seconds
    return None


def time_to_share(group: Group, share: float = 0.92) -> tuple[float, bool] | None:
    """As ``time_to``, to that share of the accuracy that the curve ends with; None without a curve.

    FRePo's paper says how long it takes to 92 % of its final accuracy: 385 s for CIFAR-100 at one image per class.
    """
    curve = group.curve
    return time_to(curve, share * statistics.fmean(curve[-1].values)) if curve else None


def claims(groups: Sequence[Group]) -> list[str]:
    """What the paper claims of time and memory, and after it what the ``groups`` of one table have measured of it."""
    ours = [group for group in groups if group.cell["method"] == OURS and group.ok]
    lines = [line for own in ours for line in _accuracies(own, groups)] if groups[0].evaluated else _iterations(groups)
    if not lines:
        return []
    units = " (seconds until an accuracy is reached; in brackets with the preparation)"
    return [f"{CLAIM}. Measured here, on {device(groups[0].records[0])}{units if groups[0].evaluated else ''}:", *lines]


def _iterations(groups: Sequence[Group]) -> list[str]:
    """A line for every method, data set, ipc, network and setting, at the largest width that has a ratio."""
    largest: dict[tuple[Any, ...], str] = {}
    for group, setting in zip(groups, variants(groups), strict=True):  # in the order of their widths
        cell, found = group.cell, ratios(group, groups)
        if cell["method"] == OURS or found.seconds is None:
            continue
        operations = "" if found.operations is None else f" ({_times(found.operations)} the operations)"
        memory = "" if found.memory is None else f" and {_memory(found)}"
        where = f"{cell['dataset']}, ipc {cell['ipc']}, {cell['network']}, width {cell['width']}"
        where += "" if setting == NONE else f", {setting}"
        takes = f"takes {_times(found.seconds)} the time{operations}{memory} of {OURS}'s"
        key = cell["method"], *group.contest, cell["network"], setting
        largest[key] = f"{where}: an iteration of {cell['method']} {takes}."
    return list(largest.values())


def _memory(found: Ratios) -> str:
    assert found.meter is not None
    return f"{_times(found.memory)} the memory ({METERS[found.meter][1].removesuffix(' (MiB)')})"


def _accuracies(ours: Group, groups: Sequence[Group]) -> list[str]:
    """A line for every rival that was measured and evaluated alike: the times to equal accuracy, and the memory."""
    lines = []
    for group in groups:
        cell = group.cell
        rival = cell["method"] != OURS and group.ok and min(len(group.curve), len(ours.curve)) > 1
        if not rival or (group.evaluation, group.circumstances) != (ours.evaluation, ours.circumstances):
            continue
        found = ratios(group, [ours])
        parts = [_equal_accuracy(ours, group, ended) for ended in (group, ours)]
        if found.memory is not None:
            parts.append(f"{cell['method']} takes {_memory(found)} of {OURS}")
        where = f"{cell['dataset']}, ipc {cell['ipc']}, width {cell['width']}, budget {cell['budget']}"
        lines.append(f"{where}: {'; '.join(parts)}.")
    return lines


def _equal_accuracy(ours: Group, rival: Group, ended: Group) -> str:
    """The times that both need for the accuracy that ``ended`` has in the end; in brackets with the preparation.

    Behind the ratio of the times that of the operations of as many steps, where they were counted.
    """
    target = statistics.fmean(ended.curve[-1].values)
    texts, times, operations, bounds = [], [], [], []
    for group in (ours, rival):
        found, name = time_to(group.curve, target), group.cell["method"]
        seconds, bound = found or (group.curve[-1].seconds, False)
        whole = seconds + statistics.fmean(group.costs("prepare_seconds") or [0.0])
        text = f"{_short(seconds)} s ({_short(whole)} s)"
        if found is None:
            texts.append(f"{name} not reached in the time measured, {text}")
            continue
        texts.append(f"{name} {'at most ' if bound else ''}{text}")
        times.append((seconds, whole))
        operations.append(seconds * _operations_per_second(group))
        bounds.append(bound)
    shown = f"to {target:.1%}, where {ended.cell['method']} ended: {', '.join(texts)}"
    if len(times) < 2 or all(bounds):
        return shown
    kind = "at least " if bounds[0] else "at most " if bounds[1] else ""
    apart, whole_ratio = (_times(theirs / own) for own, theirs in zip(*times, strict=True))
    counted = f", with {kind}{_times(operations[1] / operations[0])} the operations" if all(operations) else ""
    return f"{shown}, that is {kind}{apart} ({whole_ratio}){counted}"


def _operations_per_second(group: Group) -> float:
    """Operations per second of distilling; 0 where they were not counted."""
    end = group.curve[-1]
    return (group.most("flops_per_step") or 0.0) * end.step / end.seconds if end.seconds else 0.0


def _best(groups: Sequence[Group]) -> set[int]:
    """The indices of the groups with the highest mean accuracy among at least two that were evaluated alike."""
    means = {i: statistics.fmean(group.values) for i, group in enumerate(groups) if group.ok and group.evaluated}
    best = set()
    for i, mean in means.items():
        rivals = [means[j] for j in means if groups[j].evaluation == groups[i].evaluation]
        if len(rivals) > 1 and mean == max(rivals):
            best.add(i)
    return best


def variants(groups: Sequence[Group]) -> list[str]:
    """For groups that would look the same, the settings in which they differ; for all, what they were measured with
    where that differs."""
    shown = ("method", "dataset", "ipc", "network", "width", "steps")
    texts = []
    for group in groups:
        twins = [g for g in groups if all(g.cell.get(key) == group.cell.get(key) for key in shown)]
        own, others = group.circumstances, [g.circumstances for g in groups if g.measured]
        known = group.measured_with | group.request
        parts = [
            f"{name.removeprefix('config.').removeprefix('environment.')}={_abbreviated(name, value)}"
            for name, value in known.items()
            if any((twin.measured_with | twin.request).get(name) != value for twin in twins)
            or (name in own and any(other.get(name) != value for other in others))
        ]
        texts.append(", ".join(parts) or NONE)
    return texts


def _abbreviated(name: str, value: Any) -> Any:
    return str(value)[:8] if name == "data_fingerprint" else value


def _caption(groups: Sequence[Group], best: set[int], *, reported: bool) -> str:
    cells = [group.cell for group in groups]
    sentences = [
        *measured_on(groups),
        f"Networks: {_listed(cell.get('network') for cell in cells)}; width {_listed(c.get('width') for c in cells)}",
    ]
    if not groups[0].evaluated:
        sentences.append(
            "Nothing was distilled to its end or evaluated. Seconds are those of one update of the synthetic images, "
            f"over windows of whole cycles after the warm-up. ÷ {OURS}: to {OURS} on the same data, network and width. "
            "Ratios of times are those of operations where every operation takes equally long"
        )
    else:
        sentences += [
            f"Accuracy: top-1 on the test set after the last step, {accuracy_words(groups)}",
            f"Bold: the best of at least two rows that were {_ALIKE}"
            if best
            else f"No row is bold as the best: no two were {_ALIKE}",
        ]
    sentences += _times_words(groups)
    if not groups[0].evaluated:
        return ". ".join(sentences) + "."
    contests = {group.contest: f"{group.cell['dataset']} at ipc {group.cell['ipc']}" for group in groups}
    with_random = {group.contest for group in groups if group.cell["method"] == "random_real"}
    if missing := [text for contest, text in contests.items() if contest not in with_random]:
        sentences.append(f"Not measured here: random_real on {', '.join(missing)}")
    if reported:
        sentences.append("The last column is what papers report for their full schedules, not measured here")
    return ". ".join(sentences) + "."


_ALIKE = (
    "evaluated alike, on the same data at the same ipc: recipe, network, width, preprocessing, training steps and "
    "number of networks"
)


def accuracy_words(groups: Iterable[Group]) -> str:
    """How many networks the accuracies are of, whether there is a deviation, and whether evaluation was shortened."""
    groups = list(groups)
    counts = {len(values) for g in groups for values in (g.values, *(p.values for p in g.curve)) if g.ok and values}
    shortened = _listed(group.cell.get("evaluate_steps") for group in groups)
    if counts == {1}:
        words = "of n = 1 evaluated network, without a deviation"
    else:
        alone = ", no deviation where n is 1" if 1 in counts else ""
        listed = f"n = {_listed(counts)} " if counts else ""
        words = f"mean ± sample standard deviation over {listed}(evaluated networks × seeds){alone}"
    return words + (f"; evaluation shortened to at most {shortened} training steps" if shortened else "")


def _times_words(groups: Sequence[Group]) -> list[str]:
    """Name what the seconds depend on beside the machine: a sentence each, without its stop."""
    windows = _span(number for group in groups for number in group.costs("steps_per_sample"))
    at_once = _listed(number for group in groups for number in group.costs("networks_at_once"))
    sentences = {
        f"Iterations in a sample of the seconds: {windows}": windows,
        f"Networks evaluated at a time: {at_once}": at_once,
        "prepare reduced: real experts, but fewer and shorter than the method needs": any(map(_reduced, groups)),
        "prepare counts what lay in the cache with the seconds that it took when it was made": any(
            any(group.costs("prepare_cached")) for group in groups
        ),
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def _span(numbers: Iterable[float]) -> str:
    values = sorted(set(numbers))
    return "–".join(f"{value:g}" for value in dict.fromkeys((values[0], values[-1]))) if values else ""


def measured_on(groups: Sequence[Group]) -> list[str]:
    """Budget, protocol, and what the ``groups`` of one table were measured on: a sentence each, without its stop."""
    name, budget, kind, version = groups[0].table
    records = [record for group in groups for record in group.records]
    known: dict[str, list[Any]] = {name: [] for name in ("torch", "python", "cuda", "driver")}
    for record in records:
        listed = {name: record["provenance"].get(name) for name in LISTED if name not in ("commit", "dirty")}
        for key, value in {**listed, **_circumstances(record)}.items():
            known[key] = [*known.get(key, []), value]
    threads = _listed(known.pop("threads", []))
    versions = [
        f"{key.removeprefix('environment.')} {text}" for key, values in known.items() if (text := _listed(values))
    ]
    natives = sorted({f"{group.cell['method']}: {group.cell['protocol']}" for group in groups})
    return [
        f"Budget {budget}" + (f" ({BUDGETS[budget].meaning})" if budget in BUDGETS else ""),
        f"Protocol {kind}, version {version}" + (f" ({', '.join(natives)})" if kind == "native" else ""),
        f"Measured on {name}"
        + (f", CPU threads: {threads}" if threads else "")
        + f"; {', '.join([*versions, *_commits(records)])}",
    ]


def _commits(records: Iterable[Record]) -> list[str]:
    """The commits of the code, and which of them had changes that were not committed."""
    known = {(str(r["provenance"].get("commit") or "unknown")[:8], bool(r["provenance"].get("dirty"))) for r in records}
    texts = [commit + (" with uncommitted changes" if dirty else "") for commit, dirty in sorted(known)]
    return [] if texts == ["unknown"] else [f"commit{'s' if len(texts) > 1 else ''} {', '.join(texts)}"]


def _listed(values: Iterable[Any]) -> str:
    """The different values, nulls apart: numbers in their order, then texts."""
    texts = {str(value): value for value in values if value is not None}
    numbers = [text for text, value in texts.items() if isinstance(value, (int, float))]
    return ", ".join([*sorted(numbers, key=lambda text: texts[text]), *sorted(texts.keys() - set(numbers))])


def _mebibytes(number: float | None) -> str:
    """Two digits, or all before the point."""
    if number is None:
        return NONE
    mebibytes = number / 2**20
    return f"{mebibytes:{'.2g' if mebibytes < 9.95 else ',.0f'}}"


# --- renderings -------------------------------------------------------------------------------------------------------

_LEFT = {"method", "setting", "data set", "network"}


def markdown(table: Table) -> str:
    """The caption, the table, and the notes, a paragraph each."""
    rows = [[literal(cell) for cell in row] for row in table.rows]
    grid = _grid(table.columns, _marked(rows, table.bold), "pipe")
    return "\n\n".join([literal(table.caption), grid, *map(literal, table.notes)])


def literal(text: str) -> str:
    """``text`` for Markdown, where it shows as it is, in a table as well."""
    return re.sub(r"([\\`*|]|<(?=[a-zA-Z/!?]))", r"\\\1", printable(text))


def csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line for each of ``rows``; line breaks and escape codes show as in a string of Python."""
    shown = ({printable(k): printable(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    return pd.DataFrame(shown).to_csv(index=False)


def screen(table: Table) -> str:
    """The same for a terminal: narrow columns, wrapped text."""
    columns = ["\n".join(_narrow(column)) for column in table.columns]
    texts = [textwrap.fill(text, 100) for text in (table.caption, *table.notes)]
    grid = _grid(columns, _marked(table.rows, table.bold), "simple")
    return "\n\n".join([texts[0], grid, "\n".join(texts[1:])]).rstrip()


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    align = ["left" if column.replace("\n", " ") in _LEFT else "right" for column in columns]
    return tabulate(rows, headers=columns, tablefmt=form, disable_numparse=True, colalign=align)


def _marked(rows: Sequence[Sequence[str]], bold: frozenset[tuple[int, int]]) -> list[list[str]]:
    return [[f"**{cell}**" if (i, j) in bold else cell for j, cell in enumerate(row)] for i, row in enumerate(rows)]


def _narrow(title: str) -> list[str]:
    return textwrap.wrap(title, 10, break_long_words=False)


TEX_HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"{{{character}}}" for character in "[*"},  # what a line break would take for its argument
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"$^\dagger$",
    "–": "--",
    "÷": r"$\div$",
}


def latex(table: Table) -> str:
    """A floating table with the rules of booktabs, as wide as the text."""

    def stack(column: str) -> str:
        return r"\shortstack{" + r" \\ ".join(_escape(part) for part in _narrow(column)) + "}"

    def line(i: int, row: Sequence[str]) -> str:
        texts = [_escape(cell) for cell in row]
        return " & ".join(rf"\textbf{{{t}}}" if (i, j) in table.bold else t for j, t in enumerate(texts)) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(table.caption)}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{''.join('l' if column in _LEFT else 'r' for column in table.columns)}}}",
            r"\toprule",
            " & ".join(stack(column) for column in table.columns) + r" \\",
            r"\midrule",
            *(line(i, row) for i, row in enumerate(table.rows)),
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip{{\footnotesize {_escape(note)}\par}}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def _escape(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """``python -m harness.report FOLDER``: make the tables again from the records. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program))


def _main(arguments: Sequence[str], program: str) -> int:
    folder, records, whole = read_folder(program, "Make the tables of a folder again.", arguments)
    write(records, folder)
    print(show(records))
    return 0 if whole else 1


def read_folder(program: str, description: str, arguments: Sequence[str]) -> tuple[Path, list[Record], bool]:
    """The folder that a command line names, its records, and whether no file there is damaged; each that is has a line.

    Raises UserError for no folder, and for one that is not there.
    """
    parser = Parser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("folder", type=file_path, nargs="?", help="where the records are")
    folder: Path | None = parser.parse(arguments).folder
    if folder is None:
        raise UserError(f"no folder is given; for instance: {program} {DEFAULT_OUTPUT}")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder" if folder.exists() else f"no such folder: {folder}")
    records, damaged = load_all(folder)
    for line in damaged:
        print(printable(line), file=sys.stderr)
    return folder, records, not damaged


if __name__ == "__main__":
    end(main())
