"""Trials of hyper-parameters → the best of each method beside its default, and the line for its ``BUDGETS``."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import methods
from harness.plan.jobs import ACCURACY, Job
from harness.plan.options import typed
from harness.plan.pending import all_asks, existing
from harness.plan.trials import Trial, TuneRequest
from harness.records.record import EvaluationRecord, Record
from harness.reports.comparisons import coverage
from harness.reports.groups import NONE
from harness.reports.render import Table, csv, listed, markdown, screen
from harness.reports.statistics import compare, interval

MISSING = "not done"
CHOSEN_HERE = (
    "The best was chosen by the accuracies of this table. Chance alone makes the best of several look better than it "
    "is; --check measures its gain anew."
)
CHECKED = "A check: these sets were distilled with other seeds, and tested on other images, than those that chose."
COLUMNS = (
    *("method", "data set", "ipc", "width", "trials", "default", "best"),
    *("gain (points)", "95 % interval", "setting"),
)


@dataclass(frozen=True)
class Cell:
    """A job of a trial, with what there is of its records."""

    job: Job
    record: Record | None
    answer: EvaluationRecord | None
    """The accuracy of its set."""

    @property
    def task(self) -> tuple[str, int, int]:
        """Data set with its view, ipc, and width of the network."""
        of = self.job.distillation
        return of.dataset, of.ipc, of.width

    @property
    def status(self) -> str:
        """How the distillation ended, or where that went well, its evaluation."""
        parts = (self.record, self.answer)
        return next((part["status"] if part else MISSING for part in parts if not part or part["status"] != "ok"), "ok")

    @property
    def values(self) -> list[float]:
        """The accuracy of each network."""
        return self.answer["values"][ACCURACY] if self.answer and self.status == "ok" else []


@dataclass(frozen=True)
class Tried:
    """A trial and its cells."""

    trial: Trial
    cells: tuple[Cell, ...]

    def by_seed(self, task: tuple[str, int, int]) -> dict[int, list[float]]:
        """Distillation seed → accuracies on ``task``."""
        return {c.job.distillation.seed: c.values for c in self.cells if c.task == task and c.values}

    @property
    def failures(self) -> list[str]:
        return [cell.status for cell in self.cells if cell.status != "ok"]

    @property
    def score(self) -> float:
        """Mean accuracy, where tasks and seeds weigh the same; 0 where a cell has none."""
        if self.failures or not self.cells:
            return 0.0
        return statistics.fmean(statistics.fmean(cell.values) for cell in self.cells)


def tried(trial: Trial, jobs: Sequence[Job]) -> Tried:
    """What lies on the disk of the ``jobs`` of ``trial``."""
    cells = []
    for job in jobs:
        written = existing(job)
        asked = () if written is None else all_asks(job, written)
        answer = next((ask.answer for ask in asked if ask.question.evaluation == ACCURACY), None)
        cells.append(Cell(job, written, answer))
    return Tried(trial, tuple(cells))


def best(own: Sequence[Tried]) -> Tried:
    """The trial with the highest score; of equals the first, and the default is before all."""
    return max(own, key=lambda each: each.score)


def report(
    request: TuneRequest, results: Sequence[tuple[Sequence[Tried], Sequence[Tried]]]
) -> tuple[str, dict[str, str]]:
    """The tables for a terminal, and the files ``tune.md`` and ``tune.csv``.

    ``results``: for each method its trials, the default first; and the default and the best on the data of ``--check``,
    or nothing.
    """
    made = [_table(request, [(_count(own), own[0], best(own)) for own, _ in results], CHOSEN_HERE)]
    if checked := [(_count(own), again[0], again[1]) for own, again in results if again]:
        made.append(_table(request, checked, CHECKED))
    lines = [_line(request, best(own)) for own, _ in results]
    rows = [
        row
        for own, again in results
        for part, trials in (("tune", own), ("check", again))
        for each in trials
        for row in _rows(part, each, chosen=each.trial is best(own).trial)
    ]
    block = "\n".join(["```python", *lines, "```"])
    files = {"tune.md": "\n\n".join([*map(markdown, made), block]) + "\n", "tune.csv": csv(rows)}
    return "\n\n".join([*map(screen, made), "\n".join(lines)]), files


def _table(request: TuneRequest, compared: Sequence[tuple[str, Tried, Tried]], note: str) -> Table:
    """A row for each method and task: how many trials there were, and the scores of default and best."""
    rows, over, devices = [], list[str](), set[str]()
    for count, default, other in compared:
        devices |= {str(c.record["provenance"].get("device")) for c in (*default.cells, *other.cells) if c.record}
        for task in dict.fromkeys(cell.task for cell in default.cells):
            first, second = default.by_seed(task), other.by_seed(task)
            gain = None if other is default else compare(second, first)
            known = gain.interval if gain else None
            over += [known.over] if known else []
            rows.append(
                (
                    *(default.trial.method, *map(str, task), count),
                    *(_accuracy(first, default), _accuracy(second, other)),
                    f"{100 * gain.difference:+.1f}" if gain else NONE,
                    f"{100 * known.low:+.1f} to {100 * known.high:+.1f}" if known else NONE,
                    str(other.trial),
                )
            )
    return Table(
        caption="Accuracy (%) on held-out training images, mean and 95 % interval, of the default of each method and "
        f"of the best setting that was tried; {request.seconds:g} s of steps for each distillation, budget "
        f"{request.budget}, {request.protocol} protocol, {listed(devices) or 'nothing measured yet'}.",
        columns=COLUMNS,
        rows=tuple(rows),
        bold=frozenset(),
        notes=(note, coverage(listed(over))),
    )


def _count(own: Sequence[Tried]) -> str:
    """``12 (2 diverged)``."""
    failed = Counter(each.failures[0] for each in own if each.failures)
    words = ", ".join(f"{number} {status}" for status, number in sorted(failed.items()))
    return f"{len(own)}{f' ({words})' if words else ''}"


def _accuracy(values: Mapping[int, Sequence[float]], each: Tried) -> str:
    if not values:
        return each.failures[0] if each.failures else NONE
    known = interval(list(values.values()))
    shown = f" [{100 * known.low:.1f}, {100 * known.high:.1f}]" if known else ""
    return f"{100 * statistics.fmean(map(statistics.fmean, values.values())):.1f}{shown}"


def _line(request: TuneRequest, chosen: Tried) -> str:
    """The entry for ``BUDGETS`` of the method, with as many steps as the seconds allowed; or why there is none."""
    name, settings = chosen.trial.method, chosen.trial.settings
    if chosen.failures:
        return f"# {name}: no trial has an accuracy everywhere"
    if not settings:
        return f"# {name}: no setting was better than the default"
    steps = [cell.record["steps"] for cell in chosen.cells if cell.record and cell.record["steps"]]
    fields = {
        **methods.get(name).BUDGETS.get(request.budget, {}),
        **({"steps": int(float(f"{statistics.median(steps):.2g}"))} if steps else {}),
        **{field: chosen.cells[0].job.config[field] for field in typed(name, request.options.get(name, ()))},
        **settings,
    }
    words = (f'"{key}": {json.dumps(value) if isinstance(value, str) else value!r}' for key, value in fields.items())
    return f'# {name}\n"{request.budget}": {{{", ".join(words)}}},'


def _rows(part: str, each: Tried, *, chosen: bool) -> Iterator[dict[str, Any]]:
    """The rows of ``tune.csv``: a cell each, nothing rounded."""
    for cell in each.cells:
        of, written = cell.job.distillation, cell.record
        yield {
            **{"part": part, "method": of.method, "kind": each.trial.kind, "chosen": chosen},
            "settings": " ".join(f"{field}={value!r}" for field, value in each.trial.settings.items()),
            **{"dataset": of.dataset, "ipc": of.ipc, "width": of.width, "seed": of.seed, "status": cell.status},
            "accuracy": statistics.fmean(cell.values) if cell.values else None,
            "accuracies": " ".join(map(str, cell.values)),
            "steps": written and written["steps"],
            "distill_seconds": written and written["cost"]["distill_seconds"],
            "prepare_seconds": written and written["cost"]["prepare_seconds"],
            "device": written and written["provenance"].get("device"),
            "folder": cell.job.path.name,
        }
