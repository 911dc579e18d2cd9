"""Runs of a grid that are killed at random moments, and compared with a run that nobody disturbed.

``python -m tests.faults.kills FOLDER METHODS SEED KILLS:RUNNERS …`` prints what it saw as JSON, for each number of
runners. It is a process of its own, which imports everything once: a fork of it is a fresh run after milliseconds
instead of seconds.

A moment is a number of events: signs of life (`harness.alive`: steps of the warm-up, of the distillation and of
evaluations, experts) and operations on files below the folder. So the moments depend on the seed, and neither on the
machine nor on its load.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import alive, cell, checkpoint, distil, run
from harness.plan.jobs import Job
from harness.records import lease, record
from harness.records.lease import FOLDER
from tests.builders import all_in

SMALL = "--dataset digits --budget smoke --steps 4 --width 4 --device cpu --no-random --evaluate-steps 3"
FLAGS = f"{SMALL} --networks-evaluated 2 --curve-points 2"
FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Audit events of operations on files."""
REPORTS = ("table.md", "table.tex", "table.csv")
OF_TIME = ("prepare_seconds", "prepare_cached", "warmup_seconds", "compile_seconds", "distill_seconds", "memory")
"""Costs that two runs do not share."""


class Moments:
    """What a forked run tells its parent: the events, steps that were taken, and those that a checkpoint has."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 24)

    def tell(self, events: int, taken: int, saved: int) -> None:
        self._memory[:24] = struct.pack("3q", events, taken, saved)

    def read(self) -> tuple[int, int, int]:
        events, taken, saved = struct.unpack("3q", self._memory[:24])
        return events, taken, saved


def start(arguments: Sequence[str], folder: Path, cache: Path, at: int | None, moments: Moments) -> int:
    """The process of a fork that runs the grid of ``arguments`` in ``folder``; it is killed at event ``at``."""
    moments.tell(0, 0, 0)
    if (child := os.fork()) == 0:
        status = 70
        with contextlib.suppress(BaseException):
            log = os.open(folder.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            _count(folder.parent, at, moments)
            status = run.main([*arguments, "--output", str(folder), "--cache", str(cache)], launcher=leased)
        os._exit(status)
    return child


def undisturbed(arguments: Sequence[str], folder: Path, cache: Path) -> tuple[int, dict[str, Any]]:
    """Let the grid run to its end. Returns how many events there were, and the results."""
    moments = Moments()
    status = os.waitstatus_to_exitcode(os.waitpid(start(arguments, folder, cache, None, moments), 0)[1])
    assert status == 0, (folder.parent / "log.txt").read_text()[-3000:]
    return moments.read()[0], results(folder)


def leased(jobs: Iterable[Job]) -> Generator[Job, None, None]:
    """A launcher that runs the jobs in this process, each under its lease."""
    for job in jobs:
        with contextlib.suppress(lease.Held):
            with lease.taken([lease.path_of(job.path)], job.command):
                cell.run(job)
            yield job


def _count(below: Path, at: int | None, moments: Moments) -> None:
    """Tell ``moments`` of every event from here on, and end this process at event ``at``."""
    events, taken, saved = 0, checkpoint.Position(0), 0

    def event() -> None:
        nonlocal events
        events += 1
        moments.tell(events, taken.done, saved)
        if events == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if name in FILES and str(arguments[0]).startswith(str(below)):
            event()

    write = checkpoint.Checkpoints.write

    def written(self: checkpoint.Checkpoints, position: checkpoint.Position, *others: Any) -> None:
        nonlocal taken, saved
        if position is not taken:  # of another cell, which goes on from there
            taken, saved = position, position.done
        write(self, position, *others)
        saved = position.done

    alive.sign = event
    checkpoint.Checkpoints.write = written  # type: ignore[method-assign]
    sys.addaudithook(audit)


def results(folder: Path) -> dict[str, Any]:
    """Everything that two runs of the grid share, by the name of the distillation."""
    found: dict[str, Any] = {}
    for each in all_in(folder):
        cost = {name: value for name, value in each.record["cost"].items() if name not in OF_TIME}
        cost["step_seconds"] = len(each.record["cost"]["step_seconds"])
        written = {
            name: value for name, value in each.record.items() if name not in ("provenance", "segments", "cost")
        } | {"cost": cost}
        for snapshot in written["snapshots"]:
            snapshot.pop("seconds")
        answers = [
            {name: value for name, value in answer.items() if name not in ("provenance", "busy", "cost")}
            for answer in each.evaluations
        ]
        own = folder / each.folder
        files = {str(path.relative_to(own)): path.read_bytes().hex() for path in sorted(own.rglob("*.safetensors"))}
        name = Path(each.folder).name
        assert name not in found, f"{name} is there twice"
        found[name] = [written, sorted(answers, key=lambda answer: json.dumps(answer, sort_keys=True)), files]
    return found


def left_over(folder: Path) -> Iterator[str]:
    """Paths that no run should leave behind."""
    known = {record.RECORD, record.SET, record.PICTURE, record.EVENTS, *REPORTS}
    for path in folder.rglob("*"):
        if path.name == FOLDER or (path.parent.name == FOLDER and path.name.startswith(".")):
            continue  # no lease is left; a kill amid a takeover leaves a few bytes that no run looks at
        inside = path.parent.name in (record.EVALUATIONS, record.SNAPSHOTS) and path.suffix in (".json", ".safetensors")
        if not (path.is_dir() and not path.name.startswith(".")) and not inside and path.name not in known:
            yield str(path.relative_to(folder))
        if path.is_dir() and (path.name == record.CHECKPOINT or path.suffix == ".parts"):
            yield str(path.relative_to(folder))


def main(folder: Path, methods: str, seed: int, *counts: str) -> list[dict[str, Any]]:
    """Kill runs of the grid of ``methods``; each of ``counts``: how many kills there are, and how many runners."""
    distil.WARMUP_CYCLES = 1
    with open(folder / "log.txt", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        warm = [*SMALL.split(), "--methods", "dm", "--output", str(folder / "first"), "--cache", str(folder / "first")]
        assert run.main(warm, launcher=leased) == 0, "what is imported late is imported here"
    arguments = ["--methods", methods, *FLAGS.split(), "--checkpoint-every", "0.000001"]
    total, expected = undisturbed(arguments, folder / "straight", folder / "other cache")
    return [_kill(arguments, folder, total, expected, seed, *map(int, each.split(":"))) for each in counts]


def _kill(
    arguments: Sequence[str], folder: Path, total: int, expected: dict[str, Any], seed: int, kills: int, runners: int
) -> dict[str, Any]:
    """Kill ``runners``, which share a folder, until there were ``kills``, and then let them end."""
    chance, output, cache = random.Random(seed), folder / f"killed {runners}", folder / f"cache {runners}"
    seen: dict[str, Any] = {"events": total, "kills": 0, "runs": 0, "whole": 0, "lost": 0, "left": [], "differ": []}
    seen["records"] = len(expected)
    running: dict[int, Moments] = {}
    ending = False
    while seen["kills"] < kills or running:
        while len(running) < runners and seen["kills"] < kills and not ending:
            own = Moments()
            running[start(arguments, output, cache, chance.randint(1, 2 + total // 5), own)] = own
            seen["runs"] += 1
        pid, status = os.wait()
        _, taken, saved = running.pop(pid).read()
        if (code := os.waitstatus_to_exitcode(status)) == -signal.SIGKILL:
            seen["kills"] += 1
            seen["lost"] = max(seen["lost"], taken - saved)
            print(json.dumps(seen), file=sys.stderr, flush=True)
        else:
            assert code == 0, (folder / "log.txt").read_text()[-3000:]
            ending = True  # everything is done
        if ending and not running:
            ending = False
            _compare(arguments, output, cache, expected, seen)
            shutil.rmtree(output)
            shutil.rmtree(cache)
    _compare(arguments, output, cache, expected, seen)
    return seen


def _compare(
    arguments: Sequence[str], output: Path, cache: Path, expected: dict[str, Any], seen: dict[str, Any]
) -> None:
    """Run once more, and note in ``seen`` in what the results differ from those ``expected``, and what is left over."""
    _, found = undisturbed(arguments, output, cache)
    seen["whole"] += 1
    seen["differ"] += [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    seen["left"] += [*left_over(output), *(str(path) for path in cache.rglob("*.tmp"))]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])))
