"""Several cells at a time: on which devices, with how many threads, and how they end."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness import stopping
from harness.launch import local
from harness.launch.slots import Device, alone, devices, divided, visible
from harness.measure import nvml
from harness.plan.jobs import Job
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.records import record
from harness.records.lease import LEASED
from harness.records.record import Distilled
from harness.run import main
from tests.builders import all_in, in_process
from tests.test_run import command

pytestmark = pytest.mark.usefixtures("default_signals")
GPUS = ["GPU-a", "GPU-b", "GPU-c"]


def jobs(output: Path, count: int = 3, **changes: Any) -> list[Job]:
    fields = {"budget": "smoke", "widths": (4,), "device": "cpu", "output": output, **changes}
    made = plan(Request(methods=("random_real",), datasets=("digits",), seeds=tuple(range(count)), **fields))
    return [dataclasses.replace(job, place=f"[{place}/{count}]") for place, job in enumerate(made, 1)]


def shown(made: list[Device]) -> list[tuple[int, Mapping[str, str]]]:
    return [(device.slots, {**device.environment, **device.sharing}) for device in made]


def cells(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lets ``text`` run in place of cells; it knows the ``job`` as a dictionary and its ``seed``."""
    begin = "import json, os, signal, sys, time\nfrom pathlib import Path\njob = json.loads(sys.stdin.readline())\n"
    seed = "seed, here = job['distillation']['seed'], Path(job['folder']).parent\n"
    monkeypatch.setattr(local, "COMMAND", (sys.executable, "-c", begin + seed + text))


