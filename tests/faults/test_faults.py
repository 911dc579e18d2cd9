"""Faults that machines have, for real: kills, full and read-only disks, vanished data, no memory, bad methods.

Every record is there in the end and equal to that of an undisturbed run, once, and nothing is left over.

``FAULTS=long`` (``make test-faults``) kills more often, and also processes whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import methods
from harness.plan.jobs import Job
from harness.records.record import Distilled
from harness.run import main
from harness.stopping import NOT_DONE
from tests.builders import all_in, in_process, quick
from tests.faults.kills import left_over, results
from tests.test_documents import ROOT

__all__ = ["quick"]  # a fixture
LONG = os.environ.get("FAULTS") == "long"
only_long = pytest.mark.skipif(not LONG, reason="processes of their own, for minutes: only in make test-faults")
FEW = "--no-random --dataset digits --budget smoke --width 4 --device cpu --evaluate-steps 3"
KILLS = (sys.executable, "-m", "tests.faults.kills")
FAST = ("mtt", "dm", "random_real")
RUN = (sys.executable, "-m", "harness.run")


def statuses(folder: Path) -> dict[str, str]:
    return {each.record["distillation"]["method"]: each.record["status"] for each in all_in(folder)}


# --- kills


def test_killed_at_random_events_runs_end_as_one_that_was_not_disturbed(tmp_path: Path) -> None:
    """Preparing, distilling, evaluating, writing, and in the run around it; also of four that share a folder."""
    grid, counts = (methods.names(), {1: 60, 4: 40}) if LONG else (FAST, {1: 3, 4: 3})
    arguments = [*KILLS, str(tmp_path), ",".join(grid), "0"]
    arguments += [f"{kills}:{runners}" for runners, kills in counts.items()]
    # A fork of a process with threads for a GPU could not compute.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for seen, kills in zip(json.loads(ran.stdout), counts.values(), strict=True):
        assert seen["kills"] >= kills and seen["records"] == len(grid) and seen["whole"] >= 1
        assert seen["differ"] == seen["left"] == []
        assert seen["lost"] <= 1, "a checkpoint is written after every step"


class Started:
    """A run of its own, which can be killed."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*RUN, *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def cells(self) -> list[int]:
        """The processes that it has started."""
        with contextlib.suppress(OSError):
            path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            return [int(child) for child in path.read_text().split()]
        return []

    def ended(self) -> str:
        """Everything that it printed, once it has ended."""
        output, _ = self.process.communicate()
        return output


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@only_long
def test_killed_processes_leave_no_process_and_no_record_is_missing(tmp_path: Path) -> None:
    """The run, its cell, or both, by SIGKILL, and politely, after random times."""
    arguments = [*FEW.split(), "--methods", "mtt,dm", "--networks-evaluated", "2", "--checkpoint-every", "0.001"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    begin = time.monotonic()
    assert main([*arguments, "--output", str(straight)], launcher=in_process) == 0
    span, chance, killed_any = 5 + 2 * (time.monotonic() - begin), random.Random(0), 0
    for _ in range(8):
        started = Started(*arguments, "--output", str(killed))
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(chance.random() * span)
        cells, whom = started.cells(), chance.choice(("run", "cell", "both", "asked"))
        with contextlib.suppress(ProcessLookupError):
            for pid in cells if whom in ("cell", "both") else ():
                os.kill(pid, signal.SIGKILL)
        if whom in ("run", "both"):
            started.process.kill()
        if whom == "asked":
            started.process.send_signal(signal.SIGUSR1)
        output = started.ended()
        assert "Traceback" not in output, output
        killed_any += started.process.returncode != 0
        if whom == "asked":  # before it can be handled it ends the process as well
            assert started.process.returncode in (0, NOT_DONE, -signal.SIGUSR1), output
        deadline = time.monotonic() + 60
        while any(map(alive, cells)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, cells)), "a cell outlives its run"
        if killed.exists() and started.process.returncode == 0:
            shutil.rmtree(killed)  # it was done: begin again
    started = Started(*arguments, "--output", str(killed))
    output = started.ended()
    assert started.process.returncode == 0 and "Traceback" not in output, output
    assert results(killed) == results(straight) and list(left_over(killed)) == []


