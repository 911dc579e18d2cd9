"""Tables: their rows are groups, their columns what was asked for, measured, and reported by papers.

A table holds one device, one budget and one kind of protocol. What was measured by different meters, and what was
measured and what a paper reports, stand in columns apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.plan.budgets import BUDGETS
from harness.records.record import summarise
from harness.reports.claims import Ratios, claims, ratios, reported, reported_for, time_to_share
from harness.reports.groups import LISTED, METERS, NONE, OURS, Group, Member, circumstances, quartiles, variants
from harness.reports.measures import Measure, measures, with_marks
from harness.reports.render import Table, listed, mebibytes, number, percent, short, span, times

COUNTERS = ("peak_live_bytes", "flops_per_step", "saved_bytes_per_step", "forecast_bytes", "joules_per_step")
_ALIKE = "evaluated alike, on the same data at the same ipc: recipe, network, width, preprocessing and training steps"


def tables(groups: Sequence[Group]) -> list[Table]:
    """One table for each device, budget, kind of protocol and version of it."""
    return [tabulated([group for group in groups if group.table == key]) for key in sorted({g.table for g in groups})]


def rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The rows of ``table.csv``: nothing rounded; accuracies are fractions, units stand in the names."""
    measured = measures(groups)
    return [{**_row(group, measured), **_ratios(group, groups)} for group in groups]