def test_slots_are_spread_over_the_gpus_that_are_visible() -> None:
    one = [(1, {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in GPUS]
    assert shown(divided("cuda", None, GPUS, 16)) == shown(divided("cuda", 3, GPUS, 16)) == one
    assert shown(divided("cuda", 2, GPUS, 16)) == one[:2]
    assert [slots for slots, _ in shown(divided("cuda", 7, GPUS, 16))] == [3, 2, 2]
    assert shown(divided("cuda", 2, GPUS[:1], 16)) == shown(divided("cuda:1", 2, GPUS, 16)) == [(2, {})]
    assert shown(divided("cuda", 1, GPUS, 16)) == shown(divided("cuda:1", None, GPUS, 16)) == [(1, {})]


def test_the_cores_of_a_processor_are_divided_unless_the_user_has_set_the_threads() -> None:
    assert shown(divided("cpu", 3, [], 16)) == [(3, {"OMP_NUM_THREADS": "5"})]
    assert shown(divided("cpu", 3, [], 2)) == [(3, {"OMP_NUM_THREADS": "1"})]
    assert shown(divided("cpu", 3, [], None)) == [(3, {})]
    assert shown(divided("cpu", None, [], 16)) == shown(divided("cpu", 1, [], 16)) == [(1, {})]
    assert shown(devices("cpu", 2)) == [(2, {})], "the tests set the threads"


def test_a_gpu_is_named_as_the_user_names_it_or_by_its_uuid() -> None:
    assert visible(None, GPUS, 3) == GPUS and visible(None, [], 2) == ["0", "1"]
    assert visible("2, 0", GPUS, 2) == ["2", "0"] and visible("GPU-b", GPUS, 1) == ["GPU-b"]
    assert visible("1,-1,0", GPUS, 1) == ["1"], "CUDA sees nothing after a number that there is not"
    assert visible("MIG-x,MIG-y", GPUS, 1) == ["MIG-x", "MIG-y"], "CUDA sees the first instance alone"
    assert visible("", GPUS, 0) == []


def test_a_split_gpu_is_its_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(uuid: str, parent: str | None = None) -> nvml.Device:
        return nvml.Device(None, uuid, parent, False, None, None, None)

    made = [device("GPU-a"), device("GPU-b"), device("MIG-x", "GPU-b"), device("MIG-y", "GPU-b")]
    monkeypatch.setattr(nvml.Gpu, "__init__", lambda self: setattr(self, "devices", made))
    assert nvml.uuids() == ["GPU-a", "MIG-x", "MIG-y"]


def test_cells_run_at_the_same_time_and_their_lines_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each waits for the others, and prints in parts."""
    cells(
        monkeypatch,
        "(here / f'{seed}.there').write_text(os.environ['OMP_NUM_THREADS'])\n"
        "while len(list(here.glob('*.there'))) < 3: time.sleep(0.01)\n"
        "for part in f'  seed {seed} slots {job[\"slots\"]}\\nlast {seed}': print(part, end='', flush=True)\n",
    )
    made = jobs(tmp_path)
    ended = list(local.launch(made, at_once=3))
    assert sorted(ended, key=lambda job: job.place) == made, "as they were, in any order"
    lines = capsys.readouterr().err.splitlines()
    expected = [f"[{seed + 1}/3] {words}" for seed in range(3) for words in (f"seed {seed} slots 3", f"last {seed}")]
    assert sorted(lines) == sorted(expected)
    assert {path.read_text() for path in tmp_path.glob("*.there")} == {"1"}


def test_a_cell_whose_seconds_are_the_result_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells(
        monkeypatch,
        "mine = here / f'{seed}.running'\nmine.touch()\nalone = job['distillation']['cost_only']\n"
        "if not alone:\n    while not list(here.glob('[01].seen')) and len(list(here.glob('*.running'))) < 2:\n"
        "        time.sleep(0.01)\n    (here / f'{seed}.seen').touch()\n"
        "running = len(list(here.glob('*.running')))\n"
        "(here / f'{seed}.with').write_text(f'{running} {job[\"slots\"]}')\nmine.unlink()\n",
    )
    first, second, third = jobs(tmp_path)
    costly = dataclasses.replace(third, distillation=dataclasses.replace(third.distillation, cost_only=True))
    assert alone(costly) and alone(dataclasses.replace(first, beside=(second,))) and not alone(first)
    assert len(list(local.launch([first, second, costly], at_once=2))) == 3
    assert (tmp_path / "2.with").read_text() == "1 1"
    assert (tmp_path / "0.with").read_text().endswith(" 2")


def test_a_cell_that_dies_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells(
        monkeypatch,
        "if seed == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "while not list(here.glob('*seed0*/record.json')): time.sleep(0.01)\nsys.exit(3)\n",
    )
    ended = list(local.launch(jobs(tmp_path), at_once=2))
    assert ended[0].distillation.seed == 0 and len(ended) == 3
    messages = [record.read(job.path).record["message"] for job in ended]
    assert messages == [
        "the process was ended by SIGKILL",
        *["the process ended with status 3; its messages are above"] * 2,
    ]


def test_a_cell_that_somebody_else_does_is_not_yielded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells(monkeypatch, f"sys.exit({LEASED} if seed else 0)")
    made = jobs(tmp_path)
    for at_once in (1, 2):
        assert list(local.launch(made, at_once=at_once)) == made[:1]
    assert not made[1].path.exists()


def test_a_signal_reaches_all_cells_and_the_second_ends_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cell saves its state, the second ignores the signal."""
    cells(
        monkeypatch,
        f"def end(*_):\n    (here / f'{{seed}}.told').touch()\n    if seed == 0: os._exit({stopping.NOT_DONE})\n"
        "signal.signal(signal.SIGTERM, end)\n(here / f'{seed}.there').touch()\n"
        "while True: time.sleep(0.1)\n",
    )
    monkeypatch.setattr(stopping, "AGAIN_SECONDS", 0.0)

    def wait_for(count: int, what: str) -> None:
        while len(list(tmp_path.glob(what))) < count:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    def ask() -> None:
        wait_for(2, "*.there")
        wait_for(2, "*.told")

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(stopping.Stopped) as error:
        list(local.launch(jobs(tmp_path), at_once=2))
    thread.join()
    assert error.value.number == signal.SIGUSR1 and not list(tmp_path.rglob("record.json"))
    assert {path.name for path in tmp_path.glob("*.there")} == {"0.there", "1.there"}, "no other cell is started"


def test_two_at_a_time_give_what_one_after_the_other_gives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """For real, and in this process: the same sets and values, and the records say that the device was shared."""
    base = "--methods random_real,dm --dataset digits --budget smoke --width 4 --device cpu --evaluate-steps 3"

    def run(name: str, extra: str, **launcher: Any) -> list[Distilled]:
        assert main(command(tmp_path / name, extra, base), **launcher) == 0
        return all_in(tmp_path / name)

    def busy(each: Distilled) -> str:
        return str(each.record["cost"]["memory"]["busy"]) + str(each.evaluations[0]["busy"])

    one, two = run("one", "", launcher=in_process), run("two", "--jobs 2")
    lines = capfd.readouterr().err.splitlines()
    for alone_, shared in zip(one, two, strict=True):
        assert alone_.record["identity"] == shared.record["identity"]
        assert alone_.set_path.read_bytes() == shared.set_path.read_bytes()
        assert alone_.evaluations[0]["values"] == shared.evaluations[0]["values"]
        assert busy(shared).count("up to 1 other cell of the run shared the device") == 2
        assert "shared" not in busy(alone_)
    assert any(line.startswith(("[1/2] ", "[2/2] ")) and " steps at " in line for line in lines)
