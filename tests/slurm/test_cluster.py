"""Cells on a real Slurm: a grid, and everything that strikes a job."""

from __future__ import annotations

import os
import signal

from tests.slurm.conftest import Cluster, processes, sets, slurm, until

WORKER = "submitit.core._submit"
CELL = "harness.cell"
SLOW = ("--methods", "slow", "--checkpoint-every", "5s", "--no-random")


def job_of(cluster: Cluster, seed: int) -> str:
    """The job that ran the cell of ``seed`` last."""
    return next(jobs[-1] for cell, jobs in cluster.starts().items() if f"-seed{seed}-" in cell)


def process_of(kind: str, job: str) -> int:
    """The process of ``job``; srun names the worker too, so its own step is what counts."""
    index = job.partition("_")[2]
    (found,) = (
        number
        for number, environment in processes(kind).items()
        if environment.get("SLURM_ARRAY_TASK_ID", "") == index
        and environment.get("SLURM_PROCID") == "0"
        and "SLURM_STEP_ID" in environment
    )
    return found


def saved(cluster: Cluster, cells: int, step: int = 1) -> bool:
    """Whether ``cells`` have a checkpoint after ``step``."""
    return sum(each >= step for each in cluster.steps().values()) == cells


def test_a_grid_gives_the_bytes_of_a_local_run(cluster: Cluster) -> None:
    grid = ("--methods", "random_real,herding,dm,frepo")
    driver = cluster.driver(*grid, "--slurm.gpus", "1", "--slurm.max-array", "2")
    assert driver.end() == 0, driver.text
    assert driver.text.count("submitted 2 cells as job") == 2
    assert sets(cluster.output) == cluster.local(*grid) and len(sets(cluster.output)) == 4
    assert not list((cluster.output / ".slurm/cells").iterdir()), "what ended well leaves nothing"
    assert not list((cluster.output / ".slurm/logs").iterdir())


def test_whatever_strikes_the_cells_go_on(cluster: Cluster) -> None:
    """Each of six cells meets another fault, and the command meets two."""
    seeds = "--seeds", "0,1,2,3,4,5"
    first = cluster.driver(*SLOW, *seeds)
    until(lambda: saved(cluster, 6), "six cells take steps")
    first.process.kill()
    first.process.wait()
    second = cluster.driver(*SLOW, *seeds)
    until(lambda: "6 cells queued before, 0 to submit" in second.text, "the second command finds them")
    jobs = [job_of(cluster, seed) for seed in range(6)]
    assert len(set(jobs)) == 6
    before = cluster.steps()

    # As proctrack/linuxproc does: every process of the step.
    slurm("scancel", "--signal=USR2", jobs[0])
    # As proctrack/cgroup does: the child of slurmstepd alone.
    os.kill(process_of(WORKER, jobs[1]), signal.SIGUSR2)
    # A preemption with a time of grace, before Slurm does anything itself.
    slurm("scancel", "--signal=TERM", jobs[2])
    # The time limit, whose signal comes at once as it is shorter than the time that it comes ahead.
    minutes = int(slurm("squeue", "--noheader", "--format=%M", f"--jobs={jobs[3]}").split(":")[-2]) + 1
    slurm("scontrol", "update", f"JobId={jobs[3]}", f"TimeLimit={minutes}")
    # The administrator, who gives no time.
    slurm("scontrol", "requeue", jobs[4])
    # A crash of the worker; the cell ends with it.
    os.kill(process_of(WORKER, jobs[5]), signal.SIGKILL)

    until(lambda: all(len(started) == 2 for started in cluster.starts().values() if started), "all start again")
    until(lambda: "gone without a result" in second.text, "the lost job is noticed")
    slurm("scontrol", "update", f"JobId={jobs[3]}", "TimeLimit=1-00:00:00")
    until(lambda: saved(cluster, 6, max(before.values()) + 1), "all take steps again")
    assert len(processes(CELL)) == 6, "no process is left of any earlier start"
    cluster.gate.touch()
    assert second.end() == 0, second.text
    assert sets(cluster.output) == cluster.local(*SLOW, *seeds) and len(sets(cluster.output)) == 6


def test_every_cell_has_a_device_of_its_own_and_the_command_may_stop(cluster: Cluster) -> None:
    seeds = "--seeds", "0,1,2"
    first = cluster.driver(*SLOW, *seeds, "--slurm.gpus", "1")
    until(lambda: saved(cluster, 2), "two cells take steps")
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in processes(CELL).values()) == ["0", "1"]
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 130
    assert "3 cells stay in the queue" in first.text and "the same command goes on" in first.text
    assert sorted(cluster.jobs().values()) == ["PENDING", "RUNNING", "RUNNING"]

    second = cluster.driver(*SLOW, *seeds, "--slurm.gpus", "1")
    until(lambda: "3 cells queued before, 0 to submit" in second.text, "the second command finds them")
    slurm("scancel", job_of(cluster, 0))
    until(lambda: "was cancelled" in second.text, "the cancelled job is noticed")
    cluster.gate.touch()
    assert second.end() == 1
    assert len(sets(cluster.output)) == 2

    third = cluster.driver(*SLOW, *seeds, "--slurm.gpus", "1")
    assert third.end() == 0, third.text
    assert "submitted 1 cell" in third.text and third.text.count("done before") == 2
    assert sets(cluster.output) == cluster.local(*SLOW, *seeds)


def test_a_limit_that_is_always_too_short_ends_after_so_many_starts(cluster: Cluster) -> None:
    """One whole time limit, as Slurm keeps it: the cell is told after half a minute, and saves its state."""
    driver = cluster.driver(*SLOW, "--slurm.time", "1min", "--slurm.requeues", "1")
    assert driver.end() == 1, driver.text
    assert "it was started 2 times and has not ended" in driver.text or "gone without a result" in driver.text
    cluster.gate.touch()
    again = cluster.driver(*SLOW)
    assert again.end() == 0, again.text
    assert sets(cluster.output) == cluster.local(*SLOW)


def test_a_cell_that_dies_is_an_error_with_its_log(cluster: Cluster) -> None:
    driver = cluster.driver(*SLOW)
    until(lambda: saved(cluster, 1), "the cell takes steps")
    os.kill(next(iter(processes(CELL))), signal.SIGKILL)
    assert driver.end() == 1
    assert "the process was ended by SIGKILL" in driver.text
    assert "the log of job" in driver.text
