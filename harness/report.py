"""Records → tables: on screen, ``table.md``, ``table.tex``, ``table.csv``.

A row is a group of records that differ in nothing but the seed. A table holds one device, one budget and one kind of
protocol; what was measured by different meters, and what was measured and what a paper reports, stand in columns apart.

    python -m harness.report results/local
"""

from __future__ import annotations

import json
import math
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

from benchmarks.errors import UserError
from harness.command_line import Parser, end, exit_status, file_path
from harness.experiments import BUDGETS, DEFAULT_OUTPUT
from harness.files import write_texts
from harness.record import Record, load_all, summarise

PROGRAM = "python -m harness.report"
METERS = {
    "nvml": ("device_bytes", "peak GPU memory, NVML (MiB)"),
    "torch": ("allocated_bytes", "peak GPU memory, allocated by torch (MiB)"),
    "host_rss": ("host_rss_bytes", "peak host RSS above baseline (MiB)"),
}
"""Meter → the number of the record it gives, and the column that shows it."""
NONE = "–"
OURS = "frepo"
"""The method that ratios are taken to."""
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
    def settings(self) -> dict[str, Any]:
        """Everything that determined the result and its seconds but device and seed, flat."""
        flat = {**{f"config.{k}": v for k, v in self.records[0]["config"].items()}, **self.cell}
        flat["data_fingerprint"] = str(flat.get("data_fingerprint"))[:8]
        flat["threads"] = threads(self.records[0])
        if flat.get("seconds") is not None:
            flat.pop("steps", None)  # found from the time, anew for every seed
        flat.pop("time_limit_seconds", None)  # only where it struck, which is a status and no setting
        flat.pop("seed")
        return flat

    @property
    def table(self) -> tuple[str, str, str, str]:
        """What all rows of a table share: device, budget, native or common protocol, and its version."""
        kind = "common" if self.cell["protocol"] == "common" else "native"
        return device(self.records[0]), self.cell["budget"], kind, self.records[0]["protocol_version"]

    @property
    def contest(self) -> tuple[Any, ...]:
        """What groups must share for one of them to be the best."""
        return self.cell["dataset"], self.cell.get("data_fingerprint"), self.cell["ipc"]

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
    """Cells of text; ``bold`` holds the (row, column) of the best."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]]
    notes: tuple[str, ...]


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
        "table.csv": pd.DataFrame({**raw(group), **_raw_ratios(group, groups)} for group in groups).to_csv(index=False),
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
    together: dict[str, list[Record]] = {}
    for record in records:
        group = Group((record,))
        together.setdefault(json.dumps([group.table, group.settings], sort_keys=True), []).append(record)
    groups = [Group(tuple(sorted(same, key=lambda r: r["cell"]["seed"]))) for same in together.values()]
    return sorted(groups, key=_order)


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


def threads(record: Record) -> int | None:
    """CPU threads that its seconds depend on; None for a GPU, and where nobody noted them."""
    return record["provenance"].get("threads") if record["cell"].get("device_kind") == "cpu" else None


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
        **{name: max(group.costs(name), default=None) for name in COUNTERS},
        "parameters": next(iter(group.costs("parameters")), None),
        "parameters_evaluated": next(iter(group.costs("parameters_evaluated")), None),
        "torch": _versions(group.records, "torch"),
        "python": _versions(group.records, "python"),
        "commit": _versions(group.records, "commit"),
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
    """Of the median of an iteration."""
    memory: float | None = None
    """Of the peaks, as ``meter`` has both."""
    meter: str | None = None
    allocated: float | None = None
    """Of the peaks that torch allocated on the GPU: without context, cache and libraries, which flatten a ratio."""
    live: float | None = None
    """Of the peaks of live tensors."""


def ratios(group: Group, groups: Iterable[Group]) -> Ratios:
    """To the one group of ``OURS`` among ``groups`` on the same device, data, network and width.

    None where there is no such group or more than one, and where one of the two did not end well.
    """
    same = [g for g in groups if g.cell["method"] == OURS and g.ok and _setting(g) == _setting(group)]
    if len(same) != 1 or not group.ok:
        return Ratios()
    (ours,) = same

    def ratio(theirs: float | None, own: float | None) -> float | None:
        return theirs / own if theirs is not None and own else None

    meter = next((meter for meter in METERS if meter in group.meters & ours.meters), None)
    return Ratios(
        seconds=ratio(_median(group.step_seconds), _median(ours.step_seconds)),
        memory=ratio(group.peak(meter), ours.peak(meter)) if meter else None,
        meter=meter,
        allocated=ratio(group.allocated, ours.allocated),
        live=ratio(max(group.costs("peak_live_bytes"), default=None), max(ours.costs("peak_live_bytes"), default=None)),
    )


def _setting(group: Group) -> tuple[Any, ...]:
    """What groups share whose costs are compared: everything but the method and what is the method's own."""
    names = ("network", "width", "depth", "image_size", "dtype", "tf32", "seconds", "memory_limit_bytes")
    return group.table, group.contest, threads(group.records[0]), *(group.cell.get(name) for name in names)


