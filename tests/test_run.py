"""The command line: what it refuses, what it runs, what it skips, and how it ends."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import preprocess
from benchmarks.data import image_files, source
from benchmarks.errors import UserError
from harness import cell, evaluations, report
from harness.evaluations.base import Quantity
from harness.plan.budgets import BUDGETS
from harness.plan.experiments import requests
from harness.plan.jobs import WHOLE_DATA, Distillation, Job, Question
from harness.plan.options import parse, split
from harness.plan.pending import asks, existing, reason_to_distil
from harness.plan.planning import merged, plan, resolve
from harness.plan.request import Request
from harness.records import lease, record
from harness.records.files import only_runner
from harness.records.lease import AGAIN, FOLDER, Held, exchange_of, path_of, take
from harness.records.provenance import provenance
from harness.records.record import EVALUATIONS, LOG, RECORD, SET, Distilled
from harness.run import POLL_SECONDS, main
from methods.mtt import MTT
from tests.builders import Probe, TurnedConfig, all_in, in_process, probe, quick
from tests.dummies import Dummy, DummyConfig, dummy

__all__ = ["dummy", "probe", "quick"]  # fixtures
ROOT = Path(__file__).parents[1]
SMOKE = "--methods dummy,random_real --dataset digits --budget smoke --width 4 --device cpu --seeds 0,1"
ONE_SEED: Mapping[str, Any] = {"budget": "smoke", "widths": (4,), "seeds": (0,)}
ALONE = "--methods dummy --no-random --dataset digits --budget smoke --width 4 --device cpu"


def request(**changes: Any) -> Request:
    return Request(**{"methods": ("dummy",), "datasets": ("digits",), "device": "cpu", **changes})


@dataclass
class Pretending:
    """A launcher that pretends to run cells.

    Its sets are the same again unless ``content`` changes. ``after`` lets something happen once so many jobs have run.
    """

    status: Any = "ok"
    after: Mapping[int, Callable[[], None]] = dataclasses.field(default_factory=dict)
    accuracy: float = 0.5
    content: str = "a set"
    answers: Any = "ok"
    """Status of the evaluations."""
    order: Callable[[Iterable[Job]], Iterable[Job]] = iter
    jobs: list[Job] = dataclasses.field(default_factory=list)
    distilled: list[str] = dataclasses.field(default_factory=list)
    """Names of the folders for which a set was distilled."""
    answered: list[str] = dataclasses.field(default_factory=list)
    """Evaluations that were carried out."""

    def __call__(self, jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for job in self.order(jobs):
            self.after.get(len(self.jobs), lambda: None)()
            self.jobs.append(job)
            for each in (job, *job.beside):
                self._run(each)
            yield job

    def _run(self, job: Job) -> None:
        job.path.mkdir(parents=True, exist_ok=True)
        made, known = existing(job), provenance("", "cpu", "")
        if made is None or reason_to_distil(job, made) is not None:
            made = record.new(job.identity, job.distillation.to_dict(), job.config, job.asked, known)
            made["status"], made["curve_points"] = self.status, job.curve_points
            made["message"] = None if self.status == "ok" else "a reason"
            if self.status == "ok" and job.distillation.method != WHOLE_DATA:
                content = f"{self.content} {job.identity}".encode()
                (job.path / SET).write_bytes(content)
                made["artifact"] = {"name": SET, "sha256": hashlib.sha256(content).hexdigest()}
            record.write(made, job.path / RECORD)
            self.distilled.append(job.path.name)
        for ask in list(asks(job, made)):
            answer = record.new_evaluation(
                *(ask.identity, ask.question.evaluation, list(ask.sets), ask.question.config, known),
                seed=job.distillation.seed,
                device_kind="cpu",
                tf32=False,
            )
            answer["status"] = self.answers
            if self.answers == "ok":
                quantity = next(iter(evaluations.get(ask.question.evaluation).quantities))
                answer["values"] = {quantity: [self.accuracy] * (ask.question.wanted or 1)}
            ask.path.parent.mkdir(exist_ok=True)
            record.write(answer, ask.path)
            self.answered.append(ask.question.evaluation)


def waiting(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Lets ``then`` happen whenever a run waits for another, in place of the seconds."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: then() if seconds == POLL_SECONDS else sleep(seconds))


def interrupt() -> None:
    raise KeyboardInterrupt


def command(output: Path, extra: str = "", base: str = SMOKE) -> list[str]:
    """The flags of ``base`` and ``extra``, of which the latter have the last word."""
    flags: dict[str, list[str]] = {}
    for words in f" {base} {extra}".split(" --")[1:]:
        flag, *values = words.split()
        flags[flag] = values
    return [word for flag, values in flags.items() for word in (f"--{flag}", *values)] + ["--output", str(output)]


def folders(output: Path) -> list[Path]:
    return list(record.folders(output))


def bytes_of(*folders: Path) -> dict[Path, bytes]:
    """All files in ``folders``."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def values(distilled: Distilled) -> list[float]:
    """The accuracies of the only evaluation."""
    (evaluation,) = distilled.evaluations
    return evaluation["values"]["accuracy"]


# What it runs


