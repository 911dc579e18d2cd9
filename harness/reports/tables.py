"""Tables: their rows are groups, their columns what was asked for, measured, and reported by papers.

A table holds one device, one budget and one kind of protocol. What was measured by different meters, and what was
measured and what a paper reports, stand in columns apart.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import DATASETS
from benchmarks.data.views import base_name
from harness.plan.budgets import BUDGETS
from harness.plan.jobs import ACCURACY
from harness.plan.request import FLOOR
from harness.records.record import summarise
from harness.reports.comparisons import interval_of, leaders
from harness.reports.groups import (
    EVALUATED,
    LISTED,
    METERS,
    NONE,
    Group,
    Member,
    by_table,
    circumstances,
    quartiles,
    variants,
)
from harness.reports.measures import Measure, measures, with_marks
from harness.reports.ratios import base_of, reference, seconds_ratio, size_ratio, time_to_share
from harness.reports.render import Table, listed, mebibytes, number, percent, short, span, times
from harness.reports.reported import reported, reported_for
from harness.reports.scores import scores
from harness.reports.statistics import FEWEST_PAIRS

COUNTERS = ("peak_live_bytes", "flops_per_step", "saved_bytes_per_step", "forecast_bytes", "joules_per_step")
PEAKS = ("device_bytes", "allocated_bytes", "reserved_bytes", "host_rss_bytes")


def tables(groups: Sequence[Group], *, intervals: bool = False) -> list[Table]:
    """One table for each device, budget, kind of protocol and version of it; ``intervals``: with those of accuracy."""
    return [tabulated(same, intervals=intervals) for same in by_table(groups).values()]


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The rows of ``table.csv``: nothing rounded; accuracies are fractions, units stand in the names."""
    measured = measures(groups)
    scored = scores(groups)
    return [
        {**_row(group, measured), **_ratios(group, groups), **vars(own)}
        for group, own in zip(groups, scored, strict=True)
    ]


def _row(group: Group, measured: Sequence[Measure]) -> dict[str, Any]:
    name, budget, kind, version = group.table
    seconds = group.step_seconds
    lower, upper = quartiles(seconds) or (None, None)
    published = next(iter(reported_for(group)), {})
    to_share, is_bound = time_to_share(group) or (None, None)
    values = {measure.label: measure.values(group) for measure in measured}
    always: dict[str, list[float]] = {"accuracy": [], "krr_accuracy": []}
    known = always | values
    parts = {part: group.costs(part) for part in ("prepare_seconds", "compile_seconds", "distill_seconds")}
    parts["evaluate_seconds"] = group.test_costs("seconds")
    known_interval = interval_of(group)
    return {
        "device": name,
        "protocol_kind": kind,
        "protocol_version": version,
        **group.circumstances,
        **group.settings,
        "steps": None if steps(group) == NONE else steps(group),
        "budget": budget,
        "seeds": " ".join(str(member.seed) for member in group.members),
        "statuses": " ".join(f"{status}:{count}" for status, count in group.statuses),
        **{name: group.decoder and group.decoder[name] for name in ("stored_pixels", "decoded_images")},
        "n": len(group.values),
        **{
            f"{label}_{part}": value
            for label, numbers in known.items()
            for part, value in zip(("mean", "std"), summarise(numbers), strict=True)
        },
        "accuracy_low": known_interval and known_interval.low,
        "accuracy_high": known_interval and known_interval.high,
        "accuracy_interval_over": known_interval and known_interval.over,
        **{f"{label}_n": len(numbers) for label, numbers in values.items() if label not in always},
        "step_seconds_median": group.median,
        "step_seconds_lower_quartile": lower,
        "step_seconds_upper_quartile": upper,
        "step_seconds_mean": statistics.fmean(seconds) if seconds else None,
        **{f"{part}_mean": statistics.fmean(numbers) if numbers else None for part, numbers in parts.items()},
        "selection_gap_mean": summarise(group.selection_gaps)[0],
        "selection_gap_std": summarise(group.selection_gaps)[1],
        "seconds_to_92_percent_of_final_accuracy": to_share,
        "seconds_to_92_percent_are_upper_bound": is_bound,
        **{f"peak_{size}": group.peak(size) for size in PEAKS},
        "headline_meter": " ".join(sorted(group.meters)) or None,
        "prepare": "reduced" if group.reduced else None,
        **{name: group.most(name) for name in COUNTERS},
        "flops_per_second": group.flops_per_second,
        "parameters": next(iter(group.costs("parameters")), None),
        "parameters_evaluated": next(iter(group.test_costs("parameters")), None),
        **{name: listed(provenance.get(name) for provenance in _provenances(group)) for name in LISTED},
        "reported_accuracy": published.get("accuracy"),
        "reported_std": published.get("std"),
        "reported_source": reported()["sources"][published["source"]] if published else None,
    }