def _raw_ratios(group: Group, groups: Sequence[Group]) -> dict[str, float | None]:
    """For ``table.csv``; the iterations of a shortened schedule are not the published ones, and have none."""
    found = Ratios() if group.evaluated else ratios(group, groups)
    return {
        f"step_seconds_over_{OURS}": found.seconds,
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
    content: dict[str, Any] = json.loads(Path(__file__).with_name("reported.json").read_text(encoding="utf-8"))
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
        f"Other work on the GPU: {r['cell']['method']} on {r['cell']['dataset']}, ipc {r['cell']['ipc']}, "
        f"width {r['cell'].get('width')}, seed {r['cell']['seed']}: {r['cost']['memory']['busy']}."
        for group in groups
        for r in group.records
        if r["cost"]["memory"]["busy"]
    ]
    return Table(
        caption=_caption(groups, reported=bool(used)),
        columns=tuple(filled),
        rows=tuple(zip(*filled.values(), strict=True)),
        bold=frozenset((i, list(filled).index(score)) for i in _best(groups)),
        notes=tuple(notes),
    )


def _origin(group: Group) -> str:
    """Where a set comes from that was only evaluated here."""
    files = [f"{f['name']} (SHA-256 {f['sha256'][:8]}…)" for f in group.records[0]["provenance"]["files"]]
    cell = group.cell
    return (
        f"{cell['method']} on {cell['dataset']}, ipc {cell['ipc']}: not distilled here but read from "
        f"{', '.join(files)}; real images go through its own preprocessing, {cell['preprocess']}."
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
    live = [_number([v / 2**20 for v in group.costs("peak_live_bytes")], max, ",.0f") for group in groups]
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
        **{
            title: [_mebibytes(group.peak(meter)) if group.ok else NONE for group in groups]
            for meter, (_, title) in METERS.items()
        },
        METERS["torch"][1]: [_mebibytes(group.allocated) if group.ok else NONE for group in groups],
        f"memory ÷ {OURS}": [_times(ratio.memory) for ratio in found],
        f"allocated ÷ {OURS}": [_times(ratio.allocated) for ratio in found],
        "peak of live tensors (MiB)": [text if group.ok else NONE for group, text in zip(groups, live, strict=True)],
        f"live tensors ÷ {OURS}": [_times(ratio.live) for ratio in found],
        "GFLOP/iteration": [_short(max(group.costs("flops_per_step"), default=None), 1e9) for group in groups],
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
    return NONE if number is None else f"{number / unit:{'.3g' if number < 1000 * unit else ',.0f'}}"


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
            if before is None:
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
    """A line for every method, data set, ipc and network, at the largest width that has a ratio."""
    largest: dict[tuple[Any, ...], str] = {}
    for group in groups:  # in the order of their widths
        cell, found = group.cell, ratios(group, groups)
        if cell["method"] == OURS or found.seconds is None:
            continue
        memory = "" if found.memory is None else f" and {_memory(found)}"
        where = f"{cell['dataset']}, ipc {cell['ipc']}, {cell['network']}, width {cell['width']}"
        largest[cell["method"], *group.contest, cell["network"]] = (
            f"{where}: an iteration of {cell['method']} takes {_times(found.seconds)} the time{memory} of {OURS}'s."
        )
    return list(largest.values())


def _memory(found: Ratios) -> str:
    assert found.meter is not None
    return f"{_times(found.memory)} the memory ({METERS[found.meter][1].removesuffix(' (MiB)')})"


_EVALUATED = ("width", "depth", "image_size", "dtype", "tf32", "evaluate_steps")
"""What sets must share, their contest apart, for their accuracies to be those of the same test."""


def _accuracies(ours: Group, groups: Sequence[Group]) -> list[str]:
    """A line for every rival that was evaluated in the same way: the times to equal accuracy, and the memory."""
    lines = []
    for group in groups:
        cell = group.cell
        rival = cell["method"] != OURS and group.ok and min(len(group.curve), len(ours.curve)) > 1
        if not rival or group.contest != ours.contest or any(cell.get(n) != ours.cell.get(n) for n in _EVALUATED):
            continue
        found = ratios(group, [ours])
        parts = [_equal_accuracy(ours, group, ended) for ended in (group, ours)]
        if found.memory is not None:
            parts.append(f"{cell['method']} takes {_memory(found)} of {OURS}")
        where = f"{cell['dataset']}, ipc {cell['ipc']}, width {cell['width']}, budget {cell['budget']}"
        lines.append(f"{where}: {'; '.join(parts)}.")
    return lines


def _equal_accuracy(ours: Group, rival: Group, ended: Group) -> str:
    """The times that both need for the accuracy that ``ended`` has in the end; in brackets with the preparation."""
    target = statistics.fmean(ended.curve[-1].values)
    texts, times, bounds = [], [], []
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
        bounds.append(bound)
    shown = f"to {target:.1%}, where {ended.cell['method']} ended: {', '.join(texts)}"
    if len(times) < 2 or all(bounds):
        return shown
    kind = "at least " if bounds[0] else "at most " if bounds[1] else ""
    apart, whole_ratio = (_times(theirs / own) for own, theirs in zip(*times, strict=True))
    return f"{shown}, that is {kind}{apart} ({whole_ratio})"


def _best(groups: Sequence[Group]) -> set[int]:
    """The indices of the groups with the highest mean accuracy among at least two of the same contest."""
    means = {i: statistics.fmean(group.values) for i, group in enumerate(groups) if group.ok and group.evaluated}
    best = set()
    for i, mean in means.items():
        rivals = [means[j] for j in means if groups[j].contest == groups[i].contest]
        if len(rivals) > 1 and mean == max(rivals):
            best.add(i)
    return best


def variants(groups: Sequence[Group]) -> list[str]:
    """For groups that would look the same, the settings in which they differ."""
    shown = ("method", "dataset", "ipc", "network", "width", "steps")
    texts = []
    for group in groups:
        twins = [g.settings for g in groups if all(g.cell.get(key) == group.cell.get(key) for key in shown)]
        differing = [k for k, v in group.settings.items() if any(twin.get(k) != v for twin in twins)]
        texts.append(", ".join(f"{k.removeprefix('config.')}={group.settings[k]}" for k in differing) or NONE)
    return texts


def _caption(groups: Sequence[Group], *, reported: bool) -> str:
    cells = [group.cell for group in groups]
    shortened = _listed(cell.get("evaluate_steps") for cell in cells)
    sentences = [
        *measured_on(groups),
        f"Networks: {_listed(cell.get('network') for cell in cells)}; width {_listed(c.get('width') for c in cells)}",
    ]
    if not groups[0].evaluated:
        sentences.append(
            "Nothing was distilled to its end or evaluated. Seconds are those of one update of the synthetic images, "
            f"over windows of whole cycles after the warm-up. ÷ {OURS}: to {OURS} on the same data, network and width"
        )
        if any(map(_reduced, groups)):
            sentences.append("prepare reduced: real experts, but fewer and shorter than the method needs")
        return ". ".join(sentences) + "."
    sentences.append(
        "Accuracy: top-1 on the test set after the last step, mean ± sample standard deviation over "
        "n = evaluated networks × seeds"
        + (f"; evaluation shortened to at most {shortened} training steps" if shortened else "")
        + "; the best for each data set and ipc in bold"
    )
    contests = {group.contest: f"{group.cell['dataset']} at ipc {group.cell['ipc']}" for group in groups}
    with_random = {group.contest for group in groups if group.cell["method"] == "random_real"}
    if missing := [text for contest, text in contests.items() if contest not in with_random]:
        sentences.append(f"Not measured here: random_real on {', '.join(missing)}")
    if reported:
        sentences.append("The last column is what papers report for their full schedules, not measured here")
    return ". ".join(sentences) + "."


def measured_on(groups: Sequence[Group]) -> list[str]:
    """Budget, protocol, and what the ``groups`` of one table were measured on: a sentence each, without its stop."""
    name, budget, kind, version = groups[0].table
    records = [record for group in groups for record in group.records]
    threads = _listed(r["provenance"].get("threads") for r in records)
    packages = ("torch", "python", "cuda", "driver")
    versions = [f"{package} {found}" for package in packages if (found := _versions(records, package))]
    natives = sorted({f"{group.cell['method']}: {group.cell['protocol']}" for group in groups})
    return [
        f"Budget {budget}" + (f" ({BUDGETS[budget].meaning})" if budget in BUDGETS else ""),
        f"Protocol {kind}, version {version}" + (f" ({', '.join(natives)})" if kind == "native" else ""),
        f"Measured on {name}" + (f", CPU threads: {threads}" if threads else "") + f"; {', '.join(versions)}",
    ]


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(v) for v in sorted({v for v in values if v is not None}))