def test_a_comma_list_is_a_grid(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Pretending()
    assert main(command(tmp_path, "--ipcs 1,3 --width 4,8"), launcher=launcher) == 0
    asked = [job.distillation for job in launcher.jobs]
    assert [(each.ipc, each.width, each.seed, each.method) for each in asked] == [
        (ipc, width, seed, method)
        for ipc in (1, 3)
        for width in (4, 8)
        for seed in (0, 1)
        for method in ("dummy", "random_real")
    ]
    shown = capsys.readouterr()
    assert "dummy, random_real on digits, budget smoke" in shown.err and "[16/16]" in shown.err
    assert "random_real" in shown.out and "random_real" in (tmp_path / "table.md").read_text()
    assert {path.name for path in tmp_path.glob("table.*")} == {"table.md", "table.tex", "table.csv"}


def test_singular_and_plural_flags_are_the_same(tmp_path: Path, dummy: type[Dummy]) -> None:
    plural, singular = Pretending(), Pretending()
    others = f"--budget smoke --device cpu --output {tmp_path} --force"
    many = f"--methods dummy --datasets digits --ipcs 2 --widths 4 --seeds 1 {others}"
    single = f"--method dummy --dataset digits --ipc 2 --width 4 --seed 1 {others}"
    assert main(many.split(), launcher=plural) == main(single.split(), launcher=singular) == 0
    assert plural.distilled == singular.distilled != []


def test_a_launcher_may_take_the_jobs_in_any_order(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Several are on their way at once, with and without an earlier result."""
    for extra, accuracy in (("", 0.5), ("--force", 0.75)):
        backwards = Pretending(order=lambda jobs: reversed(list(jobs)), accuracy=accuracy)
        assert main(command(tmp_path, extra), launcher=backwards) == 0
        assert [job.distillation.seed for job in backwards.jobs] == [1, 1, 0, 0]
        assert [values(distilled) for distilled in all_in(tmp_path)] == [[accuracy]] * 4
        assert not (tmp_path / ".again").exists()
        lines = [line for line in capsys.readouterr().err.splitlines() if "accuracy " in line]
        # While several are on their way, every line says whose result it is.
        assert [line.partition("]")[0] for line in lines] == ["[4/4", "[3/4", "[2/4", "[1/4"]


# What it skips


def test_results_are_skipped_errors_tried_again_and_force_does_all(tmp_path: Path, dummy: type[Dummy]) -> None:
    for status, runs in (("ok", 0), ("oom", 0), ("timeout", 0), ("diverged", 0), ("error", 4)):
        folder = tmp_path / status
        assert main(command(folder), launcher=Pretending(status)) == (1 if runs else 0)
        assert main(command(folder), launcher=(again := Pretending())) == 0
        assert len(again.jobs) == runs
    assert main(command(tmp_path / "ok", "--force"), launcher=(forced := Pretending())) == 0
    assert len(forced.distilled) == len(forced.answered) == 4


@pytest.mark.parametrize("status", ["oom", "timeout", "diverged", "error"])
def test_an_evaluation_that_failed_is_asked_again_only_after_an_error(
    tmp_path: Path, dummy: type[Dummy], status: str
) -> None:
    failing = Pretending(answers=status)
    assert main(command(tmp_path, "", ALONE), launcher=failing) == (1 if status == "error" else 0)
    assert main(command(tmp_path, "", ALONE), launcher=(again := Pretending())) == 0
    assert again.distilled == [] and len(again.answered) == (1 if status == "error" else 0)


def test_a_new_question_distils_nothing(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does another word for the same settings: a budget is no part of an identity."""
    assert main(command(tmp_path, "", ALONE), launcher=(first := Pretending())) == 0
    more = ("--networks-evaluated 3", "--evaluate-steps 7", "--accuracy.width 5")
    for extra in (*more, "--budget quick --steps 4 --dummy.lr 0.1"):
        capsys.readouterr()
        assert main(command(tmp_path, extra, ALONE), launcher=(again := Pretending())) == 0
        assert again.distilled == [] and again.answered == ["accuracy"] and len(first.distilled) == 1
        assert "distilled before on" in (said := capsys.readouterr().err) and "asked for accuracy" in said
    (distilled,) = all_in(tmp_path)
    assert len(distilled.evaluations) == 4 and distilled.record["asked"]["budget"] == "smoke"
    # What is there is enough for fewer.
    assert main(command(tmp_path, "--accuracy.networks 2", ALONE), launcher=(less := Pretending())) == 0
    assert less.jobs == []


def test_failing_to_add_values_keeps_those_there(
    tmp_path: Path, dummy: type[Dummy], quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=in_process) == 0
    (before,) = all_in(tmp_path)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(evaluations.get("accuracy"), "run", full)
    for extra in ("--networks-evaluated 2", "--force"):
        capsys.readouterr()
        assert main(command(tmp_path, extra, ALONE), launcher=in_process) == 1
        assert "oom: MemoryError; the earlier answer is kept" in capsys.readouterr().err
        assert [values(distilled) for distilled in all_in(tmp_path)] == [values(before)]


def test_damaged_files_are_put_aside_and_made_again(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(tmp_path), launcher=(first := Pretending()))
    folder = first.jobs[2].path
    (answer,) = (folder / EVALUATIONS).iterdir()
    for damaged, distilled, answered in ((folder / RECORD, 1, 0), (answer, 0, 1)):
        damaged.write_text('{"schema": 1')
        capsys.readouterr()
        assert main(command(tmp_path), launcher=(again := Pretending())) == 0
        assert [job.path for job in again.jobs] == [folder]
        assert (len(again.distilled), len(again.answered)) == (distilled, answered)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "damaged record" in line]
        assert str(damaged) in line
        for number in (2, 3):  # none is lost, however many there are
            damaged.write_text(f"[{number}")
            assert main(command(tmp_path), launcher=Pretending()) == 0
            assert damaged.with_name(f"{damaged.name}.damaged-{number}").read_text() == f"[{number}"
        assert damaged.with_name(f"{damaged.name}.damaged").read_text() == '{"schema": 1'


def test_a_damaged_answer_to_another_question_is_a_line(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(tmp_path, "", ALONE), launcher=(first := Pretending()))
    other = first.jobs[0].path / EVALUATIONS / "other-01234567.json"
    other.write_text("{")
    assert main(command(tmp_path, "--evaluate-steps 3", ALONE), launcher=Pretending()) == 0
    shown = capsys.readouterr()
    assert f"damaged record {other}" in shown.err and "dummy" in shown.out and other.read_text() == "{"


@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "altered"])
@pytest.mark.parametrize("content", ["a set", "another set"])
def test_a_set_that_is_not_whole_is_distilled_again(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], fault: str, content: str
) -> None:
    """What was asked of the same set needs no new answer."""
    first = Pretending()
    assert main(command(tmp_path, "", ALONE), launcher=first) == 0
    path, whole = first.jobs[0].path / SET, (first.jobs[0].path / SET).read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-5], "altered": whole[:-1] + b"!"}[fault])
    capsys.readouterr()
    assert main(command(tmp_path, "", ALONE), launcher=(again := Pretending(content=content, accuracy=0.75))) == 0
    said = capsys.readouterr().err
    assert f"its set {SET} is " in said and "it is distilled again" in said and "done before" not in said
    assert again.distilled == first.distilled and len(again.answered) == (content != "a set")
    assert values(all_in(tmp_path)[0]) == [0.5 if content == "a set" else 0.75]
    assert main(command(tmp_path, "", ALONE), launcher=(skipped := Pretending())) == 0 and skipped.jobs == []


def test_points_of_a_curve_that_are_asked_for_later_need_the_sets_on_the_way(
    tmp_path: Path, dummy: type[Dummy], quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=in_process) == 0
    (before,) = all_in(tmp_path)
    answer = bytes_of(before.folder / EVALUATIONS)
    assert main(command(tmp_path, "--curve-points 2", ALONE), launcher=in_process) == 0
    assert "the sets of a curve with 2 points were not kept: it is distilled again" in capsys.readouterr().err
    (after,) = all_in(tmp_path)
    steps = [snapshot["step"] for snapshot in after.record["snapshots"]]
    asked = [evaluation["sets"][0]["step"] for evaluation in after.evaluations]
    assert steps and sorted(asked, key=str) == sorted([None, *steps], key=str)
    assert answer.items() <= bytes_of(after.folder).items(), "the last set is the same, and so is its answer"
    for extra in ("--curve-points 2", ""):
        assert main(command(tmp_path, extra, ALONE), launcher=(skipped := Pretending())) == 0 and skipped.jobs == []
    (after.folder / after.record["snapshots"][0]["name"]).write_bytes(b"altered")
    capsys.readouterr()
    assert main(command(tmp_path, "--curve-points 2", ALONE), launcher=in_process) == 0
    assert "is not as it was written: it is distilled again" in capsys.readouterr().err
    snapshots = [each.record["snapshots"] for each in (after, *all_in(tmp_path))]
    assert len({tuple(snapshot["sha256"] for snapshot in each) for each in snapshots}) == 1


# What it keeps


