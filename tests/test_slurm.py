"""The Slurm launcher without Slurm: stand-ins for its commands, and jobs that run when a test lets them.

tests/slurm tries the same on a real cluster.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.errors import UserError
from harness import run
from harness.launch import local, slurm
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.stopping import Stopped
from tests.test_run import Pretending

submitit = pytest.importorskip("submitit")

STAND_INS = {
    "sbatch": 'test -e refuse && { echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }\n'
    'echo >> count; number=$(wc -l < count); cp "$1" "script-$number"; echo "Submitted batch job $number"',
    "squeue": "test -e silent && exit 1; cat states",
    "scontrol": "cat shown",
    "scancel": 'echo "$@" >> cancelled',
    "srun": "",
}

pytestmark = pytest.mark.usefixtures("default_signals")


class Cluster:
    """Stand-ins in a folder on PATH. Whenever the command sleeps, ``then`` happens: by default all jobs run."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.output, self.monkeypatch = folder / "cluster", folder / "output", monkeypatch
        self.folder.mkdir()
        for name, body in STAND_INS.items():
            path = self.folder / name
            path.write_text(f"#!/bin/sh\ncd {self.folder}\n{body}\n")
            path.chmod(0o755)
        (self.folder / "shown").write_text("MaxArraySize            = 1001\n")
        (self.folder / "states").write_text("")
        self.states: dict[str, str] = {}
        self.pretending, self.ticks = Pretending(), 0
        self.then: Callable[[], None] = self.run_all
        monkeypatch.setenv("PATH", str(self.folder), prepend=os.pathsep)
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: self.tick())
        monkeypatch.setattr(slurm, "time", clock)
        monkeypatch.setattr(local, "launch", self.pretending)

    def main(self, *words: str) -> int:
        usual = [
            "--methods",
            "random_real",
            "--dataset",
            "digits",
            "--budget",
            "smoke",
            "--device",
            "cpu",
            "--seeds",
            "0,1,2",
        ]
        usual += ["--output", str(self.output), "--launcher", "slurm"]
        usual += ["--slurm.poll", "1e-9"] if "--slurm.poll" not in words else []
        return run.main([*usual, *words])

    @property
    def scripts(self) -> list[str]:
        numbers = range(1, 1 + len(list(self.folder.glob("script-*"))))
        return [(self.folder / f"script-{number}").read_text() for number in numbers]

    @property
    def jobs(self) -> dict[str, str]:
        """Job → the name that it was submitted under."""
        found = {}
        for number, script in enumerate(self.scripts, 1):
            (name,) = re.findall("--job-name=(.*)", script)
            last = re.findall(r"--array=0-(\d+)", script)
            found |= {f"{number}_{i}": name for i in range(int(last[0]) + 1)} if last else {str(number): name}
        return found

    def tick(self) -> None:
        self.ticks += 1
        assert self.ticks < 100, "the command waits for nothing"
        self.states |= {job: "PENDING" for job in self.jobs if job not in self.states}
        try:
            self.then()
        finally:
            shown = [job for job, state in self.states.items() if state != "FORGOTTEN"]
            lines = [f"{job}|{self.jobs[job]}|{self.states[job]}\n" for job in shown]
            (self.folder / "states").write_text("".join(lines))

    def run_all(self) -> None:
        for job in [job for job, state in self.states.items() if state == "PENDING"]:
            self.run(job)

    def run(self, job: str) -> None:
        """What submitit does on the node."""
        paths = submitit.core.utils.JobPaths(self.output / ".slurm/logs", job)
        with pytest.MonkeyPatch.context() as patch:
            array, _, index = job.partition("_")
            patch.setenv("SLURM_JOB_ID", array)
            if index:
                patch.setenv("SLURM_ARRAY_JOB_ID", array)
                patch.setenv("SLURM_ARRAY_TASK_ID", index)
            paths.stdout.write_text("from the cell\n")
            submitit.core.utils.DelayedSubmission.load(paths.submitted_pickle).result()
        self.states[job] = "COMPLETED"

    def end_all(self, state: str) -> None:
        self.states |= {job: state for job in self.states}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(tmp_path, monkeypatch)


def batches(cluster: Cluster) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads((cluster.output / ".slurm/jobs.json").read_text())
    return content


