"""Watching a cell while it runs: what it writes for TensorBoard, and `harness.watch`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness import cell, watch
from harness.plan.jobs import Job
from harness.records.lease import FOLDER, exchange_of, path_of, take
from harness.records.record import AGAIN, EVENTS, PICTURE, RECORD, SET, TENSORBOARD, load
from tests import builders
from tests.builders import MIB, quick, saved
from tests.dummies import Dummy, dummy
from tests.test_cell import Ticks, job
from tests.test_checkpoint import alone, interrupt

__all__ = ["dummy", "quick"]  # fixtures
pytestmark = pytest.mark.usefixtures("quick")


def board(folder: Path) -> list[Any]:
    """The events in the files for TensorBoard, in the order in which they were written."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # its length (8 bytes) and a checksum (4), the event, a checksum
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(written: list[Any], tag: str) -> list[tuple[int, float]]:
    return [(each.step, v.simple_value) for each in written for v in each.summary.value if v.tag == tag]


def watched(made: Job) -> Job:
    return dataclasses.replace(alone(made), tensorboard=True)


def test_a_cell_that_is_watched_gives_the_same_bytes_and_the_same_record(tmp_path: Path, dummy: type[Dummy]) -> None:
    made = {name: job(tmp_path / name, steps=40) for name in ("plain", "watched")}
    for name, each in made.items():
        cell.run(watched(each) if name == "watched" else alone(each), Ticks())
    plain, seen = (each.path for each in made.values())
    assert (seen / SET).read_bytes() == (plain / SET).read_bytes()
    assert not (plain / TENSORBOARD).exists()
    records = [load(folder / RECORD) for folder in (plain, seen)]
    for record in records:
        record["cost"]["memory"] = {}  # type: ignore[typeddict-item]
        for name in ("created", "provenance", "segments"):
            record.pop(name, None)  # type: ignore[misc]
    assert records[0] == records[1], "the clock was read as often, and every second stands where it stood"
    events = [json.loads(line) for line in (seen / EVENTS).read_text().splitlines()]
    written = board(seen / TENSORBOARD)
    assert scalars(written, "loss") == [(event["step"], event["losses"]["loss"]) for event in events]
    assert scalars(written, "seconds_per_step") == [(event["step"], event["step_seconds"]) for event in events]
    images = {each.step: v.image for each in written for v in each.summary.value if v.tag == "images"}
    assert list(images)[:3] == [2, 4, 6] and list(images)[-1] == 40 and len(images) <= 12
    shown, kept = (Image.open(io.BytesIO(c)) for c in (images[40].encoded_image_string, (seen / PICTURE).read_bytes()))
    assert shown.size == (images[40].width, images[40].height) and shown.tobytes() == kept.tobytes()