@pytest.mark.parametrize("status", ["ok", "oom", "timeout", "diverged", "error", "killed"])
def test_a_result_stays_until_there_is_another(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], status: str
) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=Pretending()) == 0
    (folder,) = folders(tmp_path)
    before = bytes_of(folder)
    assert {path.name.partition("-")[0] for path in before} == {RECORD, SET, "accuracy"}

    def again(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for job in Pretending("error" if status == "killed" else status, accuracy=0.75)(jobs):
            assert bytes_of(folder) == before, "lost while the cell runs"
            (job.path / LOG).write_text("why")
            if status == "killed":
                interrupt()
            yield job

    code = main(command(tmp_path, "--force", ALONE), launcher=again)
    said = capsys.readouterr().err
    assert code == {"ok": 0, "killed": 130}.get(status, 1)
    assert not (tmp_path / ".again").exists() and not list(tmp_path.glob(".*.earlier"))
    assert ("the earlier result is kept" in said) == (status not in ("ok", "killed"))
    (distilled,) = all_in(tmp_path)
    assert distilled.record["status"] == "ok" and values(distilled) == [0.75 if status == "ok" else 0.5]
    if status not in ("ok", "killed"):
        assert f"{status}: a reason" in said and (folder / LOG).read_text() == "why"
        (folder / LOG).unlink()
    assert (bytes_of(folder) == before) == (status != "ok")
    assert main(command(tmp_path, "", ALONE), launcher=(skipped := Pretending())) == 0 and skipped.jobs == []


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize(
    ("ends", "accuracy"), [(0, 0.5), (1, 0.75), (2, 0.75), (3, 0.75)], ids=lambda value: str(value)
)
def test_a_run_that_is_killed_between_two_results_leaves_a_whole_one(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, ends: int, accuracy: float
) -> None:
    """Before, between and after the two moves of folders, and while the earlier one is removed."""
    assert main(command(tmp_path, "", ALONE), launcher=Pretending()) == 0
    moves = iter(range(10))
    replace, rmtree = os.replace, shutil.rmtree

    def replaced(source: Path, target: Path) -> None:
        if Path(source).is_dir() and next(moves) == ends:
            raise Killed
        replace(source, target)

    def removed(folder: Path, **_: Any) -> None:
        if folder.name.endswith(".earlier"):
            if ends == 3:
                (folder / RECORD).unlink()
            raise Killed
        rmtree(folder, ignore_errors=True)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", replaced)
        patched.setattr(shutil, "rmtree", removed)
        main(command(tmp_path, "--force", ALONE), launcher=Pretending(accuracy=0.75))
    assert main(command(tmp_path, "", ALONE), launcher=(skipped := Pretending())) == 0 and skipped.jobs == []
    assert [values(distilled) for distilled in all_in(tmp_path)] == [[accuracy]]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_answers_to_other_questions_about_the_same_set_outlive_it(tmp_path: Path, dummy: type[Dummy]) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=Pretending()) == 0
    assert main(command(tmp_path, "--evaluate-steps 7", ALONE), launcher=Pretending()) == 0
    assert main(command(tmp_path, "--force", ALONE), launcher=(forced := Pretending(accuracy=0.75))) == 0
    assert forced.answered == ["accuracy"]
    (distilled,) = all_in(tmp_path)
    assert {each["config"]["steps"]: each["values"]["accuracy"] for each in distilled.evaluations} == {
        7: [0.5],
        20: [0.75],
    }


def test_what_was_no_good_result_is_replaced(tmp_path: Path, dummy: type[Dummy]) -> None:
    for status, extra, code, stands in (
        ("oom", "", 0, "oom"),
        ("diverged", "--force", 0, "diverged"),
        ("error", "--force", 1, "diverged"),  # an error is no result
    ):
        assert main(command(tmp_path, extra, ALONE), launcher=Pretending(status)) == code
        assert [distilled.record["status"] for distilled in all_in(tmp_path)] == [stands]


