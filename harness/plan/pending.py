"""Work of a job that is left to do, by the files in the folder of its distillation."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.errors import UserError, printable
from benchmarks.files import put_aside
from harness.plan.jobs import ACCURACY, WHOLE_DATA, Job, Question
from harness.records import record
from harness.records.provenance import SAME_MACHINE
from harness.records.record import CHECKPOINT, EVALUATIONS, FINAL, RECORD, AskedSet, EvaluationRecord, Record

R = TypeVar("R", Record, EvaluationRecord)


@dataclass(frozen=True)
class Ask:
    """A question asked of one set, or of several in their order."""

    question: Question
    sets: tuple[AskedSet, ...]
    identity: str
    path: Path
    """The file of the answer."""
    answer: EvaluationRecord | None
    """The answer that is there already, whatever its status and however many values it has."""

    @property
    def parts(self) -> Path:
        """The folder of what survives of an interrupted evaluation, beside its answer."""
        return self.path.with_suffix(".parts")

    @property
    def step(self) -> int | None:
        """The set after so many steps is asked about; None: after the last."""
        return self.sets[-1]["step"]

    @property
    def earlier(self) -> EvaluationRecord | None:
        """An answer with values, which stays until there is a better one."""
        return self.answer if self.answer and self.answer["status"] == "ok" else None


def reason_to_distil(job: Job, earlier: Record | None, *, force: bool = False) -> str | None:
    """Why the set of ``job`` must be distilled, in words; empty where there is nothing to explain; None: it is there.

    ``earlier``: the record in the folder. An error says nothing of the set, and neither does a time limit that was
    shorter.
    """
    if earlier is None or force:
        return ""
    status, struck = earlier["status"], earlier["time_limit_seconds"]
    if status == "timeout" and struck is not None:
        longer = job.time_limit_seconds is None or job.time_limit_seconds > struck
        return "" if longer else None
    if status not in FINAL:
        return ""
    if status != "ok" or job.distillation.method == WHOLE_DATA:
        return None
    if job.curve_points and earlier["curve_points"] != job.curve_points:
        return f"the sets of a curve with {job.curve_points} points were not kept"
    if earlier["artifact"] is None:
        return None if job.distillation.cost_only else "it has no set"
    from harness.records.artifact import lost

    files = [earlier["artifact"], *(earlier["snapshots"] if job.curve_points else ())]
    return next(filter(None, (lost(job.path / file["name"], file["sha256"]) for file in files)), None)


def asks(job: Job, distilled: Record) -> Iterator[Ask]:
    """The questions of ``job`` that are still to be answered for the set that ``distilled`` tells of."""
    for ask in all_asks(job, distilled):
        if job.force or not _is_answered(job, ask):
            yield ask
        elif ask.answer is None or ask.answer["status"] != "timeout":  # a killed process may have left them
            shutil.rmtree(ask.parts, ignore_errors=True)


def all_asks(job: Job, distilled: Record) -> Iterator[Ask]:
    """Every question of ``job``, answered or not; none where a set is missing."""
    if distilled["status"] != "ok":
        return
    identity = distilled["identity"]
    together = [*(last_set(each, existing(each)) for each in job.before), last_set(job, distilled)]
    last = tuple(filter(None, together))
    snapshots: list[tuple[AskedSet, ...]] = [
        ({"distillation": identity, "step": each["step"], "sha256": each["sha256"]},)
        for each in (distilled["snapshots"] if job.curve_points and not job.before else ())
    ]
    for question in job.questions:
        curve = snapshots if question.evaluation == ACCURACY else []
        for sets in [*([last] if len(last) == len(together) else []), *curve]:
            key = question.identity(sets, seed=job.distillation.seed, device_kind=job.device_kind, tf32=job.tf32)
            path = job.path / EVALUATIONS / f"{question.evaluation}-{key}.json"
            answer = _existing(path, record.load_evaluation)
            if answer is not None and answer["sets"] != list(sets):
                answer = None  # of sets that are not there any more
            yield Ask(question, sets, key, path, answer)


def last_set(job: Job, distilled: Record | None) -> AskedSet | None:
    """The set of ``job`` after its last step; None where its record, ``distilled``, tells of none."""
    if distilled is None or distilled["status"] != "ok":
        return None
    artifact = distilled["artifact"]
    if artifact is None and job.distillation.method != WHOLE_DATA:
        return None
    return {"distillation": distilled["identity"], "step": None, "sha256": artifact and artifact["sha256"]}


def begun(job: Job, ask: Ask, provenance: Mapping[str, Any]) -> EvaluationRecord:
    """The record that the answer to ``ask`` goes into, with the values that are there already and may stay."""
    written = record.new_evaluation(
        ask.identity,
        ask.question.evaluation,
        ask.sets,
        ask.question.config,
        provenance,
        seed=job.distillation.seed,
        device_kind=job.device_kind,
        tf32=job.tf32,
    )
    earlier = None if job.force else ask.earlier
    if earlier and all(earlier["provenance"].get(name) == provenance.get(name) for name in SAME_MACHINE):
        for name in ("values", "cost", "busy", "class_accuracies"):
            if name in earlier:
                written[name] = earlier[name]
    return written


def existing(job: Job) -> Record | None:
    """The record of ``job``, if there is one. A damaged one is put aside, never used and never lost.

    A checkpoint beside a final record goes: a process was killed between the two.

    Raises NewerVersion for a record that a later version of the suite wrote.
    """
    written = _existing(job.path / RECORD, record.load)
    if written is not None and written["status"] in FINAL and written["status"] != "timeout":
        shutil.rmtree(job.path / CHECKPOINT, ignore_errors=True)
    return written


def _existing(path: Path, load: Callable[[Path], R]) -> R | None:
    try:
        return load(path) if os.path.lexists(path) else None
    except record.NewerVersion:
        raise
    except UserError as error:
        _kept_aside(path, error)
        return None


def _is_answered(job: Job, ask: Ask) -> bool:
    answer, wanted = ask.answer, ask.question.wanted
    if answer is None:
        return False
    if answer["status"] == "timeout" and answer["time_limit_seconds"] is not None:
        return job.time_limit_seconds is not None and job.time_limit_seconds <= answer["time_limit_seconds"]
    if answer["status"] != "ok":
        return answer["status"] in FINAL
    return wanted is None or count(answer) >= wanted


def count(answer: EvaluationRecord) -> int:
    """How many values there are of every quantity."""
    return max(map(len, answer["values"].values()), default=0)


def _kept_aside(path: Path, error: UserError) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written stops the run, and says so
        aside = put_aside(path, "damaged")
        print(printable(f"{error}; kept as {aside.name}, it is made again"), file=sys.stderr, flush=True)