def _versions(records: Iterable[Record], package: str) -> str:
    return _listed(r["provenance"].get(package) for r in records)


def _mebibytes(number: int | None) -> str:
    if number is None:
        return NONE
    mebibytes = number / 2**20
    return f"{mebibytes:,.0f}" if mebibytes >= 10 else f"{mebibytes:.2g}"


# --- renderings -------------------------------------------------------------------------------------------------------

_LEFT = {"method", "setting", "data set", "network"}


def markdown(table: Table) -> str:
    """The caption, the table, and the notes, a paragraph each."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in _marked(table)]
    return "\n\n".join([table.caption, _grid(table.columns, rows, "pipe"), *table.notes])


def screen(table: Table) -> str:
    """The same for a terminal: narrow columns, wrapped text."""
    columns = ["\n".join(_narrow(column)) for column in table.columns]
    texts = [textwrap.fill(text, 100) for text in (table.caption, *table.notes)]
    return "\n\n".join([texts[0], _grid(columns, _marked(table), "simple"), "\n".join(texts[1:])]).rstrip()


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], form: str) -> str:
    align = ["left" if column.replace("\n", " ") in _LEFT else "right" for column in columns]
    return tabulate(rows, headers=columns, tablefmt=form, disable_numparse=True, colalign=align)


def _marked(table: Table) -> list[list[str]]:
    return [
        [f"**{cell}**" if (i, j) in table.bold else cell for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]


def _narrow(title: str) -> list[str]:
    return textwrap.wrap(title, 10, break_long_words=False)


TEX_HEAD = "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
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
        print(line, file=sys.stderr)
    return folder, records, not damaged


if __name__ == "__main__":
    end(main())
