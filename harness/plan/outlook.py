"""Before a run starts: how much there is to do, how much of it is done, how long the rest takes, and how much it needs.

Times are those of records that lie in the output already, from the same device. What has no such record is unknown.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.views import split
from benchmarks.errors import UserError
from harness import evaluations
from harness.limits import show_bytes
from harness.plan.budgets import WIDTH
from harness.plan.jobs import ACCURACY, ROUNDING, WHOLE_DATA, Job, Question
from harness.plan.pending import all_asks, asks, count, existing, reason_to_distil
from harness.plan.request import Request
from harness.records import record
from harness.records.provenance import device_name
from harness.records.record import Distilled

RECORD_BYTES = 30_000
"""About what the records and the picture of a distillation take."""
Open = tuple[Job, Question, int]
"""A question without an answer, and how many values are missing."""


def outlook(requests: Sequence[Request], jobs: Sequence[Job], output: Path) -> list[str]:
    """Lines for the user: what will run and where, how much of it is done, and the time and disk for the rest."""
    import torch

    first, where = requests[0], device_name(jobs[0].device)
    if first.launcher != "local":
        where = f"{jobs[0].device} through {first.launcher}"
    elif jobs[0].device == "cpu":
        threads = torch.get_num_threads()
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    methods, datasets, budgets = (
        ", ".join(dict.fromkeys(name for request in requests for name in names(request)))
        for names in (lambda r: r.methods, lambda r: r.datasets, lambda r: (r.budget,))
    )
    named = f"{first.experiment}: " if first.experiment else ""
    lines = [f"{named}{methods} on {datasets}, budget {budgets}, {where}"]
    widths = {job.distillation.width for job in jobs}
    if any(request.widths is None for request in requests) and min(widths) < WIDTH:
        lines.append(
            f"Networks have width {min(widths)} instead of {WIDTH}, because this is a CPU (--width {WIDTH} overrides)."
        )
    return lines + _amount(jobs, output, force=any(request.force for request in requests))


def _amount(jobs: Sequence[Job], output: Path, *, force: bool) -> list[str]:
    cells = [each for job in jobs if not job.before for each in (job, *job.beside)]
    distilling = [job for job in cells if job.distillation.method != WHOLE_DATA]
    left = [job for job in distilling if reason_to_distil(job, existing(job), force=force) is not None]
    asked, open_ = 0, list[Open]()
    for job in [*cells, *(job for job in jobs if job.before)]:
        every, unanswered = _questions(job, force=force)
        asked += every
        open_ += unanswered
    lines = [
        f"{_counted(len(distilling), 'distillation')}, {len(distilling) - len(left)} done; "
        f"{_counted(asked, 'evaluation')}, {asked - len(open_)} done"
    ]
    if left or open_:
        seconds, unknown = _times(left, open_, output)
        parts = [f"about {_rounded(seconds)}"] if unknown < len(left) + len(open_) else []
        if unknown:
            parts.append(f"for {_counted(unknown, 'part')} no record tells how long")
        size = sum((1 + job.curve_points) * job.set_bytes + RECORD_BYTES for job in left)
        place = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free
        lines.append(
            f"Left to do: {'; '.join(parts)}; about {show_bytes(size)} on the disk, {show_bytes(free)} are free"
        )
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rounded(seconds: float) -> str:
    """``50 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _questions(job: Job, *, force: bool) -> tuple[int, list[Open]]:
    """How many questions ``job`` asks, and those that are still to be answered."""
    known = [existing(each) for each in (*job.before, job)]
    written = known[-1]
    if written is None or None in known or reason_to_distil(job, written, force=force and not job.before) is not None:
        every = [(job, q, q.wanted or 1) for q in job.questions]
        every += [each for each in every if each[1].evaluation == ACCURACY for _ in range(job.curve_points)]
        return len(every), every
    left = []
    for ask in asks(job, written):
        there = 0 if ask.earlier is None or job.force else count(ask.earlier)
        left.append((job, ask.question, max(1, (ask.question.wanted or 1) - there)))
    return sum(1 for _ in all_asks(job, written)), left