def test_what_is_watched_is_no_part_of_the_memory_that_is_measured(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.measure.memory import MemoryMeter
    from harness.tensorboard import TensorBoard

    running = [False]

    def noted(function: Any, value: bool) -> Any:
        def call(*arguments: Any) -> Any:
            running[0] = value
            return function(*arguments)

        return call

    def images(self: TensorBoard, *arguments: Any) -> None:
        drawn.append(running[0])

    drawn: list[bool] = []
    monkeypatch.setattr(MemoryMeter, "start", noted(MemoryMeter.start, True))
    monkeypatch.setattr(MemoryMeter, "stop", noted(MemoryMeter.stop, False))
    monkeypatch.setattr(TensorBoard, "images", images)
    cell.run(watched(job(tmp_path, steps=8)))
    assert drawn == [False] * 4


def test_a_cell_that_went_on_or_began_again_tells_every_step_once(tmp_path: Path, dummy: type[Dummy]) -> None:
    """Readers drop what lies at and after the step of a session that starts."""
    made = watched(job(tmp_path, steps=40))
    interrupt(made, 11)
    cell.run(made)
    written = board(made.path / TENSORBOARD)
    starts = [each.step for each in written if each.HasField("session_log")]
    assert starts == [1, 12] and len(list((made.path / TENSORBOARD).iterdir())) == 2
    steps = [step for step, _ in scalars(written, "loss")]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    shutil.rmtree(made.path / "checkpoint", ignore_errors=True)
    (made.path / RECORD).unlink()
    cell.run(made)
    assert [each.step for each in board(made.path / TENSORBOARD) if each.HasField("session_log")] == [1]


# --- harness.watch ----------------------------------------------------------------------------------------------------


def event(path: Path, **changes: Any) -> None:
    """Append an event to the file at ``path``."""
    path.parent.mkdir(exist_ok=True)
    base = {"step": 3, "steps": 300, "seconds": 1.5, "step_seconds": 0.5, "losses": {"loss": 0.25}, "memory_bytes": MIB}
    with open(path, "a") as file:
        file.write(json.dumps(base | changes) + "\n")


def test_a_line_tells_how_far_a_running_cell_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, builders.made())
    for name in ("prepares", "distils", "evaluates", "begins-again"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / EVENTS).mkdir(parents=True)
    event(tmp_path / "distils" / EVENTS)
    event(tmp_path / "distils" / EVENTS, step=7, losses={"loss": None}, step_seconds=0.25)
    with open(tmp_path / "distils" / EVENTS, "a") as file:
        file.write('{"step": 9, "lo')
    event(tmp_path / "evaluates" / EVENTS, step=300)
    event(tmp_path / "begins-again" / EVENTS, step=300)
    again = tmp_path / AGAIN / "begins-again"
    again.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for name in ("prepares", "distils", "evaluates", "begins-again", "broken"):
            stack.enter_context(take(path_of(tmp_path / name)))
        stack.enter_context(take(exchange_of(again)))
        stack.enter_context(take(tmp_path / FOLDER / ".tables"))
        dead = tmp_path / FOLDER / "killed"
        dead.write_text(json.dumps({**json.loads(path_of(again).read_text()), "pid": 2**22 + 1}))
        assert watch.main([str(tmp_path), "--once"]) == 0
        assert dead.exists(), "nothing is changed"
    assert capsys.readouterr().out.splitlines() == [
        "begins-again: preparing",
        f"broken: {tmp_path}/broken/{EVENTS} is no regular file: remove it",
        "distils: step 7 of 300, loss not finite, 0.25 s per iteration, 1 MiB, last event 0 s ago",
        "evaluates: evaluating",
        "prepares: preparing",
    ]
    dead.unlink()
    assert watch.main([str(tmp_path), "--once"]) == 0
    assert capsys.readouterr().out == f"no cell runs in {tmp_path}\n"
    assert watch.main([str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize(
    "change",
    [
        *({"step": 9, name: value} for name in ("steps", "seconds", "step_seconds") for value in ("x", None, [], 1e99)),
        *({"step": 9, "losses": value} for value in (None, [0.5], {"loss": "x"}, {"loss": [1]}, {"loss": 10**400})),
        *({"step": 9, "memory_bytes": value} for value in ("x", {}, float("nan"))),
        {"step": 9.5},
        {"step": True},
    ],
    ids=str,
)
def test_a_line_with_values_that_no_event_has_is_left_out(change: dict[str, Any], tmp_path: Path) -> None:
    event(tmp_path / "cell" / EVENTS)
    event(tmp_path / "cell" / EVENTS, **change)
    assert watch.describe(tmp_path / "cell").startswith("step 3 of 300, loss 0.25, 0.5 s per iteration, 1 MiB")


def test_it_ends_when_no_cell_runs_any_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pause between two cells is no end."""
    saved(tmp_path, *(builders.made(seed=seed) for seed in (0, 1)))
    first, second = (each.parent for each in sorted(tmp_path.glob(f"*/{RECORD}")))
    looks, held = [0], [take(path_of(first))]

    def sleep(seconds: float) -> None:
        looks[0] += 1
        if looks[0] == 3:
            held[0].release()
        if looks[0] == 10:
            held[0] = take(path_of(second))
        if looks[0] == 50:
            held[0].release()

    watch.watch(tmp_path, sleep)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [f"{first.name}: evaluating", f"{first.name}: ok"]
    assert lines[-2:] == [f"{second.name}: ok", f"no cell has run in {tmp_path} for 30 s"]
    assert lines[2:-2] == [f"{second.name}: evaluating"], "a line a minute where there is no terminal"