def _row(group: Group, measured: Sequence[Measure]) -> dict[str, Any]:
    name, budget, kind, version = group.table
    seconds = group.step_seconds
    lower, upper = quartiles(seconds) or (None, None)
    published = next(iter(reported_for(group)), {})
    to_share, is_bound = time_to_share(group) or (None, None)
    values = {measure.label: measure.values(group) for measure in measured}
    known: dict[str, list[float]] = {"accuracy": [], "krr_accuracy": []} | values
    parts = {part: group.costs(part) for part in ("prepare_seconds", "compile_seconds", "distill_seconds")}
    parts["evaluate_seconds"] = group.test_costs("seconds")
    return {
        "device": name,
        "protocol_kind": kind,
        "protocol_version": version,
        **group.settings,
        "steps": None if steps(group) == NONE else steps(group),
        "budget": budget,
        "seeds": " ".join(str(r["distillation"]["seed"]) for r in group.records),
        "statuses": " ".join(f"{status}:{count}" for status, count in group.statuses),
        "n": len(group.values),
        **{
            f"{label}_{part}": value
            for label, numbers in known.items()
            for part, value in zip(("mean", "std"), summarise(numbers), strict=True)
        },
        **{f"{label}_n": len(numbers) for label, numbers in values.items() if "." in label or label not in known},
        "step_seconds_median": group.median,
        "step_seconds_lower_quartile": lower,
        "step_seconds_upper_quartile": upper,
        "step_seconds_mean": statistics.fmean(seconds) if seconds else None,
        **{f"{part}_mean": statistics.fmean(numbers) if numbers else None for part, numbers in parts.items()},
        "seconds_to_92_percent_of_final_accuracy": to_share,
        "seconds_to_92_percent_are_upper_bound": is_bound,
        **{
            f"peak_{size}": group.peak(size)
            for size in ("device_bytes", "allocated_bytes", "reserved_bytes", "host_rss_bytes")
        },
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


def _ratios(group: Group, groups: Sequence[Group]) -> dict[str, float | None]:
    """For ``table.csv``; the iterations of a shortened schedule are not the published ones, and have none."""
    ratio = Ratios() if group.evaluated else ratios(group, groups)
    return {
        f"step_seconds_over_{OURS}": ratio.seconds,
        f"flops_per_step_over_{OURS}": ratio.operations,
        f"peak_memory_over_{OURS}": ratio.memory,
        f"peak_allocated_over_{OURS}": ratio.allocated,
        f"peak_live_bytes_over_{OURS}": ratio.live,
    }


def _provenances(group: Group) -> list[Mapping[str, Any]]:
    return [part["provenance"] for m in group.members for part in (m.record, *(result.record for result in m.results))]


def steps(group: Group) -> str:
    """The number of steps that were taken, or the range over the seeds; that asked for where none was taken."""
    taken = [r["distillation"].get("steps") if r["steps"] is None else r["steps"] for r in group.records]
    return span(count for count in taken if count is not None) or NONE


# --- a table ----------------------------------------------------------------------------------------------------------


def tabulated(groups: Sequence[Group]) -> Table:
    """The table of groups that share device, budget and kind of protocol; columns that nobody fills are left out."""
    evaluated = groups[0].evaluated
    scores = [(m.title, [m.text(group) for group in groups]) for m in measures(groups)] if evaluated else []
    counts = ("n", [_count(group) for group in groups])
    used = dict.fromkeys(entry["source"] for group in groups for entry in reported_for(group) if evaluated)
    numbering = {source: i for i, source in enumerate(used, start=1)}
    columns: list[tuple[str, list[str]]] = [
        ("method", [group.method for group in groups]),
        ("setting", variants(groups)),
        ("data set", [group.distillation["dataset"] for group in groups]),
        ("ipc", [group.ipc for group in groups]),
        ("network", [group.distillation["network"] for group in groups]),
        ("width", [str(group.distillation["width"]) for group in groups]),
        ("parameters", [number(group.costs("parameters"), max, ",.0f") for group in groups]),
        ("steps", [steps(group) for group in groups]),
        *([scores[0], counts, *scores[1:], *_speed(groups)] if evaluated else _costs(groups)),
        ("prepare (s)", [_prepare(group) for group in groups]),
        ("distil (s)", [number(group.costs("distill_seconds"), statistics.fmean, ".1f") for group in groups]),
    ]
    if evaluated:
        shown = [_reported_text(group, numbering) for group in groups]
        columns.append(("reported by papers, not measured here (%)", shown))
    filled = [(title, cells) for title, cells in columns if set(cells) - {NONE}]
    best = _best(groups)
    return Table(
        caption=_caption(groups, best, reported=bool(used)),
        columns=tuple(title for title, _ in filled),
        rows=tuple(zip(*(cells for _, cells in filled), strict=True)),
        bold=frozenset((i, filled.index(scores[0])) for i in best),
        notes=(*claims(groups), *_sources(groups, numbering), *dict.fromkeys(_notes(groups))),
    )


def _sources(groups: Sequence[Group], numbering: Mapping[str, int]) -> list[str]:
    """The publications of the reported accuracies, as they are numbered."""
    lines = [f"[{place}] {reported()['sources'][source]}." for source, place in numbering.items()]
    if numbering and any(entry["rerun"] for group in groups for entry in reported_for(group)):
        first = numbering["frepo-table1"]
        lines.append(f"† run again by the authors of [{first}], better than first published.")
    return lines


def _notes(groups: Sequence[Group]) -> list[str]:
    """Where sets come from, how failures ended, and what went on beside the measurement."""
    members = [member for group in groups for member in group.members]
    notes = [_origin(group) for group in groups if "files" in group.records[0]["provenance"]]
    for member in members:
        parts = [("", member.record), *((f"{r.name} of ", r.record) for r in member.results)]
        notes += [
            f"{part['status']}: {name}{_cell(member)}: {' '.join((part['message'] or 'no message').split())}"
            for name, part in parts
            if part["status"] != "ok" or part["message"] is not None
        ]
    for title, name in (
        ("Other work on the device", "busy"),
        ("No peak by NVML, or not of all the time", "missing"),
    ):
        seen = [(member, dict(member.record["cost"]["memory"])[name]) for member in members]
        notes += [f"{title}: {_cell(member)}: {words}." for member, words in seen if words]
    busy = [(f"{r.name} of {_cell(m)}", r.record["busy"]) for m in members for r in m.results]
    return notes + [f"Other work on the device: {name}: {words}." for name, words in busy if words]


def _cell(member: Member) -> str:
    asked = member.record["distillation"]
    return f"{asked['method']} on {asked['dataset']}, ipc {asked['ipc']}, width {asked['width']}, seed {asked['seed']}"


def _origin(group: Group) -> str:
    """Where a set comes from that was only evaluated here."""
    provenance, asked = group.records[0]["provenance"], group.distillation
    files = [f"{file['name']} (SHA-256 {file['sha256'][:8]}…)" for file in provenance["files"]]
    return " ".join(
        [
            f"{group.method} on {asked['dataset']}, ipc {asked['ipc']}: not distilled here but read from "
            f"{', '.join(files)}; real images go through its own preprocessing, {asked['preprocess']}.",
            *provenance.get("doubts", []),
        ]
    )


def _count(group: Group) -> str:
    """``networks × seeds``."""
    counts = [len(member.values) for member in group.members if member.values]
    return f"{counts[0]} × {len(counts)}" if len(set(counts)) == 1 else str(sum(counts))


def _reported_text(group: Group, numbering: Mapping[str, int]) -> str:
    parts = []
    for entry in reported_for(group):
        text = percent(entry["accuracy"], entry["std"]) + ("†" if entry["rerun"] else "")
        if "krr_accuracy" in entry:
            text += f", KRR {percent(entry['krr_accuracy'], entry['krr_std'])}"
        parts.append(f"{text} [{numbering[entry['source']]}]")
    return "; ".join(parts) or NONE


def _speed(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The columns of cost that stand beside accuracies."""
    return [
        ("s/iteration (median)", [number(group.step_seconds, statistics.median, ".3g") for group in groups]),
        *((title, [mebibytes(group.headline(meter)) for group in groups]) for meter, (_, title) in METERS.items()),
    ]


def _costs(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Of a table without accuracies: the costs, and beside each what it is of that of ``OURS``; a mark for failure."""
    ratio = [ratios(group, groups) for group in groups]

    def of_ok(text: Callable[[Group], str]) -> list[str]:
        return [text(group) if group.ok else NONE for group in groups]

    def quartile_words(group: Group) -> str:
        spread = quartiles(group.step_seconds)
        return NONE if spread is None else f"{spread[0]:.3g} to {spread[1]:.3g}"

    def sizes(size: str, meter: str | None = None) -> list[str]:
        return of_ok(lambda group: mebibytes(group.peak(size, meter)))

    medians = of_ok(lambda group: number(group.step_seconds, statistics.median, ".3g"))
    # By torch as well where NVML is the headline: without context and cache, which flatten a ratio.
    meters = {title: sizes(size, None if meter == "torch" else meter) for meter, (size, title) in METERS.items()}
    return [
        (
            "s/iteration (median)",
            [with_marks(text, group.statuses) for group, text in zip(groups, medians, strict=True)],
        ),
        ("s/iteration (quartiles)", of_ok(quartile_words)),
        ("s/iteration (mean)", of_ok(lambda group: number(group.step_seconds, statistics.fmean, ".3g"))),
        (f"s/iteration (median) ÷ {OURS}", [times(r.seconds) for r in ratio]),
        (f"operations ÷ {OURS}", [times(r.operations) for r in ratio]),
        *meters.items(),
        (f"memory ÷ {OURS}", [times(r.memory) for r in ratio]),
        (f"allocated ÷ {OURS}", [times(r.allocated) for r in ratio]),
        ("peak of live tensors (MiB)", of_ok(lambda group: mebibytes(group.most("peak_live_bytes")))),
        (f"live tensors ÷ {OURS}", [times(r.live) for r in ratio]),
        ("GFLOP/iteration", [short(group.most("flops_per_step"), 1e9) for group in groups]),
        ("GFLOP/s", of_ok(lambda group: short(group.flops_per_second, 1e9))),
        ("J/iteration", [number(group.costs("joules_per_step"), statistics.fmean, ".3g") for group in groups]),
    ]


def _prepare(group: Group) -> str:
    return number(group.costs("prepare_seconds"), statistics.fmean, ".1f") + (" (reduced)" if group.reduced else "")


def _best(groups: Sequence[Group]) -> set[int]:
    """The indices of the groups with the highest mean accuracy among at least two that were evaluated alike."""
    alike: dict[tuple[Any, ...], dict[int, float]] = {}
    for place, group in enumerate(groups):
        if group.values and not group.ceiling:
            alike.setdefault(group.test, {})[place] = statistics.fmean(group.values)
    rivals = [means for means in alike.values() if len(means) > 1]
    return {place for means in rivals for place, mean in means.items() if mean == max(means.values())}


def _caption(groups: Sequence[Group], best: set[int], *, reported: bool) -> str:
    asked = [group.distillation for group in groups]
    sentences = [
        *measured_on(groups),
        f"Networks: {listed(each['network'] for each in asked)}; width {listed(each['width'] for each in asked)}",
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
    contests = {g.contest: f"{g.distillation['dataset']} at ipc {g.ipc}" for g in groups if not g.ceiling}
    with_random = {group.contest for group in groups if group.method == "random_real"}
    if missing := [text for contest, text in contests.items() if contest not in with_random]:
        sentences.append(f"Not measured here: random_real on {', '.join(missing)}")
    if any(group.ceiling for group in groups):
        sentences.append("ipc all: networks trained on all real images by the same recipe")
    if reported:
        sentences.append("The last column is what papers report for their full schedules, not measured here")
    return ". ".join(sentences) + "."


def accuracy_words(groups: Iterable[Group]) -> str:
    """How many networks the accuracies are of, whether there is a deviation, and whether evaluation was shortened."""
    groups = list(groups)
    counts = {len(values) for g in groups for values in (g.values, *(p.values for p in g.curve)) if values}
    shortened = listed(group.recipe.get("steps") for group in groups)
    if counts == {1}:
        words = "of n = 1 evaluated network, without a deviation"
    else:
        alone = ", no deviation where n is 1" if 1 in counts else ""
        known = f"n = {listed(counts)} " if counts else ""
        words = f"mean ± sample standard deviation over {known}(evaluated networks × seeds){alone}"
    return words + (f"; evaluation shortened to at most {shortened} training steps" if shortened else "")


def _times_words(groups: Sequence[Group]) -> list[str]:
    """Name what the seconds depend on beside the machine: a sentence each, without its stop."""
    windows = span(count for group in groups for count in group.costs("steps_per_sample"))
    at_once = listed(int(n) for group in groups for n in group.test_costs("networks_at_once"))
    turns = listed(r["distillation"].get("interleaved") for group in groups for r in group.records)
    sentences = {
        f"Steps taken by turns in one process: {turns}": turns,
        f"Iterations in a sample of the seconds: {windows}": windows,
        f"Networks evaluated at a time: {at_once}": at_once,
        "prepare reduced: real experts, but fewer and shorter than the method needs": any(
            group.reduced for group in groups
        ),
        "prepare counts what lay in the cache with the seconds that it took when it was made": any(
            any(group.costs("prepare_cached")) for group in groups
        ),
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def measured_on(groups: Sequence[Group]) -> list[str]:
    """Budget, protocol, and what the ``groups`` of one table were measured on: a sentence each, without its stop."""
    name, budget, kind, version = groups[0].table
    provenances = [provenance for group in groups for provenance in _provenances(group)]
    known: dict[str, list[Any]] = {name: [] for name in ("torch", "python", "cuda", "driver")}
    flat = [{name: p.get(name) for name in LISTED if name not in ("commit", "dirty")} for p in provenances]
    flat += [circumstances(record["provenance"]) for group in groups for record in group.records]
    for key, value in (pair for each in flat for pair in each.items()):
        known.setdefault(key, []).append(value)
    apart = [pair for group in groups for m in group.members for pair in m.evaluated_with.items()]
    evaluated = [f"{key.removeprefix('evaluation.').removeprefix('environment.')} {value}" for key, value in apart]
    threads = listed(known.pop("threads", []))
    parts = [f"{key.removeprefix('environment.')} {text}" for key, values in known.items() if (text := listed(values))]
    natives = sorted({f"{group.method}: {group.protocol}" for group in groups})
    return [
        f"Budget {budget}" + (f" ({BUDGETS[budget].meaning})" if budget in BUDGETS else ""),
        f"Protocol {kind}, version {version}" + (f" ({', '.join(natives)})" if kind == "native" else ""),
        f"Measured on {name}"
        + (f", CPU threads: {threads}" if threads else "")
        + f"; {', '.join([*parts, *_commits(provenances)])}",
        *([f"Evaluated in part with {listed(evaluated)}"] if evaluated else []),
    ]


def _commits(provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """The commits of the code, and which of them had changes that were not committed."""
    known = {(str(p.get("commit") or "unknown")[:8], bool(p.get("dirty"))) for p in provenances}
    texts = [commit + (" with uncommitted changes" if dirty else "") for commit, dirty in sorted(known)]
    return [] if texts == ["unknown"] else [f"commit{'s' if len(texts) > 1 else ''} {', '.join(texts)}"]