def test_cells_are_submitted_in_arrays_and_what_ended_well_leaves_nothing(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main("--slurm.max-array", "2") == 0
    assert [re.findall("--array=(.*)", script) for script in cluster.scripts] == [["0-1%2"], []]
    assert len(cluster.pretending.distilled) == 3
    shown = capsys.readouterr().err
    assert "submitted 2 cells as job 1" in shown and "submitted 1 cell as job 2" in shown
    folder = cluster.output / ".slurm"
    assert batches(cluster) == []
    assert [path for part in ("cells", "logs") for path in (folder / part).iterdir()] == []


def test_the_script_asks_for_what_the_options_say(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a b")
    words = "--slurm.partition gpu --slurm.gpus 2 --slurm.cpus 3 --slurm.memory 3GiB --slurm.time 90min"
    words += " --slurm.array-parallelism 2 --slurm.extra account=lab,qos=high,exclude=n1"
    assert cluster.main(*words.split(), "--slurm.setup", "module load cuda; echo 'a, b'") == 0
    (script,) = cluster.scripts
    lines = script.splitlines()
    asked = "partition=gpu gpus-per-node=2 cpus-per-task=3 mem=3072M time=90 array=0-2%2 account=lab qos=high requeue"
    assert {f"#SBATCH --{each}" for each in asked.split()} <= set(lines)
    assert "#SBATCH --signal=USR2@90" in lines and "#SBATCH --open-mode=append" in lines
    assert "module load cuda; echo 'a, b'" in lines and "export PYTHONSAFEPATH=1" in lines
    assert any(re.fullmatch(r"export PYTHONPATH='.*/a b'", line) for line in lines)
    assert "srun --unbuffered" in script and "--cpus-per-task=3 --open-mode=append" in script


def test_a_short_limit_is_told_of_at_its_half(cluster: Cluster) -> None:
    assert cluster.main("--slurm.time", "61s") == 0
    assert "#SBATCH --time=2\n" in cluster.scripts[0] and "--signal=USR2@60\n" in cluster.scripts[0]


def test_a_pickle_holds_a_path_and_nothing_else(cluster: Cluster) -> None:
    seen = []

    def look() -> None:
        seen.extend(path.read_bytes() for path in (cluster.output / ".slurm/logs").glob("*.pkl"))
        cluster.run_all()

    cluster.then = look
    assert cluster.main() == 0
    assert len(seen) == 3 and all(len(each) < 600 and b"Distillation" not in each for each in seen)
    assert b"cells/digits-ipc1-random_real" in seen[0]


def test_the_command_may_stop_and_come_back(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.then = lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert cluster.main() == 75
    shown = capsys.readouterr().err
    assert "3 cells stay in the queue, to run without this command" in shown and "scancel 1" in shown
    cluster.run("1_0")  # while nobody looks
    cluster.then = cluster.run_all
    assert cluster.main() == 0
    assert len(cluster.scripts) == 1 and len(cluster.pretending.distilled) == 3
    assert "2 cells queued before, 0 to submit" in capsys.readouterr().err
    assert batches(cluster) == [] and list((cluster.output / ".slurm/cells").iterdir()) == []


def test_a_wider_request_submits_what_is_missing(cluster: Cluster) -> None:
    cluster.then = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert cluster.main() == 130
    cluster.then = cluster.run_all
    assert cluster.main("--networks-evaluated", "2", "--curve-points", "0") == 0
    assert len(cluster.scripts) == 1, "a job takes its cell as it stands when it starts"


def test_a_job_that_ran_for_an_earlier_request_is_followed_by_another(cluster: Cluster) -> None:
    cluster.then = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert cluster.main("--evaluate-steps", "3") == 130
    file = next((cluster.output / ".slurm/cells").glob("*.json"))
    earlier = file.read_text()

    def run_all() -> None:
        cluster.then = cluster.run_all
        now, _ = file.read_text(), file.write_text(earlier)  # as if it had started before the second command
        cluster.run_all()
        file.write_text(now)

    cluster.then = run_all
    assert cluster.main("--evaluate-steps", "5") == 0
    assert len(cluster.scripts) == 2 and len(cluster.pretending.answered) == 4


def test_a_command_that_was_killed_before_sbatch_answered_finds_its_jobs(cluster: Cluster) -> None:
    cluster.then = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert cluster.main() == 130
    path = cluster.output / ".slurm/jobs.json"
    (batch,) = json.loads(path.read_text())
    path.write_text(json.dumps([{**batch, "id": None}]))
    cluster.tick = cluster.run_all  # type: ignore[method-assign]
    (cluster.folder / "states").write_text("".join(f"{job}|{name}|PENDING\n" for job, name in cluster.jobs.items()))
    assert cluster.main() == 0 and len(cluster.scripts) == 1


@pytest.mark.parametrize("state", ["NODE_FAIL", "FORGOTTEN"])
def test_lost_jobs_are_submitted_again_within_a_bound(
    cluster: Cluster, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.then = lambda: cluster.end_all(state)
    assert cluster.main() == 1
    assert len(cluster.scripts) == 1 + slurm.RESUBMISSIONS
    shown = capsys.readouterr().err
    assert shown.count("it is submitted again") == 3 * slurm.RESUBMISSIONS
    assert shown.count("for the third time") == 3 and "3 cells without a result, as told above" in shown
    cluster.then = cluster.run_all
    assert cluster.main() == 0, "the same command tries again"


def test_a_job_that_ended_before_its_files_arrived_is_not_submitted_again(cluster: Cluster) -> None:
    looks = []

    def later() -> None:
        looks.append(1)
        cluster.states |= dict.fromkeys(cluster.states, "COMPLETED")
        if len(looks) == 2:
            for job in cluster.jobs:
                cluster.run(job)

    cluster.then = later
    assert cluster.main() == 0 and len(cluster.scripts) == 1


def test_cancelled_jobs_stay_cancelled(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.then = lambda: cluster.end_all("CANCELLED")
    assert cluster.main() == 1
    assert len(cluster.scripts) == 1 and capsys.readouterr().err.count("was cancelled; the same command") == 3


def test_without_an_answer_of_squeue_nothing_is_submitted_twice(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.then = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert cluster.main() == 130
    (cluster.folder / "silent").touch()
    assert cluster.main() == 1
    assert "squeue does not answer: try again later" in capsys.readouterr().err and len(cluster.scripts) == 1
    (cluster.folder / "silent").unlink()
    (cluster.output / ".slurm/jobs.json").write_text("[{")
    assert cluster.main() == 1
    assert "which tells what is queued, cannot be read" in capsys.readouterr().err and len(cluster.scripts) == 1


def test_a_silent_squeue_does_not_end_a_run(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster.folder / "silent").touch()
    ticks = iter([lambda: None] * 3)
    cluster.then = lambda: next(ticks, cluster.run_all)()
    assert cluster.main() == 0
    assert capsys.readouterr().err.count("squeue does not answer; the files") == 1


def test_a_refusal_is_one_line(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    (cluster.folder / "refuse").touch()
    assert cluster.main() == 1
    shown = capsys.readouterr().err
    assert "Slurm does not take the job: sbatch: error: QOSMaxSubmitJobPerUserLimit" in shown
    assert "Traceback" not in shown and batches(cluster) == []


def test_what_the_queue_has_no_room_for_follows(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    refuse = cluster.folder / "refuse"
    submit = slurm._Driver._submit_batch

    def full(driver: slurm._Driver, cells: list[str], memory: int, *, exclusive: bool) -> None:
        submit(driver, cells, memory, exclusive=exclusive)
        refuse.touch()

    cluster.monkeypatch.setattr(slurm._Driver, "_submit_batch", full)
    cluster.then = lambda: (cluster.run_all(), refuse.unlink(missing_ok=True))[0]
    assert cluster.main("--slurm.max-array", "2") == 0
    assert len(cluster.scripts) == 2 and "Slurm takes no more jobs for now, 1 cell waits" in capsys.readouterr().err


def test_an_error_shows_the_end_of_its_log_and_keeps_it(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.pretending.status = "error"
    assert cluster.main() == 1
    shown = capsys.readouterr().err
    assert shown.count("    from the cell") == 3 and str(cluster.output / ".slurm/logs/1_0_0_log.out") in shown
    assert len(list((cluster.output / ".slurm/logs").glob("*_log.out"))) == 3


def test_cells_that_others_do_are_left_out(cluster: Cluster) -> None:
    cluster.monkeypatch.setattr(local, "launch", lambda jobs: iter(()))
    jobs, config = some_jobs(cluster), slurm.Config(poll=1e-9)
    assert list(slurm._Driver(config, cluster.output).run(jobs)) == [] and batches(cluster) == []


def test_code_that_changed_while_a_job_waited_is_told(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    def changed() -> None:
        code = {"commit": "f" * 40, "dirty": True, "digest": ""}
        cluster.monkeypatch.setattr(slurm, "code_version", lambda: code)
        cluster.run_all()

    cluster.then = changed
    assert cluster.main() == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: random_real on")]
    assert len(warnings) == 3 and all("now" in line and "ffffffffff with changes" in line for line in warnings)


def some_jobs(cluster: Cluster, **fields: Any) -> list[Any]:
    usual = {"methods": ("random_real",), "datasets": ("digits",), "budget": "smoke", "device": "cpu"}
    return plan(Request(**{**usual, "output": cluster.output, **fields}), [])


@pytest.mark.parametrize(
    ("shown", "number", "queued"),
    [
        ("JobState=RUNNING Reason=None", signal.SIGUSR2, True),
        ("JobState=RUNNING Reason=None", signal.SIGTERM, True),
        ("JobState=COMPLETING Reason=TimeLimit", signal.SIGTERM, True),
        ("JobState=COMPLETING Reason=None", signal.SIGTERM, False),
        ("JobState=CANCELLED Reason=None", signal.SIGTERM, False),
    ],
)
def test_a_stopped_cell_is_queued_again_unless_it_was_cancelled(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, shown: str, number: int, queued: bool
) -> None:
    def stopped(jobs: object) -> Any:
        raise Stopped(number)

    asked: list[str] = []
    monkeypatch.setattr(local, "launch", stopped)
    monkeypatch.setattr(slurm, "_queue_again", lambda: asked.append("again"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (cluster.folder / "shown").write_text(f"JobId=7 {shown} Dependency=(null)\n")
    file = slurm.CellFile(cluster.output / "cell.json")
    file.write(some_jobs(cluster)[0], slurm.code_version(), requeues=1)
    cell = slurm.Cell(str(file.path))
    cell()
    assert asked == ["again"] * queued and file.ended() is None
    cell()
    ended = file.ended()
    assert len(asked) == queued and ended is not None and "it was started 2 times" in ended["given_up"]
    assert cell.checkpoint().function == cell


def test_a_signal_after_the_end_queues_nothing_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(jobs: Any) -> Any:
        yield from cluster.pretending(jobs)
        raise Stopped(signal.SIGUSR2)

    monkeypatch.setattr(local, "launch", late)
    monkeypatch.setattr(slurm, "_queue_again", lambda: pytest.fail("queued again"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    file = slurm.CellFile(cluster.output / "cell.json")
    file.write(some_jobs(cluster)[0], slurm.code_version(), requeues=1)
    slurm.Cell(str(file.path))()
    ended = file.ended()
    assert ended is not None and "given_up" not in ended


def test_submitit_queues_the_job_again_at_its_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: seen.append(number))
    try:
        slurm._queue_again()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert seen == [signal.SIGUSR2]


def test_forced_cells_are_cancelled_with_the_command(cluster: Cluster) -> None:
    assert cluster.main() == 0
    cluster.then = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert cluster.main("--force") == 130
    assert (cluster.folder / "cancelled").read_text() == "2_0 2_1 2_2\n" and batches(cluster) == []
    cluster.then = cluster.run_all
    assert cluster.main("--force") == 0 and len(cluster.pretending.distilled) == 6


def test_numbers_of_the_cluster_and_of_the_cells(cluster: Cluster) -> None:
    assert slurm.largest_array() == 1000
    (cluster.folder / "shown").write_text("MaxArraySize = 4\n")
    assert slurm.largest_array() == 3
    assert slurm.chunks(list("abcde"), 2) == [["a", "b"], ["c", "d"], ["e"]]
    (job,) = some_jobs(cluster, methods=("dm",))
    assert slurm.memory_of(job) == 8 << 30
    assert slurm.memory_of(dataclasses.replace(job, device="cuda")) == 16 << 30


def test_seconds_that_are_the_result_need_a_node_alone(cluster: Cluster) -> None:
    (job,) = some_jobs(cluster, methods=("dm",), budget="cost", seconds=1.0)
    driver = slurm._Driver(slurm.Config(memory="1GiB"), cluster.output)
    assert driver._needs(job) == (1 << 30, True)
    assert driver._needs(dataclasses.replace(job, device="cuda")) == (1 << 30, False)
    assert driver.parameters(1 << 30, exclusive=True)["exclusive"] is True


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--slurm.time soon", "--slurm.time: expected something like 2h, not 'soon'"),
        ("--slurm.memory much", "--slurm.memory: expected something like 24GiB, not 'much'"),
        ("--slurm.cpus 0", "--slurm.cpus must be at least 1, not 0"),
        ("--slurm.extra A=b", "--slurm.extra takes options of sbatch such as account=lab, not 'A=b'"),
        ("--slurm.poll 0", "--slurm.poll must be a positive number, not 0"),
    ],
)
def test_wrong_options_are_one_line(
    cluster: Cluster, words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(*words.split()) == 2
    assert expected in capsys.readouterr().err and cluster.scripts == []


def test_the_device_must_be_said_and_slurm_be_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--methods", "dm", "--dataset", "digits", "--output", str(cluster.output), "--launcher", "slurm"]
    assert run.main(words) == 2 and "needs --device cuda or --device cpu" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert run.main(words) == 2 and "there is no sbatch, srun, squeue" in capsys.readouterr().err


def test_a_gpu_need_not_be_where_the_command_runs(cluster: Cluster) -> None:
    (job,) = some_jobs(cluster, device="cuda", launcher="slurm")
    assert job.device == "cuda"
    with pytest.raises(UserError, match="there are 0 CUDA devices here"):
        some_jobs(cluster, device="cuda")