# --- disks


@pytest.fixture
def mounted() -> Iterator[Callable[..., None]]:
    """Mounts as ``mount`` does, and unmounts; skips where that is not allowed."""
    folders = list[str]()

    def mount(*arguments: str) -> None:
        ran = subprocess.run(["mount", *arguments], capture_output=True, text=True)
        if ran.returncode:
            pytest.skip(f"mounting needs root: {ran.stderr.strip()}")
        if not any("remount" in argument for argument in arguments):
            folders.append(arguments[-1])

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    yield mount
    for folder in reversed(folders):
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("full", [("output",), ("cache",), *([("output", "cache")] if LONG else [])])
@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_a_line_and_with_room_the_run_ends_well(
    tmp_path: Path, mounted: Callable[..., None], capsys: pytest.CaptureFixture[str], full: tuple[str, ...]
) -> None:
    arguments = [*FEW.split(), "--methods", "mtt,dm", "--output", str(tmp_path / "output")]
    arguments += ["--cache", str(tmp_path / "cache")]
    for name in full:
        (tmp_path / name).mkdir()
        mounted("-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path / name))

    def filled(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for name in full:
            with contextlib.suppress(OSError), open(tmp_path / name / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
        yield from in_process(jobs)

    status = main(arguments, launcher=filled)
    said = capsys.readouterr().err
    assert status in (1, 2) and "No space left on device" in said and "Traceback" not in said
    if full == ("cache",):  # only experts need it
        assert statuses(tmp_path / "output") == {"mtt": "error", "dm": "ok"}
    for name in full:
        (tmp_path / name / "filler").unlink()
    assert main(arguments, launcher=in_process) == 0
    assert main([*arguments[:-4], "--output", str(tmp_path / "straight")], launcher=in_process) == 0
    assert results(tmp_path / "output") == results(tmp_path / "straight")
    assert list(left_over(tmp_path / "output")) == [] == list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.usefixtures("quick")
def test_a_read_only_folder_is_a_line(
    tmp_path: Path, mounted: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    mounted("--bind", str(folder), str(folder))
    mounted("-o", "remount,bind,ro", str(folder))
    arguments = [*FEW.split(), "--methods", "dm", "--output", str(folder)]
    assert main(arguments, launcher=in_process) in (1, 2)
    said = capsys.readouterr().err
    assert "Read-only file system" in said and "Traceback" not in said
    mounted("-o", "remount,bind,rw", str(folder))
    assert main(arguments, launcher=in_process) == 0


@pytest.mark.usefixtures("quick")
def test_data_that_vanish_between_cells_are_a_line_and_the_set_that_is_done_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, random_ = tmp_path / "data", random.Random(0)
    for part, count in (("train", 4), ("test", 2)):
        for name in "ab":
            (data / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.frombytes("L", (8, 8), random_.randbytes(64))
                image.save(data / part / name / f"{number}.png")

    def vanishing(jobs: Iterable[Job]) -> Generator[Job, None, None]:
        for job in jobs:
            yield from in_process([job])
            if data.exists():
                data.rename(tmp_path / "elsewhere")

    flags = FEW.replace("digits", f"folder:{data}")
    arguments = [*flags.split(), "--methods", "random_real,dm", "--output", str(tmp_path / "output")]
    arguments += ["--cache", str(tmp_path / "cache")]
    assert main(arguments, launcher=vanishing) == 1
    assert statuses(tmp_path / "output") == {"random_real": "ok", "dm": "error"}
    assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "elsewhere").rename(data)
    assert main(arguments, launcher=in_process) == 0
    assert statuses(tmp_path / "output") == {"random_real": "ok", "dm": "ok"}


# --- methods that behave badly

PLUGIN = '''
import os, signal, sys, time
from dataclasses import dataclass
import torch
from methods.base import Method, Synthetic

@dataclass(frozen=True)
class Config:
    """Nothing."""

class Bad(Method):
    Config, PAPER, BUDGETS, iterative = Config, {}, {"smoke": {"steps": 3}}, True
    def prepare(self, store):
        self.images, classes = self.task.draw_per_class()
        self.labels = torch.nn.functional.one_hot(classes, self.task.num_classes).to(self.images.dtype)
        self.taken = 0
    def step(self):
        self.taken += 1
        if self.taken == 2:
            self.fail()
        return {"loss": self.images.sum()}
    def fail(self):
        pass
    def synthetic(self):
        return Synthetic(self.images.clone(), self.labels.clone(), "probability")
    def state_dict(self):
        return {"taken": self.taken}
    def load_state_dict(self, state):
        self.taken = state["taken"]

class Raises(Bad):
    def fail(self):
        raise ValueError("not today")

class Nonsense(Bad):
    def step(self):
        return "done"

class Exits(Bad):
    def fail(self):
        print("a line of its own")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if (child := os.fork()) == 0:
            time.sleep(3600)
        open(os.environ["CHILDREN"], "a").write(f"{child}\\n")
        os._exit(7)

class Hangs(Bad):
    def fail(self):
        time.sleep(3600)

class Hungry(Bad):
    def fail(self):
        self.much = [torch.ones(2**24) for _ in range(64)]
'''


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """Variables of a process that knows the methods of ``PLUGIN``, by the names of their classes."""
    package = tmp_path / "plugin"
    (package / "bad-1.dist-info").mkdir(parents=True)
    (package / "bad.py").write_text(PLUGIN)
    (package / "bad-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    names = ("Raises", "Nonsense", "Exits", "Hangs", "Hungry")
    entries = "\n".join(f"{name.lower()} = bad:{name}" for name in names)
    (package / "bad-1.dist-info" / "entry_points.txt").write_text(f"[frepo_bench.methods]\n{entries}\n")
    return {"PYTHONPATH": str(package), "CHILDREN": str(tmp_path / "children")}


def messages(folder: Path) -> dict[str, tuple[str, str | None]]:
    def method(each: Distilled) -> Any:
        return each.record["distillation"]["method"]

    return {method(each): (each.record["status"], each.record["message"]) for each in all_in(folder)}


@only_long
def test_methods_that_behave_badly_do_not_stop_the_others(tmp_path: Path, plugin: dict[str, str]) -> None:
    """In processes of their own: it raises, talks nonsense, hangs, or prints, forks, ignores signals and exits."""
    bad = ["raises", "nonsense", "exits", "hangs"]
    flags = [*FEW.split(), "--methods", ",".join([*bad, "random_real"]), "--cell-timeout", "1min"]
    started = Started(*flags, "--output", str(tmp_path / "o"), environment=plugin)
    output = started.ended()
    assert started.process.returncode == 1 and "Traceback" not in output, output
    told = messages(tmp_path / "o")
    assert {name: status for name, (status, _) in told.items()} == {
        **dict.fromkeys(bad, "error"),
        "random_real": "ok",
    }
    assert told["raises"][1] == "ValueError: not today (traceback in log.txt)"
    assert told["exits"][1] == "the process ended with status 7; its messages are above"
    assert told["hangs"][1] == "no sign of life for 1 min (--cell-timeout): the process was killed"
    for _, message in told.values():
        assert message is None or (message in output and "\n" not in message)
    (child,) = Path(plugin["CHILDREN"]).read_text().split()
    deadline = time.monotonic() + 60
    while alive(int(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(child)), "what the method has forked runs on"


@only_long
def test_the_kernel_s_out_of_memory_killer_is_a_result(tmp_path: Path, plugin: dict[str, str]) -> None:
    group = Path("/sys/fs/cgroup/memory/frepo-bench-faults")
    limit = "memory.limit_in_bytes"
    if not group.parent.exists():
        group, limit = Path("/sys/fs/cgroup/frepo-bench-faults"), "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(1500 * 2**20))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made: {error.strerror}")
    command = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    arguments = [*FEW.split(), "--methods", "hungry,random_real", "--output", str(tmp_path / "o")]
    ran = subprocess.run(
        ["sh", "-c", command, "sh", *RUN, *arguments],
        cwd=ROOT,
        env={**os.environ, **plugin},
        capture_output=True,
        text=True,
    )
    group.rmdir()
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    assert messages(tmp_path / "o")["hungry"] == ("oom", "the kernel killed the process because memory ran out")
    assert statuses(tmp_path / "o")["random_real"] == "ok"