def _ratios(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """For ``table.csv``; the iterations of a shortened schedule are not the published ones, and have none."""
    base = None if group.evaluated else base_of(group, groups)
    seconds = seconds_ratio(group, base)
    return {
        "ratio_to": base and base.method,
        "step_seconds_ratio": seconds and seconds[0],
        "step_seconds_ratio_lower_quartile": seconds and seconds[1],
        "step_seconds_ratio_upper_quartile": seconds and seconds[2],
        "flops_per_step_ratio": size_ratio(group, base, "flops_per_step"),
        "peak_memory_ratio": size_ratio(group, base, "headline"),
        "peak_allocated_ratio": size_ratio(group, base, "allocated_bytes"),
        "peak_live_bytes_ratio": size_ratio(group, base, "peak_live_bytes"),
    }


def _provenances(group: Group) -> list[Mapping[str, Any]]:
    return [part["provenance"] for m in group.members for part in (m.record, *(result.record for result in m.results))]


def steps(group: Group) -> str:
    """The number of steps that were taken, or the range over the seeds; that asked for where none was taken."""
    taken = [r["distillation"].get("steps") if r["steps"] is None else r["steps"] for r in group.records]
    return span(count for count in taken if count is not None) or NONE


# --- a table ----------------------------------------------------------------------------------------------------------


def tabulated(groups: Sequence[Group], *, intervals: bool = False) -> Table:
    """The table of groups that share device, budget and kind of protocol; columns that nobody fills are left out."""
    evaluated = groups[0].evaluated
    native = evaluated and groups[0].table[2] == "native"
    tabled = [measure for measure in measures(groups) if measure.quantity.tabled] if evaluated else []
    accuracies = [(measure.title, [measure.text(group) for group in groups]) for measure in tabled]
    used = dict.fromkeys(entry["source"] for group in groups for entry in reported_for(group) if evaluated)
    numbering = {source: i for i, source in enumerate(used, start=1)}

    def column(title: str, text: Callable[[Group], str]) -> tuple[str, list[str]]:
        return title, [text(group) for group in groups]

    shown = [f"evaluation.{name}" for name in (*EVALUATED, *(["protocol"] if native else []))]
    columns: list[tuple[str, list[str]]] = [
        column("method", lambda group: group.method),
        *([column("recipe", lambda group: group.protocol)] if native else []),
        ("setting", variants(groups, shown)),
        column("data set", lambda group: group.distillation["dataset"]),
        column("ipc", lambda group: group.ipc),
        column("stored pixels → decoded images", _decoder),
        column("network", lambda group: group.distillation["network"]),
        column("width", lambda group: str(group.distillation["width"])),
        column("parameters", lambda group: number(group.costs("parameters"), max, ",.0f")),
        column("steps", steps),
        column("evaluated on", lambda group: group.evaluated_on or NONE),
        *(accuracies[:1]),
        *([column("95 % interval (%)", _interval)] if evaluated and intervals else []),
        *([column("n", _count), *accuracies[1:], *_scores(groups)] if evaluated else []),
        *_costs(groups),
        column("prepare (s)", _prepare),
        column("distil (s)", lambda group: number(group.costs("distill_seconds"), statistics.fmean, ".1f")),
    ]
    if evaluated:
        columns.append(column("reported by papers (%)", lambda group: _reported_text(group, numbering)))
    filled = [(title, cells) for title, cells in columns if set(cells) - {NONE}]
    bold, _ = leaders(groups)
    return Table(
        caption=f"{'. '.join([*meaning(groups, bold), _where(groups), *missing(groups)])}.",
        columns=tuple(title for title, _ in filled),
        rows=tuple(zip(*(cells for _, cells in filled), strict=True)),
        bold=frozenset((i, filled.index(accuracies[0])) for i in bold),
        notes=(
            *(f"{sentence}." for sentence in _remarks(groups)),
            *_sources(groups, numbering),
            *dict.fromkeys(_notes(groups)),
            " ".join(f"{sentence}." for sentence in measured_with(groups)),
        ),
    )


def meaning(groups: Sequence[Group], bold: set[int]) -> list[str]:
    """Meaning of the numbers of the table: sentences without their stop."""
    if groups[0].evaluated:
        words = accuracy_words(groups)
        if words is None:
            return ["Nothing was evaluated"]
        ranked = (
            "Bold: the highest mean of at least two rows that were evaluated alike, and every row that a comparison in "
            f"at least {FEWEST_PAIRS} pairs does not tell from it"
        )
        none = "No row is bold as the best: no two were evaluated alike"
        return [f"Accuracy: top-1 on the test set after the last step, {words}", ranked if bold else none]
    return [
        "Seconds and memory of one update of the synthetic images; nothing was distilled to its end or evaluated",
        f"÷ {_bases(groups)}: relative to it on the same data, network and width, else {NONE}",
    ]


def _where(groups: Sequence[Group]) -> str:
    """The device, budget, protocol and version that ``groups`` share."""
    device, budget, kind, version = groups[0].table
    threads = listed(circumstances(record["provenance"]).get("threads") for g in groups for record in g.records)
    counted = f" with {threads} CPU thread{'' if threads == '1' else 's'}" if threads else ""
    meaning = f" ({BUDGETS[budget].meaning})" if budget in BUDGETS else ""
    return f"Measured on {device}{counted}, budget {budget}{meaning}, {kind} protocol, version {version}"


def missing(groups: Sequence[Group]) -> list[str]:
    """Name the tasks on which no real images drawn at random stand beside the accuracies."""
    contests = {g.contest: f"{g.distillation['dataset']} at ipc {g.ipc}" for g in groups if not g.ceiling}
    drawn = {group.contest for group in groups if group.method == FLOOR}
    missing = [text for contest, text in contests.items() if contest not in drawn]
    return [f"Not measured here: {FLOOR} on {', '.join(missing)}"] if missing and groups[0].evaluated else []


def measured_with(groups: Sequence[Group]) -> list[str]:
    """Versions, environment and commits, and what evaluations were measured with elsewhere: sentences without stops."""
    provenances = [provenance for group in groups for provenance in _provenances(group)]
    flat = [{name: p.get(name) for name in LISTED if name not in ("commit", "dirty")} for p in provenances]
    flat += [circumstances(record["provenance"]) for group in groups for record in group.records]
    known: dict[str, list[Any]] = {name: [] for name in ("torch", "python", "cuda", "driver")}
    for name, value in (pair for each in flat for pair in each.items() if pair[0] != "threads"):
        known.setdefault(name, []).append(value)
    parts = [
        f"{name.removeprefix('environment.')} {text}" for name, values in known.items() if (text := listed(values))
    ]
    commits = {(str(p.get("commit") or "unknown")[:8], bool(p.get("dirty"))) for p in provenances}
    texts = [commit + (" with uncommitted changes" if dirty else "") for commit, dirty in sorted(commits)]
    if texts != ["unknown"]:
        parts.append(f"commit{'s' if len(texts) > 1 else ''} {', '.join(texts)}")
    apart = [pair for group in groups for m in group.members for pair in m.evaluated_with.items()]
    evaluated = listed(f"{name.removeprefix('evaluation.').removeprefix('environment.')} {v}" for name, v in apart)
    return [f"With {', '.join(parts)}"] * bool(parts) + [f"Evaluated in part with {evaluated}"] * bool(evaluated)


def measured_on(groups: Sequence[Group]) -> list[str]:
    """What the ``groups`` of one figure or table were measured on: sentences without their stop."""
    return [_where(groups), *measured_with(groups)]


def accuracy_words(groups: Iterable[Group]) -> str | None:
    """How many networks the accuracies are of, whether there is a deviation, and whose evaluation was shortened.

    None where there is no accuracy.
    """
    groups = [group for group in groups if group.values]
    counts = {len(values) for g in groups for values in (g.values, *(p.values for p in g.curve)) if values}
    if not counts:
        return None
    alone = ", no deviation where n is 1" if 1 in counts else ""
    words = f"mean ± sample standard deviation over n = {listed(counts)} (evaluated networks × seeds){alone}"
    if counts == {1}:
        words = "of n = 1 evaluated network, without a deviation"
    short = [group for group in groups if group.recipe.get("steps") is not None]
    whose = "" if len(short) == len(groups) else f" of {listed(group.method for group in short)}"
    limit = listed(group.recipe["steps"] for group in short)
    return words + (f"; evaluation{whose} shortened to at most {limit} training steps" if short else "")


def _remarks(groups: Sequence[Group]) -> list[str]:
    """What readers must know of the numbers beside the caption: sentences without their stop."""
    windows = span(count for group in groups for count in group.costs("steps_per_sample"))
    at_once = listed(int(n) for group in groups for n in group.test_costs("networks_at_once"))
    turns = listed(group.distillation["interleaved"] for group in groups)
    evaluated = groups[0].evaluated
    looks = span(len(member.points) for group in groups for member in group.members if member.points)
    sentences: dict[str, Any] = {
        "Evaluated alike: on the same data at the same ipc, by the same recipe, network, width, preprocessing and "
        "training steps": evaluated and any(group.values for group in groups),
        "ipc all: networks trained on all real images by the same recipe": any(group.ceiling for group in groups),
        "Balanced accuracy: the mean of the accuracies on the test images of each class": any(
            result.values("balanced_accuracy") for g in groups for m in g.members for result in m.last(ACCURACY)
        ),
        f"patches: {DATASETS['patches']}": any(base_name(g.distillation["dataset"]) == "patches" for g in groups),
        f"Selection gap: the highest accuracy of {looks} sets on the way, chosen on the test images as most published "
        "code does, less that of the last set; over the seeds": evaluated and looks,
        "Stored pixels → decoded images: each of the stored images holds several smaller ones, which are enlarged, and "
        f"networks are trained on these; {NONE}: on the stored images": any(group.decoder for group in groups),
        "LRS, ARS: label-robust and augmentation-robust score (Li et al., 2025), of accuracies as fractions; higher is "
        "better": any(set(vars(own).values()) - {None} for own in scores(groups)),
        "Reported by papers: for their full schedules, not measured here": evaluated and any(map(reported_for, groups)),
        "Seconds: over windows of whole cycles, after the warm-up. Ratios of times are those of operations where every "
        "operation takes equally long": not evaluated,
        f"Steps taken by turns in one process: {turns}. Ratios of their seconds are medians of paired samples, with "
        "quartiles in brackets": turns,
        f"Iterations in a sample of the seconds: {windows}": windows,
        f"Networks evaluated at a time: {at_once}": at_once,
        "prepare reduced: real experts, but fewer and shorter than the method needs": any(g.reduced for g in groups),
        "prepare counts what lay in the cache with the seconds that it took when it was made": any(
            any(group.costs("prepare_cached")) for group in groups
        ),
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def _sources(groups: Sequence[Group], numbering: Mapping[str, int]) -> list[str]:
    """The publications of the reported accuracies, as they are numbered."""
    lines = [f"[{place}] {reported()['sources'][source]}." for source, place in numbering.items()]
    if numbering and any(entry["rerun"] for group in groups for entry in reported_for(group)):
        first = numbering["frepo-table1"]
        lines.append(f"† run again by the authors of [{first}], better than first published.")
    return lines


def _notes(groups: Sequence[Group]) -> list[str]:
    """Where sets come from, how failures ended, which seeds count twice, and what went on beside the measurement."""
    members = [member for group in groups for member in group.members]
    notes = [_origin(member) for member in members if "files" in member.record["provenance"]]
    for group in groups:
        twice = [seed for seed, count in Counter(member.seed for member in group.members).items() if count > 1]
        notes += [
            f"Distilled more than once, and counted as often: {_cell(m)}." for m in group.members if m.seed in twice
        ]
    for member in members:
        parts = [("", member.record), *((f"{r.name} of ", r.record) for r in member.results)]
        notes += [
            f"{part['status']}: {name}{_cell(member)}: {' '.join((part['message'] or 'no message').split())}"
            for name, part in parts
            if part["status"] != "ok" or part["message"] is not None
        ]
    for member in members:
        machines = [
            f"{each['device']}, {each['threads']} threads, torch {each['torch']}"
            for each in member.record.get("segments", [])
        ]
        if len(dict.fromkeys(machines)) > 1:
            notes.append(f"Distilled on one machine after the other: {_cell(member)}: {'; '.join(machines)}.")
    for title, name in (("Other work on the device", "busy"), ("No peak by NVML, or not of all the time", "missing")):
        seen = [(member, dict(member.record["cost"]["memory"])[name]) for member in members]
        notes += [f"{title}: {_cell(member)}: {words}." for member, words in seen if words]
    busy = [(f"{r.name} of {_cell(m)}", r.record["busy"]) for m in members for r in m.results]
    return notes + [f"Other work on the device: {name}: {words}." for name, words in busy if words]


def _cell(member: Member) -> str:
    asked, group = member.record["distillation"], Group((member,))
    return f"{asked['method']} on {asked['dataset']}, ipc {group.ipc}, width {asked['width']}, seed {asked['seed']}"


def _origin(member: Member) -> str:
    """Where a set comes from that was only evaluated here. Nobody checks the form of a provenance, so all is shown."""
    provenance, asked = member.record["provenance"], member.record["distillation"]
    files, doubts = (
        part if isinstance(part, list) else [part] for part in (provenance["files"], provenance.get("doubts", []))
    )
    names = [
        f"{file['name']} (SHA-256 {str(file['sha256'])[:8]}…)"
        if isinstance(file, dict) and {"name", "sha256"} <= file.keys()
        else str(file)
        for file in files
    ]
    origin = f"not distilled here but read from {', '.join(names)}"
    return " ".join(
        [
            f"{asked['method']} on {asked['dataset']}, ipc {asked['ipc']}: {origin}; "
            f"real images go through its own preprocessing, {asked['preprocess']}.",
            *map(str, doubts),
        ]
    )


def _decoder(group: Group) -> str:
    known = group.decoder
    return NONE if known is None else f"{known['stored_pixels']:,} → {known['decoded_images']:,}"


def _count(group: Group) -> str:
    """``networks × seeds``."""
    counts = [len(member.values()) for member in group.members if member.values()]
    return f"{counts[0]} × {len(counts)}" if len(set(counts)) == 1 else str(sum(counts))


def _reported_text(group: Group, numbering: Mapping[str, int]) -> str:
    parts = []
    for entry in reported_for(group):
        text = percent(entry["accuracy"], entry["std"]) + ("†" if entry["rerun"] else "")
        if "krr_accuracy" in entry:
            text += f", KRR {percent(entry['krr_accuracy'], entry['krr_std'])}"
        parts.append(f"{text} [{numbering[entry['source']]}]")
    return "; ".join(parts) or NONE


def _costs(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The columns of cost. Where nothing was evaluated, there are more, with ratios and a mark for what failed."""
    bases = [base_of(group, groups) for group in groups]
    to = f"÷ {_bases(groups)}"

    def column(title: str, text: Callable[[Group], str]) -> tuple[str, list[str]]:
        return title, [text(group) if group.ok else NONE for group in groups]

    def ratio(title: str, size: str) -> tuple[str, list[str]]:
        return f"{title} {to}", [times(size_ratio(g, base, size)) for g, base in zip(groups, bases, strict=True)]

    def spread(group: Group) -> str:
        ends = quartiles(group.step_seconds)
        return NONE if ends is None else f"{ends[0]:.3g} to {ends[1]:.3g}"

    def peak(meter: str) -> tuple[str, list[str]]:
        # By torch as well where NVML is the headline: without context and cache, which flatten a ratio.
        size, title = METERS[meter]
        every = meter == "torch" and not groups[0].evaluated
        return column(title, lambda group: mebibytes(group.peak(size, None if every else meter)))

    title, medians = column("s/iteration (median)", lambda g: number(g.step_seconds, statistics.median, ".3g"))
    if groups[0].evaluated:
        return [(title, medians), *map(peak, METERS)]
    marked = [with_marks(text, group.statuses) for group, text in zip(groups, medians, strict=True)]
    return [
        (title, marked),
        column("s/iteration (quartiles)", spread),
        column("s/iteration (mean)", lambda group: number(group.step_seconds, statistics.fmean, ".3g")),
        (f"s/iteration (median) {to}", [_ratio_text(g, base) for g, base in zip(groups, bases, strict=True)]),
        ratio("operations", "flops_per_step"),
        *map(peak, METERS),
        ratio("memory", "headline"),
        ratio("allocated", "allocated_bytes"),
        column("peak of live tensors (MiB)", lambda group: mebibytes(group.most("peak_live_bytes"))),
        ratio("live tensors", "peak_live_bytes"),
        ("GFLOP/iteration", [short(group.most("flops_per_step"), 1e9) for group in groups]),
        column("GFLOP/s", lambda group: short(group.flops_per_second, 1e9)),
        column("J/iteration", lambda group: number(group.costs("joules_per_step"), statistics.fmean, ".3g")),
    ]


def _bases(groups: Iterable[Group]) -> str:
    return " or ".join(sorted({reference(group) for group in groups}))


def _ratio_text(group: Group, base: Group | None) -> str:
    """The ratio of the seconds, with its quartiles where samples are paired."""
    median, lower, upper = seconds_ratio(group, base) or (None, None, None)
    return times(median) if lower == upper else f"{median:.3g}× ({lower:.3g} to {upper:.3g})"


def _prepare(group: Group) -> str:
    return number(group.costs("prepare_seconds"), statistics.fmean, ".1f") + (" (reduced)" if group.reduced else "")


def _interval(group: Group) -> str:
    known = interval_of(group)
    if known is None:
        return NONE
    alone = "" if "seeds" in known.over else ", networks alone"
    return f"{100 * known.low:.1f} to {100 * known.high:.1f}{alone}"


def _scores(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The columns of what is computed from several accuracies."""
    scored = scores(groups)
    return [
        ("selection gap (points)", [percent(*summarise(group.selection_gaps)) for group in groups]),
        ("LRS", [short(own.label_robust_score) for own in scored]),
        ("ARS", [short(own.augmentation_robust_score) for own in scored]),
    ]