# --- seconds, as records have them ------------------------------------------------------------------------------------


def _times(left: Iterable[Job], open_: Iterable[Open], output: Path) -> tuple[float, int]:
    """Seconds for all distillations and questions with a record to go by, and how many have none."""
    distilled, _ = record.read_all(output) if output.is_dir() else ([], [])
    distilling, answering = _distilling(distilled), _answering(distilled)
    total, unknown = 0.0, 0
    for job in left:
        of = job.distillation
        exact, alike = _distilling_keys(of.to_dict(), job.config, device_name(job.device))
        rates = distilling.get(exact) or distilling.get(alike)
        if rates is None and of.seconds is None:
            unknown += 1
            continue
        prepare, step = (statistics.fmean(part) for part in zip(*(rates or [(0.0, 0.0)]), strict=True))
        total += prepare + (step * (of.steps or 1) if of.seconds is None else of.seconds)
    for job, question, missing in open_:
        key = _answering_key(question.evaluation, question.config, job.distillation.to_dict(), device_name(job.device))
        if seconds := answering.get(key):
            total += statistics.fmean(seconds) * (missing if question.grows else 1)
        else:
            unknown += 1
    return total, unknown


def _distilling(distilled: Iterable[Distilled]) -> Mapping[str, list[tuple[float, float]]]:
    """Key → seconds of preparation and of a step (of everything, where there are no steps)."""
    rates = defaultdict[str, list[tuple[float, float]]](list)
    for each in distilled:
        cost, device = each.record["cost"], str(each.record["provenance"].get("device"))
        if each.record["status"] == "ok" and cost["distill_seconds"] is not None:
            rate = cost["prepare_seconds"] or 0.0, cost["distill_seconds"] / (each.record["steps"] or 1)
            for key in _distilling_keys(each.record["distillation"], each.record["config"], device):
                rates[key].append(rate)
    return rates


def _answering(distilled: Iterable[Distilled]) -> Mapping[str, list[float]]:
    """Key → seconds of a value, where values grow, else of the whole answer."""
    seconds = defaultdict[str, list[float]](list)
    for each in distilled:
        for answer in each.evaluations:
            took, device = answer["cost"].get("seconds"), str(answer["provenance"].get("device"))
            if answer["status"] != "ok" or took is None:
                continue
            try:
                grows = evaluations.get(answer["evaluation"]).grows
            except UserError:  # of a package that is not installed here
                continue
            key = _answering_key(answer["evaluation"], answer["config"], each.record["distillation"], device)
            seconds[key].append(took / (count(answer) if grows else 1))
    return seconds


def _distilling_keys(distillation: Mapping[str, Any], config: Mapping[str, Any], device: str) -> tuple[str, str]:
    """Keys of records that take as long for a step: with the same configuration, and with any."""
    fields = ("method", "ipc", "network", "width", "depth", "image_size", "preprocess", "dtype", "tf32")
    alike = [device, _data(distillation), *(distillation[name] for name in fields)]
    return json.dumps([*alike, config], sort_keys=True), json.dumps(alike)


def _answering_key(evaluation: str, config: Mapping[str, Any], distillation: Mapping[str, Any], device: str) -> str:
    known = evaluations.get(evaluation)
    apart = {known.grows, *ROUNDING}
    if known.each and not isinstance(config[known.each], list):  # such as the order of classes, which takes no time
        apart.add(known.each)
    own = {name: value for name, value in config.items() if name not in apart}
    return json.dumps([device, evaluation, own, _data(distillation), distillation["ipc"]], sort_keys=True)


def _data(distillation: Mapping[str, Any]) -> str:
    """The data set; of its views only the kind, because their parts are of one size."""
    base, suffix = split(str(distillation["dataset"]))
    return base + re.sub(r"\d+", "#", suffix)