@pytest.mark.parametrize("changes", [{"schema": 99}, {"protocol_version": "99"}], ids=["schema", "protocol"])
@pytest.mark.parametrize("place", ["record", "evaluation", "elsewhere"])
def test_a_record_of_a_newer_version_stops_the_run(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], changes: dict[str, Any], place: str
) -> None:
    first = Pretending()
    assert main(command(tmp_path), launcher=first) == 0
    folder = first.jobs[-1].path
    if place == "elsewhere":
        folder = folder.rename(tmp_path / "other")
    path = next((folder / EVALUATIONS).iterdir()) if place == "evaluation" else folder / RECORD
    newer = json.dumps({**json.loads(path.read_text()), **changes})
    path.write_text(newer)
    capsys.readouterr()
    assert main(command(tmp_path, "--force"), launcher=(launcher := Pretending())) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {path} was written by a newer version of this suite (")
    assert launcher.jobs == [] and path.read_text() == newer and not list(tmp_path.rglob("*.damaged*"))


def test_a_run_that_forces_is_alone_in_its_output(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    """A second one is refused while the first runs; one without --force, other folders and later runs are free."""
    inner = Pretending()
    codes = list[int]()

    def second() -> None:
        for arguments in (
            command(tmp_path, "--force"),
            command(tmp_path, "--seeds 7 --force"),
            command(tmp_path, "--seeds 7"),
            command(tmp_path / "other", "--force"),
        ):
            codes.append(main(arguments, launcher=inner))

    assert main(command(tmp_path, "--force"), launcher=(outer := Pretending(after={1: second}))) == 0
    assert codes == [2, 2, 0, 0] and len(outer.jobs) == 4
    assert Counter(job.path.parent for job in inner.jobs) == {tmp_path: 2, tmp_path / "other": 4}
    refusals = [line for line in capsys.readouterr().err.splitlines() if "is in use by" in line]
    assert len(refusals) == 2
    assert refusals[0].startswith(f"error: {tmp_path} is in use by process {os.getpid()} on {platform.node()}")
    assert f"python -m harness.run {SMOKE[:30]}" in refusals[0] and refusals[0].endswith("name another --output")
    assert not (tmp_path / FOLDER).exists()
    assert main(command(tmp_path, "--force"), launcher=(later := Pretending())) == 0 and len(later.jobs) == 4


def test_a_folder_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom harness.records.files import only_runner\n"
        "with only_runner(Path(sys.argv[1]), 'a run'):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == -signal.SIGKILL
    with only_runner(tmp_path, "another"), pytest.raises(UserError, match="another"), only_runner(tmp_path, "a third"):
        pass


# Several runs in one folder


def test_what_another_run_does_is_left_to_it_and_awaited(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the other cells first; the result of the other run is in its table."""
    jobs = plan(request(output=tmp_path, **ONE_SEED))
    other = take(path_of(jobs[0].path), "the other run")
    waits = list[int]()

    def wait() -> None:
        waits.append(0)
        if len(waits) == 3:
            list(Pretending(accuracy=0.75)([jobs[0]]))
            other.release()

    waiting(monkeypatch, wait)
    arguments = command(tmp_path, "--seeds 0,1", ALONE)
    assert main(arguments, launcher=(ours := Pretending())) == 0
    assert [job.distillation.seed for job in ours.jobs] == [1] and len(waits) == 3
    shown = capsys.readouterr()
    assert f"[1/2] dummy on digits, ipc 1, width 4, seed 0: left for now to process {os.getpid()} on" in shown.err
    assert "[1/2] dummy on digits, ipc 1, width 4, seed 0: ok, done meanwhile on" in shown.err
    assert shown.err.index("left for now") < shown.err.index("[2/2]") and "1 × 2" in shown.out


def test_a_launcher_with_a_queue_is_given_what_a_job_of_an_earlier_command_does(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only it knows that the job is its own."""
    (job,) = plan(request(output=tmp_path, **ONE_SEED))
    earlier = take(path_of(job.path), "a job in the queue")
    arguments = [*command(tmp_path, "", ALONE), "--launcher", "slurm"]
    assert main(arguments, launcher=(ours := Pretending(after={0: earlier.release}))) == 0
    assert [each.distillation.seed for each in ours.jobs] == [0] and "left for now" not in capsys.readouterr().err


def test_what_another_run_has_not_done_is_taken_up(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other is gone, or its cell was stopped."""
    jobs = plan(request(output=tmp_path, **ONE_SEED))
    other = take(path_of(jobs[0].path), "the other run")
    waiting(monkeypatch, other.release)
    assert main(command(tmp_path, "", ALONE), launcher=(ours := Pretending())) == 0 and len(ours.jobs) == 1


def test_an_error_in_another_run_is_not_tried_again(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = plan(request(output=tmp_path, **ONE_SEED))
    other = take(path_of(jobs[0].path), "the other run")

    def fail() -> None:
        list(Pretending("error")(jobs[:1]))
        other.release()

    waiting(monkeypatch, fail)
    assert main(command(tmp_path, "", ALONE), launcher=(ours := Pretending())) == 1 and ours.jobs == []
    assert "seed 0: error in another run: a reason" in capsys.readouterr().err


def test_what_the_launcher_leaves_to_another_run_is_looked_at_again(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cell met a lease that was not there a moment before."""
    ours = Pretending()

    def launcher(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for job in jobs:
            calls.append(job.distillation.seed)
            if len(calls) > 1:
                yield from ours([job])

    calls = list[int]()
    waiting(monkeypatch, lambda: None)
    assert main(command(tmp_path, "--seeds 0,1", ALONE), launcher=launcher) == 0
    assert calls == [0, 1, 0] and len(all_in(tmp_path)) == 2


def test_a_result_that_another_run_makes_anew_is_awaited(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have lost the same set: it is made once."""
    first = Pretending()
    assert main(command(tmp_path, "", ALONE), launcher=first) == 0
    folder = first.jobs[0].path
    before = bytes_of(folder)
    (folder / SET).unlink()
    other = take(exchange_of(tmp_path / AGAIN / folder.name), "the other run")

    def exchange() -> None:
        for path, content in before.items():
            path.write_bytes(content)
        other.release()

    waiting(monkeypatch, exchange)
    assert main(command(tmp_path, "", ALONE), launcher=(ours := Pretending())) == 0 and ours.jobs == []


def test_answers_that_another_run_adds_meanwhile_outlive_an_exchange(tmp_path: Path, dummy: type[Dummy]) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=Pretending()) == 0

    def more() -> None:
        assert main(command(tmp_path, "--evaluate-steps 7", ALONE), launcher=Pretending()) == 0

    assert main(command(tmp_path, "--force", ALONE), launcher=Pretending(accuracy=0.75, after={0: more})) == 0
    (distilled,) = all_in(tmp_path)
    assert {each["config"]["steps"] for each in distilled.evaluations} == {7, 20}


def test_runs_in_one_folder_share_the_work(tmp_path: Path, quick: None) -> None:
    """Processes for real, some of which are killed in the middle of a cell: no cell twice, and none lost."""
    runs, killed, log = 4, 2, tmp_path / "log"
    distil = cell._Cell.distil

    def leased(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for job in jobs:
            try:
                with lease.taken([path_of(job.path)], "a test"):
                    cell.run(job)
            except Held:
                continue
            yield job

    def work(number: int) -> None:
        def logged(self: Any) -> Any:
            if number < killed:
                os.kill(os.getpid(), signal.SIGKILL)
            written = distil(self)
            with open(log, "a") as file:
                file.write(f"{self.job.path.name}\n")
            return written

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cell._Cell, "distil", logged)
            os._exit(main(arguments, launcher=leased))

    base = "--methods random_real,herding --dataset digits --budget smoke --width 4 --device cpu --evaluate-steps 2"
    arguments = command(tmp_path / "out", "--seeds 0,1,2,3", base)
    processes = list[int]()
    for number in range(runs):
        if (process := os.fork()) == 0:
            work(number)
        processes.append(process)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    assert statuses == [-signal.SIGKILL] * killed + [0] * (runs - killed)
    names = log.read_text().split()
    assert len(names) == len(set(names)) == len(all_in(tmp_path / "out")) == 8
    assert len((tmp_path / "out" / "table.csv").read_text().splitlines()) == 3
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr(tempfile, "TemporaryFile", full)

    assert main(command(tmp_path), launcher=(launcher := Pretending(after={1: fill}))) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"stopped, as the folder {tmp_path} cannot be written (No space left on device): name another folder; 2 of 4 "
        f"cells are done and kept in {tmp_path}; the same command goes on with the next"
    )
    assert len(launcher.jobs) == len(folders(tmp_path)) == 2
    monkeypatch.undo()


def test_an_interrupt_between_two_results_leaves_the_new_one(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=Pretending()) == 0
    replace = os.replace

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name.endswith(".earlier"):
            interrupt()

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replaced)
        assert main(command(tmp_path, "--force", ALONE), launcher=Pretending(accuracy=0.75)) == 130
    assert [values(distilled) for distilled in all_in(tmp_path)] == [[0.75]]


def test_a_second_interrupt_ends_without_a_traceback(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "show", lambda distilled: interrupt())
    assert main(command(tmp_path), launcher=Pretending(after={2: interrupt})) == 130
    assert "Traceback" not in capsys.readouterr().err and len(folders(tmp_path)) == 2


def test_an_interrupt_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "forced", "--force"), launcher=Pretending(after={2: interrupt})) == 130
    assert "the same command without --force goes on with those that have no result" in capsys.readouterr().err
    assert main(command(tmp_path), launcher=Pretending(after={2: interrupt})) == 130
    shown = capsys.readouterr()
    assert "2 of 4 cells are done and kept" in shown.err and "dummy" in shown.out
    assert len(folders(tmp_path)) == 4  # with those of the other run
    again = Pretending()
    assert main(command(tmp_path), launcher=again) == 0
    ran = [(job.distillation.seed, job.distillation.method) for job in again.jobs]
    assert ran == [(1, "dummy"), (1, "random_real")]


def test_methods_that_take_turns_are_a_cell_each(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    base = "--methods dummy,dm --dataset digits --budget cost --interleave --width 4,8 --device cpu"
    assert main(command(tmp_path, "", base), launcher=Pretending(after={1: interrupt})) == 130
    assert "stopped; 2 of 4 cells are done" in capsys.readouterr().err and len(folders(tmp_path)) == 2
    assert main(command(tmp_path, "", base), launcher=(again := Pretending())) == 0
    assert [job.distillation.width for job in again.jobs] == [8] and len(folders(tmp_path)) == 4


def test_a_cell_without_a_record_stops_the_run_and_its_launcher(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was started must not go on beside the table."""
    ended = []

    def launcher(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        try:
            yield next(iter(Pretending()(jobs)))
            yield from jobs
        finally:
            ended.append(not (tmp_path / "table.md").exists())

    assert main(command(tmp_path), launcher=launcher) == 1
    assert ended == [True] and (tmp_path / "table.md").exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped, as ") and "has no record, or one that cannot be read; 1 of 4 cells are" in last


def test_files_that_cannot_be_read_stop_the_run_with_its_table(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a copy")

    assert main(command(tmp_path), launcher=Pretending()) == 0
    monkeypatch.setattr(shutil, "copytree", full)
    assert main(command(tmp_path, "--force"), launcher=(launcher := Pretending())) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped, as a copy: No space left on device; 0 of 4 cells are done") and not launcher.jobs


def test_interrupted_and_uninterrupted_runs_give_the_same_bytes(
    tmp_path: Path, dummy: type[Dummy], quick: None
) -> None:
    def stopped(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for number, job in enumerate(jobs):
            if number == 2:
                interrupt()
            yield from in_process([job])

    assert main(command(tmp_path / "a"), launcher=in_process) == 0
    assert main(command(tmp_path / "b"), launcher=stopped) == 130
    before = bytes_of(*folders(tmp_path / "b"))
    assert main(command(tmp_path / "b"), launcher=in_process) == 0
    assert before.items() <= bytes_of(*folders(tmp_path / "b")).items()
    whole, resumed = all_in(tmp_path / "a"), all_in(tmp_path / "b")
    assert len(whole) == len(resumed) == 4
    for ours, theirs in zip(whole, resumed, strict=True):
        assert ours.set_path.read_bytes() == theirs.set_path.read_bytes()
        assert ours.record["identity"] == theirs.record["identity"] and values(ours) == values(theirs)


# What it shows


def test_a_smaller_run_takes_no_row_out_of_the_tables(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(tmp_path), launcher=Pretending())
    before = (tmp_path / "table.csv").read_text()
    capsys.readouterr()
    assert main(command(tmp_path, "--methods dummy --no-random --seeds 0"), launcher=Pretending()) == 0
    assert (tmp_path / "table.csv").read_text() == before and "random_real" in (tmp_path / "table.md").read_text()
    shown = capsys.readouterr()
    rows = shown.out.partition("---")[2]
    assert "dummy" in rows and "random_real" not in rows and "the 4 records there" in shown.err


def test_tables_that_cannot_be_written_are_a_line_and_status_1(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.md").mkdir()
    assert main(command(tmp_path), launcher=Pretending()) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith(f"error: the tables cannot be written into {tmp_path}: ")
    assert "random_real" in shown.out and len(folders(tmp_path)) == 4


def test_random_real_is_in_every_table(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    for extra, ran in (("", ["dummy", "random_real"]), ("--no-random", ["dummy"])):
        asked = command(tmp_path / extra, f"--methods dummy --seeds 0 {extra}")
        assert main(asked, launcher=(launcher := Pretending())) == 0
        shown = capsys.readouterr()
        assert [job.distillation.method for job in launcher.jobs] == ran
        assert (
            ("random_real" in shown.out.partition("---")[2]) == ("random_real runs as well" in shown.err) == (not extra)
        )


def test_the_ceiling_is_trained_on_all_real_images(
    tmp_path: Path, dummy: type[Dummy], quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = command(tmp_path, "--ceiling --evaluate-steps 1", f"{SMOKE} --ipcs 1,2 --curve-points 2")
    assert main(asked, launcher=in_process) == 0
    (ceiling,) = [each for each in all_in(tmp_path) if each.record["distillation"]["method"] == WHOLE_DATA]
    assert ceiling.record["status"] == "ok" and ceiling.record["artifact"] is None and len(values(ceiling)) == 1
    (asked_set,) = ceiling.evaluations[0]["sets"]
    assert asked_set == {"distillation": ceiling.record["identity"], "step": None, "sha256": None}
    assert ceiling.folder.name.startswith("digits-whole_data-convnet-w4-seed0-")
    assert WHOLE_DATA in capsys.readouterr().out.partition("---")[2]
    assert main(asked, launcher=(skipped := Pretending())) == 0 and skipped.jobs == []


def test_there_is_a_ceiling_for_every_recipe_network_and_preprocessing(tmp_path: Path) -> None:
    def ceilings(**changes: Any) -> list[tuple[str, list[str]]]:
        jobs = plan(request(output=tmp_path, ceiling=True, seeds=(0, 1), ipcs=(1, 2), **changes))
        return [
            (job.distillation.network, [question.config["protocol"] for question in job.questions])
            for job in jobs
            if job.distillation.method == WHOLE_DATA
        ]

    assert ceilings(methods=("dm", "random_real")) == [("convnet", ["vico"])]
    assert ceilings(methods=("frepo", "dm")) == [("convnet_doubling", ["frepo"]), ("convnet", ["vico"])]
    assert ceilings(methods=("frepo", "dm"), network="convnet") == [("convnet", ["frepo"]), ("convnet", ["vico"])]
    assert ceilings(methods=("frepo", "kip"), network="convnet") == [("convnet", ["frepo", "kip"])]
    assert ceilings(methods=("frepo", "dm"), network="alexnet") == [("alexnet", ["frepo"]), ("alexnet", ["vico"])]
    assert ceilings(methods=("frepo", "dm"), protocol="common") == [("convnet_doubling", ["common"])]


def test_images_are_decoded_whitened_and_hashed_once_for_a_plan_and_all_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    from PIL import Image

    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(name), ord(name[-1]), 9)).save(tmp_path / "pets" / name / "1.png")
    calls = Counter[str]()

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.update([name]) or real(*a, **k))

    for owner, name in ((image_files, "decoded"), (source, "_fingerprint"), (preprocess, "fit")):
        counted(owner, name)
    base = f"--methods frepo --no-random --dataset folder:{tmp_path / 'pets'} --budget smoke --device cpu --seeds 0,1"
    assert main(command(tmp_path / "out", "--steps 1 --width 4", base), launcher=in_process) == 0
    assert {each.record["distillation"]["preprocess"] for each in all_in(tmp_path / "out")} == {"zca_frepo"}
    assert calls == {"decoded": 1, "_fingerprint": 1, "fit": 1}


def test_a_failed_cell_does_not_stop_the_others(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    assert main(command(tmp_path, "--dummy.fail error"), launcher=in_process) == 1
    statuses = [distilled.record["status"] for distilled in all_in(tmp_path)]
    assert sorted(statuses) == ["error", "error", "ok", "ok"]
    assert "error: RuntimeError: the first line" in capsys.readouterr().err


def test_a_narrow_network_is_said_once(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    base = "--methods random_real --dataset digits --device cpu"
    for extra, said in (("--budget smoke", "width 8 instead of 128"), ("", "width 32 instead of 128")):
        main(command(tmp_path, extra, base), launcher=(launcher := Pretending()))
        assert capsys.readouterr().err.count(said) == 1
        assert f"width {launcher.jobs[0].distillation.width} " in said
    main(command(tmp_path, "--width 16", base), launcher=Pretending())
    assert "instead of" not in capsys.readouterr().err


# Evaluations of others


def test_evaluations_have_typed_options_and_columns(
    tmp_path: Path, dummy: type[Dummy], quick: None, probe: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "", ALONE), launcher=in_process) == 0
    asked = "--evaluations accuracy,probe --probe.rate 2 --accuracy.networks 2"
    capsys.readouterr()
    assert main(command(tmp_path, asked, ALONE), launcher=in_process) == 0
    shown = capsys.readouterr()
    assert "asked for accuracy, probe" in shown.err and "n = 2; rate " in shown.err
    assert "rate" in shown.out.partition("---")[0]
    (distilled,) = all_in(tmp_path)
    accuracy, other = distilled.evaluations
    assert len(accuracy["values"]["accuracy"]) == 2
    assert other["config"] == {"rate": 2.0, "name": "rate"} and len(other["values"]["rate"]) == 1
    assert main(command(tmp_path, asked, ALONE), launcher=(skipped := Pretending())) == 0 and skipped.jobs == []
    assert main(command(tmp_path, asked.replace("2", "3"), ALONE), launcher=(again := Pretending())) == 0
    assert again.answered == ["accuracy", "probe"], "one grows, the other asks another question"


def test_a_series_without_values_is_left_out_and_values_that_grow_are_as_many_as_asked_for(
    tmp_path: Path,
    dummy: type[Dummy],
    quick: None,
    probe: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    series = Quantity("kept", percent=False, against="class")
    monkeypatch.setattr(Probe, "quantities", {**Probe.quantities, "kept": series, "more": series})
    monkeypatch.setattr(Probe, "run", lambda *_: {"rate": [1.0], "kept": [], "more": [2.0, 3.0]})
    asked = command(tmp_path, "--evaluations probe", ALONE)
    assert main(asked, launcher=in_process) == 0
    assert "rate 1, kept 3, n = 2" in capsys.readouterr().err
    monkeypatch.setattr(Probe, "grows", "networks")
    monkeypatch.setattr(Probe, "Config", TurnedConfig)
    assert main(asked, launcher=in_process) == 1
    assert "probe returned 1 values of rate; asked for were 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--evaluations prbe", "unknown evaluation 'prbe': did you mean 'probe'?"),
        ("--probe.rate 2", "--probe.rate: probe is not among the evaluations, accuracy"),
        (
            "--evaluations probe --accuracy.networks 2",
            "--accuracy.networks: accuracy is not among the evaluations",
        ),
        ("--evaluations probe --probe.rate x", "--probe.rate takes a finite number, not 'x'"),
        ("--accuracy.netwroks 2", "unknown hyper-parameter --accuracy.netwroks: did you mean --accuracy.networks? Tho"),
        ("--accuracy.networks many", "--accuracy.networks takes a whole number, not 'many'"),
        ("--accuracy.networks 0", "--accuracy.networks is 0; it must be at least 1"),
        ("--accuracy.protocol vicco", "unknown protocol 'vicco': did you mean 'vico'?"),
        ("--budget cost --accuracy.networks 2", "--accuracy.networks: accuracy is not among the evaluations, none"),
    ],
)
def test_wrong_options_of_evaluations_are_a_line(
    tmp_path: Path, dummy: type[Dummy], probe: list[Any], capsys: pytest.CaptureFixture[str], asked: str, message: str
) -> None:
    assert main(command(tmp_path, asked, ALONE), launcher=(launcher := Pretending())) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"error: {message}") and shown.err.count("\n") == 1
    assert launcher.jobs == []


# What determines a result


def test_hyper_parameters_are_resolved_in_order() -> None:
    def lr(ipc: int, budget: str, *options: str) -> tuple[float, int | None]:
        config, steps = resolve({"dummy": Dummy}, "digits", ipc, budget, {"dummy": list(options)})["dummy"]
        return config.lr, steps

    assert lr(1, "smoke") == (0.1, 4)  # the default; steps of the budget
    assert lr(2, "smoke") == (0.2, 4)  # what the paper says, but not its steps
    assert lr(2, "quick") == (0.3, BUDGETS["quick"].steps)  # the budget has the last word before the command line
    assert lr(2, "quick", "--dummy.lr", "0.4") == (0.4, BUDGETS["quick"].steps)
    assert lr(2, "long") == (0.3, None)  # as quick, for seconds
    assert lr(2, "paper") == (0.2, 9)
    with pytest.raises(UserError, match=r"no published setting for dummy on digits at ipc 1.*digits 2"):
        lr(1, "paper")


def test_selection_needs_no_published_setting_and_has_no_steps(tmp_path: Path) -> None:
    for changes in ({"budget": "paper"}, {"steps": 7}, {"seconds": 3.0, "seconds_include_prepare": True}):
        (job,) = plan(request(methods=("random_real",), output=tmp_path, **changes))
        asked = job.distillation
        assert asked.steps is None and asked.seconds is None and not asked.seconds_include_prepare
    assert [question.config["protocol"] for question in job.questions] == ["vico"]


def test_budgets_fix_networks_width_and_evaluation(tmp_path: Path, dummy: type[Dummy]) -> None:
    def asked(**changes: Any) -> tuple[int, list[tuple[int, int | None]]]:
        (job,) = plan(request(output=tmp_path, **changes))
        return job.distillation.width, [(q.config["networks"], q.config["steps"]) for q in job.questions]

    assert {budget: asked(budget=budget, ipcs=(2,)) for budget in BUDGETS} == {
        "smoke": (8, [(1, 20)]),
        "quick": (32, [(3, 1000)]),
        "long": (128, [(3, None)]),
        "paper": (128, [(5, None)]),
        "cost": (32, []),
    }
    assert asked(networks_evaluated=2, evaluate_steps=7)[1] == [(2, 7)]
    (job,) = plan(request(output=tmp_path, budget="long", seconds_include_prepare=True))
    assert job.distillation.seconds == BUDGETS["long"].seconds and job.distillation.seconds_include_prepare


def test_protocols_and_networks(tmp_path: Path) -> None:
    def shape(**changes: Any) -> tuple[str, str, str, str]:
        (job,) = plan(request(**{"methods": ("frepo",), "output": tmp_path, **changes}))
        asked = job.distillation
        return job.questions[0].config["protocol"], asked.network, asked.norm, asked.preprocess

    assert shape() == ("frepo", "convnet_doubling", "batch", "standardise")
    assert shape(network="convnet") == ("frepo", "convnet", "batch", "standardise")
    assert shape(protocol="common") == ("common", "convnet_doubling", "batch", "standardise")
    assert shape(protocol="common", methods=("dm",)) == ("common", "convnet_doubling", "instance", "standardise")
    assert shape(protocol="common", norm="none")[2] == "none"
    assert shape(network="alexnet") == ("frepo", "alexnet", "batch", "standardise")
    assert shape(network="mlp") == ("frepo", "mlp", "none", "standardise"), "its usual norm"
    assert shape(network="alexnet", protocol="common") == ("common", "alexnet", "batch", "standardise")


def other_than(value: Any) -> Any:
    return not value if isinstance(value, bool) else 7 if isinstance(value, int | float) or value is None else "x"


def test_everything_that_determines_a_set_is_in_its_identity(tmp_path: Path, dummy: type[Dummy]) -> None:
    (job,) = plan(request(output=tmp_path))
    names = [field.name for field in dataclasses.fields(Distillation)]
    changed = [{name: other_than(getattr(job.distillation, name))} for name in names]
    others = [dataclasses.replace(job.distillation, **change).identity(job.config) for change in changed]
    others += [job.distillation.identity({**job.config, name: "other"}) for name in job.config]
    assert len({job.identity, *others}) == 1 + len(names) + len(job.config)
    for changes in ({"budget": "quick"}, {"evaluate_steps": 7}, {"networks_evaluated": 9}, {"curve_points": 3}):
        (same,) = plan(request(**{"output": tmp_path, "steps": job.distillation.steps, **changes}))
        assert dataclasses.replace(same.distillation, width=job.distillation.width).identity(job.config) == job.identity


def test_everything_that_determines_an_answer_is_in_its_identity(tmp_path: Path, dummy: type[Dummy]) -> None:
    """How many values there are, and how many networks are trained at a time, is no part of it."""
    (job,) = plan(request(output=tmp_path))
    (question,) = job.questions
    asked = {"distillation": job.identity, "step": None, "sha256": "a"}

    def identity(
        config: Mapping[str, Any] = {}, name: str = "accuracy", place: Mapping[str, Any] = {}, **changes: Any
    ) -> str:
        own = Question(name, {**question.config, **config}, question.grows)
        circumstances = {"seed": 0, "device_kind": "cpu", "tf32": False, **changes}
        return own.identity([{**asked, **place}], **circumstances)  # type: ignore[typeddict-item]

    free = ("networks", "networks_at_once")
    assert {identity({name: 9}) for name in free} == {identity()} == {identity(place={"sha256": "b"})}
    others = [identity({name: other_than(value)}) for name, value in question.config.items() if name not in free]
    others += [identity(name="other"), identity(seed=1), identity(device_kind="cuda"), identity(tf32=True)]
    others += [identity(place={"step": 3}), identity(place={"distillation": "x"})]
    assert len({identity(), *others}) == 1 + len(others)


def test_own_folders_are_known_by_name_and_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for split_name in ("train", "test"):
        for index, label in enumerate(("cat", "dog")):
            (tmp_path / "my pets" / split_name / label).mkdir(parents=True)
            Image.new("RGB", (8, 8), (90 * index, 9, 9)).save(tmp_path / "my pets" / split_name / label / "1.png")
    (tmp_path / "my pets" / "train" / "cat" / "2.heic").touch()
    wanted = request(
        methods=("random_real",),
        datasets=(f"folder:{tmp_path / 'my pets'}",),
        output=tmp_path / "out",
        image_size=8,
        evaluate_steps=1,
    )
    (job,) = plan(wanted)
    assert plan(wanted) == [job]
    assert job.distillation.dataset == "folder:my pets" and str(tmp_path) not in str(job.distillation)
    assert job.path.name.startswith("folder_my_pets-ipc1-random_real-convnet-w32-seed0-")
    cell.run(job)
    assert [distilled.record["status"] for distilled in all_in(tmp_path)] == ["ok"]
    # What was left out is said once, not in each plan and each cell.
    assert [line for line in capsys.readouterr().err.splitlines() if "left out" in line] == [
        f"folder:{tmp_path / 'my pets'}: 1 file or link is left out (no suffix of an image, no regular file, or a "
        "link to images that count already), for example 'train/cat/2.heic'"
    ]


# Costs, and experiments


def test_a_cost_cell_is_the_published_setting_for_a_time(tmp_path: Path, dummy: type[Dummy]) -> None:
    def cost(**changes: Any) -> tuple[float | None, int | None, dict[str, Any]]:
        (job,) = plan(request(budget="cost", output=tmp_path, **changes))
        return job.distillation.seconds, job.distillation.steps, job.config

    assert cost(ipcs=(2,))[:2] == (20.0, None) and cost(ipcs=(2,))[2]["lr"] == 0.2  # the paper's; not its steps
    assert cost(ipcs=(1,))[2]["lr"] == DummyConfig.lr
    assert cost(seconds=3.0)[:2] == (3.0, None) and cost(steps=7)[:2] == (None, 7)


def test_only_experts_are_reduced_for_costs(tmp_path: Path) -> None:
    default = json.loads(json.dumps(dataclasses.asdict(MTT.Config())))
    asked = {"methods": ("mtt",), "budget": "cost", "output": tmp_path}
    (job,) = plan(request(**asked))
    changed = {name for name in default if job.config[name] != default[name]}
    assert changed == MTT.BUDGETS["cost"].keys() and job.reduced
    flags = [word for name in changed for word in (f"--mtt.{name}", str(default[name]))]
    (full,) = plan(request(**asked, options={"mtt": flags}))
    assert full.config == default and not full.reduced


def jobs_of(experiment: str, output: Path, **told: Any) -> list[Job]:
    asked = {"datasets": ("digits",), "device": "cpu", "output": output, **told}
    return [job for wanted in requests(experiment, asked) for job in plan(wanted)]


def test_figure3_is_a_sweep_of_costs_and_accuracies_at_one_width(tmp_path: Path) -> None:
    jobs = jobs_of("figure3", tmp_path)
    costs = [job.distillation for job in jobs if job.distillation.cost_only]
    others = [job for job in jobs if not job.distillation.cost_only]
    methods = ["frepo", "mtt", "dsa", "dm", "bptt"]
    assert [(c.width, c.method) for c in costs] == [(w, m) for w in (16, 32, 64) for m in methods]
    assert {(c.network, c.seconds) for c in costs} == {("convnet_doubling", 20.0)}
    assert [job.distillation.method for job in others] == methods
    assert {(job.distillation.width, job.distillation.network) for job in others} == {(32, "convnet_doubling")}
    assert {(job.distillation.seconds, job.curve_points) for job in others} == {(60.0, 6)}
    assert {(job.asked["budget"], job.questions[0].config["protocol"]) for job in others} == {("quick", "common")}


def test_parts_of_an_experiment_that_share_a_set_ask_all_their_questions(tmp_path: Path, dummy: type[Dummy]) -> None:
    asked = [request(output=tmp_path, curve_points=points, evaluate_steps=steps) for points, steps in ((0, 3), (4, 5))]
    (job,) = merged(job for wanted in asked for job in plan(wanted))
    assert job.curve_points == 4 and [question.config["steps"] for question in job.questions] == [3, 5]


def test_flags_override_an_experiment_each_part_taking_its_own(tmp_path: Path) -> None:
    jobs = jobs_of(
        "figure3",
        tmp_path,
        methods=("frepo", "random_real", "dm"),
        widths=(8, 256, 512),
        seconds=1.0,
        network="native",
        budget="smoke",
        curve_points=3,
        ipcs=(2,),
        options={"dm": ["--dm.batch-real", "7"]},
    )
    asked = [(j.distillation.method, j.distillation.width, j.asked["budget"], j.curve_points) for j in jobs]
    costs = [(method, width, "cost", 0) for width in (8, 256, 512) for method in ("frepo", "dm")]
    assert asked == [*costs, ("frepo", 8, "smoke", 3), ("random_real", 8, "smoke", 0), ("dm", 8, "smoke", 3)]
    assert {job.distillation.seconds for job in jobs} == {1.0, None} and {job.distillation.ipc for job in jobs} == {2}
    assert [job.distillation.network for job in jobs[:2]] == ["convnet_doubling", "convnet"]
    assert {job.config["batch_real"] for job in jobs if job.distillation.method == "dm"} == {7}
    assert [job.distillation.cost_only for job in jobs_of("figure3", tmp_path, methods=("random_real",))] == [False]


def test_the_command_of_the_paper_s_figure_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "--experiment figure3 --methods frepo,mtt,dsa,dm,bptt --dataset cifar100 --widths 16,32,64,128,256,512"
    data = tmp_path / "data"
    assert main([*asked.split(), "--device", "cpu", "--data-root", str(data), "--output", str(tmp_path / "out")]) == 2
    assert f"cifar100 is not in {data}" in capsys.readouterr().err  # all else was
    seen = requests("figure3", {"datasets": ("cifar100",), "widths": (16, 32, 64, 128, 256, 512), "device": "cpu"})
    assert [(len(each.widths or ()), each.budget) for each in seen] == [(6, "cost"), (1, "quick")]


def test_an_experiment_ends_with_figures_or_a_line_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "seaborn", None)
    asked = f"--experiment figure3_cost --methods frepo --dataset digits --width 4 --device cpu --output {tmp_path}"
    assert main(asked.split(), launcher=Pretending()) == 0
    assert "no figures, because seaborn is missing: pip install" in capsys.readouterr().err


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--methods is missing"),
        ("--methods frepo", "--dataset is missing"),
        ("--methods , --dataset digits", "expected one or more names"),
        ("--methods fripo --dataset digits", "did you mean 'frepo'"),
        ("--methods frepo --dataset digit", "did you mean 'digits'"),
        ("--methods frepo --dataset digits --network convnt", "did you mean 'convnet'"),
        ("--methods frepo --dataset digits --network resnet18 --depth 3", "resnet18 has a depth of its own"),
        ("--methods frepo --dataset digits --network vgg11", "vgg11 of depth 8 leaves nothing of 8×8 images"),
        ("--methods frepo --dataset digits --accuracy.network lenet", "lenet of depth 4 leaves nothing of 8×8 images"),
        ("--methods frepo --dataset digits --budget quik", "did you mean 'quick'"),
        ("--methods frepo --dataset digits --protocol nativ", "did you mean 'native'"),
        ("--experiment figur3 --dataset digits", "unknown experiment 'figur3': did you mean 'figure3'"),
        ("--experiment figure3_cost --dataset digits --budget quick", "--budget means nothing for --experiment"),
        ("--experiment figure3_cost --dataset digits --methods herding", "herding has no steps"),
        ("--methods frepo --dataset digits --budget cost --curve-points 3", "leave --curve-points out"),
        ("--methods frepo,random_real --dataset digits --budget cost", "random_real has no steps"),
        ("--methods frepo --dataset digits stray", "unknown argument 'stray'"),
        ("--methods frepo --dataset digits --ipc 0", "--ipcs must be at least 1, not 0"),
        ("--methods frepo --dataset digits --ipc 5000", "class '8' has 139 training images"),
        ("--methods frepo --dataset digits --width 0", "--widths must be at least 1"),
        ("--methods frepo --dataset digits --depth 0", "--depth must be at least 1"),
        ("--methods frepo --dataset digits --depth 9", "depth 9 leaves nothing of 8×8 images"),
        ("--methods frepo --dataset digits --steps 0", "--steps must be at least 1"),
        ("--methods frepo --dataset digits --seconds 0", "--seconds must be a positive number"),
        ("--methods frepo --dataset digits --seconds 3 --steps 3", "exclude each other"),
        ("--methods frepo --dataset digits --budget cost --interleave --steps 3", "give --seconds instead of --steps"),
        ("--methods frepo --dataset digits --budget cost --interleave --log tensorboard", "leave --log out"),
        ("--methods frepo --dataset digits --seconds-include-prepare", "means nothing without --seconds"),
        ("--methods frepo --dataset digits --networks-evaluated 0", "--networks-evaluated must be at least 1"),
        ("--methods frepo --dataset digits --evaluate-steps 0", "--evaluate-steps must be at least 1"),
        ("--methods frepo --dataset digits --networks-at-once 0", "--networks-at-once must be at least 1"),
        ("--methods frepo --dataset digits --curve-points -1", "--curve-points must be at least 0"),
        ("--methods frepo --dataset digits --device tpu", "--device must be cpu, cuda, cuda:N"),
        ("--methods frepo --dataset digits --device cuda:99", "--device cuda:99"),
        ("--methods frepo --dataset digits --device cpu --tf32", "--tf32 needs a CUDA device"),
        ("--methods frepo --dataset digits --budget paper", "no published setting for frepo on digits"),
        ("--methods frepo --dataset cifar100", "cifar100 is not in"),
        ("--methods frepo --dataset folder:/not/there", "/not/there"),
        ("--methods frepo --dataset digits --frepo.pool-sise 3", "did you mean --frepo.pool-size? Those of frepo: lr"),
        ("--methods frepo --dataset digits --fripo.pool-size 3", "did you mean 'frepo'"),
    ],
)
def test_a_bad_request_is_one_line_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    launcher = Pretending()
    assert main([*arguments.split(), "--output", str(tmp_path)], launcher=launcher) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert message in shown.err and launcher.jobs == []


@pytest.mark.parametrize("flag", ["--output", "--cache"])
@pytest.mark.parametrize("below", ["", "/below"])
def test_folders_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, below: str
) -> None:
    (tmp_path / "file").write_text("a file is no folder, not even for root")
    folder = f"{tmp_path / 'file'}{below}"
    others = "" if flag == "--output" else f"--output {tmp_path / 'out'}"
    arguments = f"--methods random_real --dataset digits {flag} {folder} {others}".split()
    assert main(arguments, launcher=Pretending()) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and folder in shown and "cannot be written" in shown


# Help


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """Seconds are those of the processor: other work on the machine is not to blame on us."""
    code = (
        "import sys, time\nfrom harness.run import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'tyro', 'tqdm', 'sklearn', 'PIL', 'scipy', 'seaborn'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\nassert time.process_time() < 0.5, time.process_time()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in ("frepo", "random_real", "cifar100", "convnet_doubling", "accuracy", "--budget", "--image-size"):
        assert name in shown


def test_neither_planning_nor_the_start_of_a_cell_imports_what_it_can_do_without(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport harness.cell\n"
        "from harness.plan.planning import plan\nfrom harness.plan.request import Request\n"
        "wanted = {'methods': ('frepo', 'mtt'), 'datasets': ('digits',), 'budget': 'smoke', 'device': 'cpu'}\n"
        "plan(Request(**wanted, output=Path(sys.argv[1])))\n"
        "heavy = {'sklearn', 'scipy', 'pandas', 'torchvision', 'matplotlib', 'seaborn', 'higher', 'sympy'}\n"
        "heavy = (heavy | {'torch._dynamo'}) & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)


def test_help_shows_the_options_of_methods_and_evaluations_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], probe: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = "--methods frepo,random_real --evaluations accuracy,probe --budget smoke --help"
    assert main(asked.split()) == 0
    shown = capsys.readouterr().out
    assert "--frepo.pool-size INT" in shown and "networks in the pool" in " ".join(shown.split())
    assert "random_real: no hyper-parameters" in shown and "(default: 10)" in shown
    assert "--accuracy.networks INT" in shown and "--probe.rate FLOAT" in shown and "A factor." in shown
    assert list(tmp_path.iterdir()) == []


def test_list_names_papers_and_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    for words in ("figure3_accuracy", "NeurIPS 2022", "[protocol mtt]", "common", "folder:PATH"):
        assert words in shown


# Hyper-parameters


def test_hyper_parameters_are_told_from_other_flags() -> None:
    rest, options = split(
        ["--methods", "a", "--dummy.betas", ".5", "-1e-3", "--ipc", "3", "--dummy.lr=4", "--random-real.x"],
        ["dummy", "random_real"],
    )
    assert rest == ["--methods", "a", "--ipc", "3"]
    assert options == {
        "dummy": ["--dummy.betas", ".5", "-1e-3", "--dummy.lr=4"],
        "random_real": ["--random-real.x"],
    }


def test_hyper_parameters_are_typed() -> None:
    tokens = ["--dummy.betas", ".5", ".6", "--dummy.lr=4", "--dummy.fail", "nan", "--dummy.entry", "True"]
    assert parse({"dummy": DummyConfig()}, {"dummy": tokens}) == {
        "dummy": DummyConfig(lr=4.0, betas=(0.5, 0.6), fail="nan", entry=True)
    }
    assert parse({"dummy": DummyConfig(lr=7.0)}, {}) == {"dummy": DummyConfig(lr=7.0)}
