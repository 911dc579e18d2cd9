"""The command line: what it refuses, what it runs, what it skips, and how it ends."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import datasets, preprocess
from benchmarks.errors import UserError
from harness import cell, report, run
from harness.measure import memory
from harness.plan.experiments import BUDGETS, Job, Request, plan, prepare_is_reduced, resolve
from harness.plan.options import describe, parse, split
from harness.records import record
from harness.records.files import only_runner
from harness.records.record import Record
from harness.run import main
from methods.mtt import MTT
from tests.dummies import Dummy, DummyConfig, dummy

__all__ = ["dummy"]  # a fixture
ROOT = Path(__file__).parents[1]
SMOKE = "--methods dummy,random_real --dataset digits --budget smoke --width 4 --device cpu --seeds 0,1"


def request(**changes: object) -> Request:
    given: dict[str, object] = {"methods": ("dummy",), "datasets": ("digits",), "device": "cpu", **changes}
    return Request(**given)  # type: ignore[arg-type]


class Launcher:
    """Pretends to run cells, of this status and accuracy; ``after`` lets something happen once so many have run."""

    def __init__(
        self, status: str = "ok", after: dict[int, Callable[[], None]] | None = None, accuracy: float = 0.5
    ) -> None:
        self.status, self.after, self.accuracy, self.jobs = status, after or {}, accuracy, list[Job]()

    def __call__(self, job: Job) -> Record:
        self.after.get(len(self.jobs), lambda: None)()
        self.jobs.append(job)
        made = record.new(job.cell.to_dict(), job.config, record.provenance("", device="a cpu", fingerprint=None))
        made["status"], made["accuracy"]["values"], made["accuracy"]["mean"] = (
            self.status,
            [self.accuracy],
            self.accuracy,
        )  # type: ignore[typeddict-item]
        made["message"] = None if self.status == "ok" else "a reason"
        if self.status == "ok":
            job.artifact_path.write_bytes(job.stem.encode())
            digest = hashlib.sha256(job.stem.encode()).hexdigest()
            made["artifact"] = {"name": job.artifact_path.name, "sha256": digest}
        record.write(made, job.record_path)
        return made


def interrupt() -> None:
    raise KeyboardInterrupt


def command(output: Path, extra: str = "", base: str = SMOKE) -> list[str]:
    """The flags of ``base`` and ``extra``, of which the latter have the last word."""
    flags: dict[str, list[str]] = {}
    for words in f" {base} {extra}".split(" --")[1:]:
        flag, *values = words.split()
        flags[flag] = values
    return [word for flag, values in flags.items() for word in (f"--{flag}", *values)] + ["--output", str(output)]


# What it runs


def test_a_comma_list_is_a_grid(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    launcher = Launcher()
    assert main(command(tmp_path, "--ipcs 1,3 --width 4,8"), launch=launcher) == 0
    ran = [(job.cell.ipc, job.cell.width, job.cell.seed, job.cell.method) for job in launcher.jobs]
    assert ran == [
        (ipc, width, seed, method)
        for ipc in (1, 3)
        for width in (4, 8)
        for seed in (0, 1)
        for method in ("dummy", "random_real")
    ]
    shown = capsys.readouterr()
    assert "16 cells: dummy, random_real on digits, budget smoke" in shown.err and "[16/16]" in shown.err
    assert "random_real" in shown.out and "random_real" in (tmp_path / "table.md").read_text()
    assert {path.name for path in tmp_path.glob("table.*")} == {"table.md", "table.tex", "table.csv"}


def test_singular_and_plural_flags_are_the_same(tmp_path: Path, dummy: type[Dummy]) -> None:
    plural, singular = Launcher(), Launcher()
    rest = f"--budget smoke --device cpu --output {tmp_path} --force"
    many = f"--methods dummy --datasets digits --ipcs 2 --widths 4 --seeds 1 {rest}"
    one = f"--method dummy --dataset digits --ipc 2 --width 4 --seed 1 {rest}"
    assert main(many.split(), launch=plural) == main(one.split(), launch=singular) == 0
    assert [job.stem for job in plural.jobs] == [job.stem for job in singular.jobs]


def test_results_are_skipped_errors_tried_again_and_force_does_all(tmp_path: Path, dummy: type[Dummy]) -> None:
    assert main(command(tmp_path), launch=Launcher()) == 0
    for status, runs, code in (("oom", 0, 0), ("error", 0, 0)):
        assert main(command(tmp_path), launch=(again := Launcher(status))) == code and len(again.jobs) == runs
    for status, runs in (("oom", 0), ("timeout", 0), ("diverged", 0), ("error", 4)):
        folder = tmp_path / status
        assert main(command(folder), launch=Launcher(status)) == (1 if runs else 0)
        assert main(command(folder), launch=(again := Launcher())) == 0
        assert len(again.jobs) == runs
    assert main(command(tmp_path, "--force"), launch=(forced := Launcher())) == 0 and len(forced.jobs) == 4


def test_a_damaged_record_is_put_aside_and_its_cell_run_again(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(tmp_path), launch=(first := Launcher()))
    damaged = first.jobs[2].record_path
    damaged.write_text('{"schema": 1')
    capsys.readouterr()
    assert main(command(tmp_path), launch=(again := Launcher())) == 0
    assert [job.record_path for job in again.jobs] == [damaged]
    assert damaged.with_name(f"{damaged.name}.damaged").read_text() == '{"schema": 1'
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "damaged record" in line]
    assert str(damaged) in line
    for number in (2, 3):  # none is lost, however many there are
        damaged.write_text(f"[{number}")
        assert main(command(tmp_path), launch=Launcher()) == 0
        assert damaged.with_name(f"{damaged.name}.damaged-{number}").read_text() == f"[{number}"
    assert damaged.with_name(f"{damaged.name}.damaged").read_text() == '{"schema": 1'


@pytest.mark.parametrize("old", [False, True], ids=["with digest", "without"])
@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "altered", "another"])
def test_a_cell_whose_set_is_not_whole_runs_again(
    tmp_path: Path,
    dummy: type[Dummy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    old: bool,
) -> None:
    """Also where the record is of before digests were written down, as far as the file can tell."""
    monkeypatch.setattr(memory, "release", lambda: None)
    base = "--methods dummy --no-random --dataset digits --budget smoke --width 4 --device cpu"
    ran = list[Job]()

    def launch(job: Job) -> Record:
        ran.append(job)
        return cell.run(job)

    assert main(command(tmp_path, "", base), launch=launch) == 0
    path, whole = ran[0].artifact_path, ran[0].artifact_path.read_bytes()
    if old:
        found = json.loads(ran[0].record_path.read_text())
        del found["artifact"]
        ran[0].record_path.write_text(json.dumps(found))
    assert main(command(tmp_path, "", base), launch=launch) == 0 and len(ran) == 1
    capsys.readouterr()
    if fault == "missing":
        path.unlink()
    elif fault == "another":  # whole, but of another size
        assert main(command(tmp_path / "other", "--ipc 3", base), launch=cell.run) == 0
        path.write_bytes(next((tmp_path / "other").glob("*.safetensors")).read_bytes())
    else:
        changed = bytearray(whole)
        changed[9 if old else -1] ^= 0xFF  # in the header, without which nothing but the digest tells
        path.write_bytes({"empty": b"", "cut": whole[:-5], "altered": changed}[fault])
    capsys.readouterr()
    assert main(command(tmp_path, "", base), launch=launch) == 0
    said = capsys.readouterr().err
    assert "the cell is run again" in said and path.name in said and "done before" not in said
    assert len(ran) == 2 and path.read_bytes() == whole and record.load(ran[0].record_path)["artifact"] is not None
    assert main(command(tmp_path, "", base), launch=launch) == 0 and len(ran) == 2


@pytest.mark.parametrize("status", ["ok", "oom", "timeout", "diverged", "error", "killed"])
def test_a_result_stays_until_there_is_another(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], status: str
) -> None:
    base = "--methods dummy --no-random --dataset digits --budget smoke --width 4 --device cpu"
    assert main(command(tmp_path, "", base), launch=Launcher()) == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("digits-*")}
    assert {path.suffix for path in before} == {".json", ".safetensors"}

    def again(job: Job) -> Record:
        assert {path: path.read_bytes() for path in before} == before, "lost while the cell runs"
        job.artifact_path.write_bytes(b"half")
        job.log_path.write_text("why")
        return interrupt() if status == "killed" else Launcher(status, accuracy=0.75)(job)  # type: ignore[func-returns-value, return-value]

    code = main(command(tmp_path, "--force", base), launch=again)
    said = capsys.readouterr().err
    now = {path: path.read_bytes() for path in before}
    assert code == {"ok": 0, "killed": 130}.get(status, 1)
    assert (now == before) == (status != "ok") and not (tmp_path / ".again").exists()
    assert ("the earlier result is kept" in said) == (status not in ("ok", "killed"))
    (found,) = record.load_all(tmp_path)[0]
    assert found["status"] == "ok" and found["accuracy"]["values"] == [0.75 if status == "ok" else 0.5]
    if status not in ("ok", "killed"):
        assert f"{status}: a reason" in said and next(tmp_path.glob("digits-*.log")).read_text() == "why"
    assert main(command(tmp_path, "", base), launch=(skipped := Launcher())) == 0 and skipped.jobs == []


def test_what_was_no_good_result_is_replaced(tmp_path: Path, dummy: type[Dummy]) -> None:
    base = "--methods dummy --no-random --dataset digits --budget smoke --width 4 --device cpu"
    assert main(command(tmp_path, "", base), launch=Launcher("oom")) == 0
    assert main(command(tmp_path, "--force", base), launch=Launcher("diverged")) == 0
    assert record.load_all(tmp_path)[0][0]["status"] == "diverged"
    assert main(command(tmp_path, "--force", base), launch=Launcher("error")) == 1
    assert record.load_all(tmp_path)[0][0]["status"] == "diverged", "an error is no result"


@pytest.mark.parametrize("changes", [{"schema": 99}, {"protocol_version": "99"}], ids=["schema", "protocol"])
@pytest.mark.parametrize("own", [True, False], ids=["of a cell", "beside"])
def test_a_record_of_a_newer_version_stops_the_run(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], changes: dict[str, Any], own: bool
) -> None:
    first = Launcher()
    assert main(command(tmp_path), launch=first) == 0
    path = first.jobs[-1].record_path
    if not own:
        path = path.rename(tmp_path / "other.json")
    newer = json.dumps({**json.loads(path.read_text()), **changes})
    path.write_text(newer)
    capsys.readouterr()
    assert main(command(tmp_path, "--force"), launch=(launcher := Launcher())) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {path} was written by a newer version of this suite (")
    assert launcher.jobs == [] and path.read_text() == newer and not list(tmp_path.glob("*.damaged*"))


def test_two_runs_do_not_share_an_output(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused while the first runs, whatever it asks for; other folders and later runs are free."""
    inner = Launcher()
    codes = list[int]()

    def second() -> None:
        for arguments in (command(tmp_path), command(tmp_path, "--seeds 7 --force"), command(tmp_path / "other")):
            codes.append(main(arguments, launch=inner))
        codes.append(main(command(tmp_path, "--forecast --methods frepo"), launch=inner))

    assert main(command(tmp_path), launch=(outer := Launcher(after={1: second}))) == 0
    assert codes == [2, 2, 0, 0] and len(outer.jobs) == 4
    assert {job.output for job in inner.jobs} == {str(tmp_path / "other")}
    refusals = [line for line in capsys.readouterr().err.splitlines() if "is in use by" in line]
    assert len(refusals) == 2
    assert refusals[0].startswith(f"error: {tmp_path} is in use by process {os.getpid()} on {platform.node()} since 20")
    assert f"python -m harness.run {SMOKE[:30]}" in refusals[0] and refusals[0].endswith("name another --output")
    assert not (tmp_path / ".running").exists()
    assert main(command(tmp_path, "--force"), launch=(later := Launcher())) == 0 and len(later.jobs) == 4


def test_the_lock_of_a_run_that_was_killed_is_free(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom harness.records.files import only_runner\n"
        "with only_runner(Path(sys.argv[1]), 'a run'):\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == -signal.SIGKILL
    assert "a run" in (tmp_path / ".running").read_text()
    with only_runner(tmp_path, "another"):
        assert "another" in (tmp_path / ".running").read_text()


def test_a_file_system_without_locks_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with only_runner(tmp_path, "a run"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be locked (No locks available): a second run there would go unnoticed" in line


def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr(tempfile, "TemporaryFile", full)

    assert main(command(tmp_path), launch=(launcher := Launcher(after={1: fill}))) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"stopped, as {tmp_path} cannot be written (No space left on device): 2 of 4 cells are done and kept in "
        f"{tmp_path}; the same command goes on with the next"
    )
    assert len(launcher.jobs) == len(list(tmp_path.glob("*.json"))) == 2
    monkeypatch.undo()


def test_a_second_interrupt_ends_without_a_traceback(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "show", lambda records: interrupt())
    assert main(command(tmp_path), launch=Launcher(after={2: interrupt})) == 130
    assert "Traceback" not in capsys.readouterr().err and len(list(tmp_path.glob("*.json"))) == 2


def test_an_interrupt_keeps_what_is_done_and_the_same_command_goes_on(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "forced", "--force"), launch=Launcher(after={2: interrupt})) == 130
    assert "the same command without --force goes on with those that have no result" in capsys.readouterr().err
    assert main(command(tmp_path), launch=Launcher(after={2: interrupt})) == 130
    shown = capsys.readouterr()
    assert "2 of 4 cells are done and kept" in shown.err and "dummy" in shown.out
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert main(command(tmp_path), launch=(again := Launcher())) == 0
    assert [(job.cell.seed, job.cell.method) for job in again.jobs] == [(1, "dummy"), (1, "random_real")]


def test_interrupted_and_uninterrupted_runs_give_the_same_bytes(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)

    def for_real(stop_at: int | None = None) -> Callable[[Job], Record]:
        count = iter(range(100))
        return lambda job: interrupt() if next(count) == stop_at else cell.run(job)  # type: ignore[func-returns-value, return-value]

    assert main(command(tmp_path / "a"), launch=for_real()) == 0
    assert main(command(tmp_path / "b"), launch=for_real(stop_at=2)) == 130
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").glob("*-*.*")}
    assert len(before) == 6
    assert main(command(tmp_path / "b"), launch=for_real()) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    for folder in ("a", "b"):
        assert len(list((tmp_path / folder).glob("*.safetensors"))) == 4
    for path in (tmp_path / "a").glob("*-*.*"):
        if path.suffix != ".json":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        else:
            ours, theirs = record.load(path), record.load(tmp_path / "b" / path.name)
            assert (ours["cell"], ours["accuracy"]) == (theirs["cell"], theirs["accuracy"])


def test_a_smaller_run_takes_no_row_out_of_the_tables(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(tmp_path), launch=Launcher())
    before = (tmp_path / "table.csv").read_text()
    capsys.readouterr()
    assert main(command(tmp_path, "--methods dummy --no-random --seeds 0"), launch=Launcher()) == 0
    assert (tmp_path / "table.csv").read_text() == before and "random_real" in (tmp_path / "table.md").read_text()
    shown = capsys.readouterr()
    rows = shown.out.partition("---")[2]
    assert "dummy" in rows and "random_real" not in rows and "the 4 records there" in shown.err


def test_tables_that_cannot_be_written_are_a_line_and_status_1(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.md").mkdir()
    assert main(command(tmp_path), launch=Launcher()) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith(f"error: the tables cannot be written into {tmp_path}: ")
    assert "random_real" in shown.out and len(list(tmp_path.glob("*.json"))) == 4


def test_random_real_is_in_every_table(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    for extra, ran in (("", ["dummy", "random_real"]), ("--no-random", ["dummy"])):
        assert (
            main(command(tmp_path / extra, f"--methods dummy --seeds 0 {extra}"), launch=(launcher := Launcher())) == 0
        )
        shown = capsys.readouterr()
        assert [job.cell.method for job in launcher.jobs] == ran
        assert (
            ("random_real" in shown.out.partition("---")[2]) == ("random_real runs as well" in shown.err) == (not extra)
        )


def test_images_are_decoded_whitened_and_hashed_once_for_a_plan_and_all_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(name), ord(name[-1]), 9)).save(tmp_path / "pets" / name / "1.png")
    calls = Counter[str]()

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.update([name]) or real(*a, **k))

    for owner, name in ((datasets, "_decode"), (datasets, "_fingerprint"), (preprocess, "fit")):
        counted(owner, name)
    monkeypatch.setattr(memory, "release", lambda: None)
    base = f"--methods frepo --no-random --dataset folder:{tmp_path / 'pets'} --budget smoke --device cpu --seeds 0,1"
    assert main(command(tmp_path / "out", "--steps 1 --width 4", base), launch=cell.run) == 0
    assert {found["cell"]["preprocess"] for found in record.load_all(tmp_path / "out")[0]} == {"zca_frepo"}
    assert calls == {"_decode": 1, "_fingerprint": 1, "fit": 1}


def test_a_failed_cell_does_not_stop_the_others(
    tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)
    assert main(command(tmp_path, "--dummy.fail error"), launch=cell.run) == 1
    statuses = [found["status"] for found in record.load_all(tmp_path)[0]]
    assert sorted(statuses) == ["error", "error", "ok", "ok"]
    assert "error: RuntimeError: the first line" in capsys.readouterr().err


def test_a_narrow_network_is_said_once(tmp_path: Path, dummy: type[Dummy], capsys: pytest.CaptureFixture[str]) -> None:
    base = "--methods random_real --dataset digits --device cpu"
    for extra, said in (("--budget smoke", "width 8 instead of 128"), ("", "width 32 instead of 128")):
        main(command(tmp_path, extra, base), launch=(launcher := Launcher()))
        assert capsys.readouterr().err.count(said) == 1
        assert f"width {launcher.jobs[0].cell.width} " in said
    main(command(tmp_path, "--width 16", base), launch=Launcher())
    assert "instead of" not in capsys.readouterr().err


# What determines a cell


def test_hyper_parameters_are_resolved_in_order() -> None:
    def lr(ipc: int, budget: str, *options: str) -> tuple[float, int | None]:
        config, steps = resolve({"dummy": Dummy}, "digits", ipc, budget, {"dummy": list(options)})["dummy"]
        return config.lr, steps

    assert lr(1, "smoke") == (0.1, 4)  # the default; steps of the budget
    assert lr(2, "smoke") == (0.2, 4)  # what the paper says, but not its steps
    assert lr(2, "quick") == (0.3, BUDGETS["quick"].steps)  # the budget has the last word, but for the command line
    assert lr(2, "quick", "--dummy.lr", "0.4") == (0.4, BUDGETS["quick"].steps)
    assert lr(2, "paper") == (0.2, 9)
    with pytest.raises(UserError, match=r"no published setting for dummy on digits at ipc 1.*digits 2"):
        lr(1, "paper")


def test_selection_needs_no_published_setting_and_has_no_steps(tmp_path: Path) -> None:
    for changes in ({"budget": "paper"}, {"steps": 7}, {"seconds": 3.0, "seconds_include_prepare": True}):
        (job,) = plan(request(methods=("random_real",), output=tmp_path, **changes))
        assert job.cell.steps is None and job.cell.seconds is None and not job.cell.seconds_include_prepare
    assert job.cell.protocol == "vico"


def test_budgets_fix_networks_width_and_evaluation(tmp_path: Path, dummy: type[Dummy]) -> None:
    cells = {b: plan(request(budget=b, ipcs=(2,), output=tmp_path))[0].cell for b in BUDGETS}
    assert [(c.networks_evaluated, c.evaluate_steps, c.width) for c in cells.values()] == [
        (1, 20, 8),
        (3, 1000, 32),
        (5, None, 128),
        (0, 0, 32),
    ]
    (job,) = plan(request(networks_evaluated=2, evaluate_steps=7, output=tmp_path))
    assert (job.cell.networks_evaluated, job.cell.evaluate_steps) == (2, 7)


def test_how_many_networks_are_trained_at_a_time_is_no_part_of_the_cell(tmp_path: Path, dummy: type[Dummy]) -> None:
    (free,), (told,) = (plan(request(networks_at_once=count, output=tmp_path)) for count in (None, 2))
    assert (free.networks_at_once, told.networks_at_once) == (None, 2)
    assert free.cell == told.cell and free.stem == told.stem


def test_protocols_and_networks(tmp_path: Path) -> None:
    def shape(**changes: object) -> tuple[str, str, str, str]:
        (job,) = plan(request(methods=("frepo",), output=tmp_path, **changes))
        return job.cell.protocol, job.cell.network, job.cell.norm, job.cell.preprocess

    assert shape() == ("frepo", "convnet_doubling", "batch", "standardise")
    assert shape(network="convnet") == ("frepo", "convnet", "batch", "standardise")
    assert shape(protocol="common") == ("common", "convnet", "instance", "standardise")


# Costs, and experiments


def test_a_cost_cell_is_the_published_setting_for_a_time(tmp_path: Path, dummy: type[Dummy]) -> None:
    def cost(**changes: object) -> tuple[float | None, int | None, dict[str, Any]]:
        (job,) = plan(request(budget="cost", output=tmp_path, **changes))
        return job.cell.seconds, job.cell.steps, job.config

    assert cost(ipcs=(2,))[:2] == (20.0, None) and cost(ipcs=(2,))[2]["lr"] == 0.2  # the paper's; not its steps
    assert cost(ipcs=(1,))[2]["lr"] == DummyConfig.lr
    assert cost(seconds=3.0)[:2] == (3.0, None) and cost(steps=7)[:2] == (None, 7)


def test_only_experts_are_reduced_for_costs(tmp_path: Path) -> None:
    (job,) = plan(request(methods=("mtt",), budget="cost", output=tmp_path))
    default = json.loads(json.dumps(dataclasses.asdict(MTT.Config())))
    assert {name for name in default if job.config[name] != default[name]} == MTT.BUDGETS["cost"].keys()
    assert prepare_is_reduced(MTT, job.cell, job.config) and not prepare_is_reduced(MTT, job.cell, default)


def planned(monkeypatch: pytest.MonkeyPatch, arguments: str, output: Path) -> list[Job]:
    launcher = Launcher()
    monkeypatch.setattr(run, "_draw", lambda records, folder: None)
    monkeypatch.setattr(run, "_with_forecast", lambda job: job)  # minutes for so many cells
    assert main([*arguments.split(), "--dataset", "digits", "--output", str(output)], launch=launcher) == 0
    return launcher.jobs


def test_figure3_is_a_sweep_of_costs_and_accuracies_at_one_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = planned(monkeypatch, "--experiment figure3 --device cpu", tmp_path)
    costs = [job.cell for job in jobs if job.cell.budget == "cost"]
    others = [job.cell for job in jobs if job.cell.budget != "cost"]
    methods = ["frepo", "mtt", "dsa", "dm", "bptt"]
    assert [(c.width, c.method) for c in costs] == [(w, m) for w in (16, 32, 64) for m in methods]
    assert {(c.network, c.seconds, c.curve_points) for c in costs} == {("convnet_doubling", 20.0, 0)}
    assert [c.method for c in others] == [*methods, "random_real"]
    assert {(c.budget, c.protocol, c.width, c.network) for c in others} == {("quick", "common", 32, "convnet_doubling")}
    assert {(c.seconds, c.curve_points) for c in others} == {(60.0, 6), (None, 0)}


def test_flags_override_an_experiment_each_part_taking_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "--experiment figure3 --methods frepo,random_real,dm --widths 8,256,512 --seconds 1 --network native"
    jobs = planned(monkeypatch, f"{asked} --budget smoke --curve-points 3 --ipc 2 --dm.batch-real 7", tmp_path)
    found = [(job.cell.method, job.cell.width, job.cell.budget, job.cell.curve_points) for job in jobs]
    costs = [(method, width, "cost", 0) for width in (8, 256, 512) for method in ("frepo", "dm")]
    assert found == [*costs, ("frepo", 8, "smoke", 3), ("random_real", 8, "smoke", 0), ("dm", 8, "smoke", 3)]
    assert {job.cell.seconds for job in jobs} == {1.0, None} and {job.cell.ipc for job in jobs} == {2}
    assert [job.cell.network for job in jobs[:2]] == ["convnet_doubling", "convnet"]
    assert {job.config["batch_real"] for job in jobs if job.cell.method == "dm"} == {7}


def test_the_command_of_the_paper_s_figure_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "--experiment figure3 --methods frepo,mtt,dsa,dm,bptt --dataset cifar100 --widths 16,32,64,128,256,512"
    seen = []
    monkeypatch.setattr(run, "plan", lambda request: seen.append(request) or interrupt())
    assert main([*asked.split(), "--device", "cpu"]) == 130
    assert seen[0].widths == (16, 32, 64, 128, 256, 512) and seen[0].budget == "cost" and len(seen[0].methods) == 5


def test_an_experiment_ends_with_figures_or_a_line_that_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "seaborn", None)
    asked = f"--experiment figure3_cost --methods frepo --dataset digits --width 4 --device cpu --output {tmp_path}"
    assert main(asked.split(), launch=Launcher()) == 0
    assert "no figures, because seaborn is missing: pip install" in capsys.readouterr().err


def test_everything_that_determines_a_result_is_in_the_identity(tmp_path: Path, dummy: type[Dummy]) -> None:
    (job,) = plan(request(output=tmp_path))
    seen = {job.stem}
    for field in dataclasses.fields(job.cell):
        value = getattr(job.cell, field.name)
        other = not value if isinstance(value, bool) else 7 if isinstance(value, int | float) or value is None else "x"
        seen.add(dataclasses.replace(job, cell=dataclasses.replace(job.cell, **{field.name: other})).stem)
    for name in job.config:
        seen.add(dataclasses.replace(job, config={**job.config, name: "other"}).stem)
    assert len(seen) == 1 + len(dataclasses.fields(job.cell)) + len(job.config)
    elsewhere = dataclasses.replace(job, output="o", cache="c", data_root="d", command="e", source="f")
    assert elsewhere.stem == job.stem


def test_own_folders_are_known_by_name_and_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for split_name in ("train", "test"):
        for index, label in enumerate(("cat", "dog")):
            (tmp_path / "my pets" / split_name / label).mkdir(parents=True)
            Image.new("RGB", (8, 8), (90 * index, 9, 9)).save(tmp_path / "my pets" / split_name / label / "1.png")
    (tmp_path / "my pets" / "train" / "cat" / "2.heic").touch()
    wanted = request(
        methods=("random_real",), datasets=(f"folder:{tmp_path / 'my pets'}",), output=tmp_path / "out", image_size=8
    )
    (job,) = plan(wanted)
    assert plan(wanted) == [job]
    assert job.cell.dataset == "folder:my pets" and str(tmp_path) not in str(job.cell)
    assert job.stem.startswith("folder_my_pets-ipc1-random_real-convnet-w32-seed0-quick-")
    assert cell.run(dataclasses.replace(job, cell=dataclasses.replace(job.cell, evaluate_steps=1)))["status"] == "ok"
    # What was left out is said once, not in each plan and each cell.
    assert [line for line in capsys.readouterr().err.splitlines() if "left out" in line] == [
        f"folder:{tmp_path / 'my pets'}: 1 file or link is left out (no suffix of an image, no regular file, or a "
        "link to images that count already), for example 'train/cat/2.heic'"
    ]


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
        ("--methods frepo --dataset digits --budget quik", "did you mean 'quick'"),
        ("--methods frepo --dataset digits --protocol nativ", "did you mean 'native'"),
        ("--experiment figur3 --dataset digits", "unknown experiment 'figur3': did you mean 'figure3'"),
        ("--experiment figure3", "--dataset is missing"),
        ("--experiment figure3_cost --dataset digits --budget quick", "--budget says nothing to --experiment"),
        ("--experiment figure3_cost --dataset digits --methods herding", "herding has no steps"),
        ("--methods frepo --dataset digits --budget cost --curve-points 3", "leave --curve-points out"),
        ("--methods frepo,random_real --dataset digits --budget cost", "random_real has no steps"),
        ("--methods frepo --dataset digits --widht 4", "did you mean --width"),
        ("--methods frepo --dataset digits stray", "unknown argument 'stray'"),
        ("--methods frepo --dataset digits --ipc 0", "--ipcs must be at least 1, not 0"),
        ("--methods frepo --dataset digits --ipc -1", "--ipcs must be at least 1, not -1"),
        ("--methods frepo --dataset digits --ipc one", "expected whole numbers"),
        ("--methods frepo --dataset digits --ipc 5000", "class '8' has 139 training images"),
        ("--methods frepo --dataset digits --width 0", "--widths must be at least 1"),
        ("--methods frepo --dataset digits --seed -1", "--seeds must be at least 0"),
        ("--methods frepo --dataset digits --depth 0", "--depth must be at least 1"),
        ("--methods frepo --dataset digits --depth 9", "depth 9 leaves nothing of 8×8 images"),
        ("--methods frepo --dataset digits --steps 0", "--steps must be at least 1"),
        ("--methods frepo --dataset digits --seconds 0", "--seconds must be a positive number"),
        ("--methods frepo --dataset digits --seconds nan", "--seconds: expected a finite number, not 'nan'"),
        ("--methods frepo --dataset digits --seconds 3 --steps 3", "exclude each other"),
        ("--methods frepo --dataset digits --seconds-include-prepare", "means nothing without --seconds"),
        ("--methods frepo --dataset digits --networks-evaluated 0", "--networks-evaluated must be at least 1"),
        ("--methods frepo --dataset digits --evaluate-steps 0", "--evaluate-steps must be at least 1"),
        ("--methods frepo --dataset digits --networks-at-once 0", "--networks-at-once must be at least 1"),
        ("--methods frepo --dataset digits --curve-points -1", "--curve-points must be at least 0"),
        ("--methods frepo --dataset digits --device tpu", "--device must be cpu, cuda or cuda:N"),
        ("--methods frepo --dataset digits --device cuda:99", "--device cuda:99"),
        ("--methods frepo --dataset digits --device cpu --tf32", "--tf32 needs a CUDA device"),
        ("--methods frepo --dataset digits --budget paper", "no published setting for frepo on digits"),
        ("--methods frepo --dataset cifar100", "cifar100 is not in"),
        ("--methods frepo --dataset folder:/not/there", "/not/there"),
        ("--methods frepo --dataset digits --frepo.pool-sise 3", "did you mean --frepo.pool-size? Those of frepo: lr"),
        (
            "--methods frepo --dataset digits --frepo.pool-size many",
            "takes a whole number, not 'many'",
        ),
        ("--methods frepo --dataset digits --frepo.pool-size 0", "error: --frepo.pool-size is 0; it must be above 0"),
        ("--methods frepo --dataset digits --frepo.pool-size", "takes a whole number, but no value is given"),
        ("--methods frepo --dataset digits --fripo.pool-size 3", "did you mean 'frepo'"),
        (
            "--methods frepo --dataset digits --mtt.syn-steps 3",
            "--mtt.syn-steps: mtt is not among the methods, frepo\n",
        ),
    ],
)
def test_a_bad_request_is_one_line_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    launcher = Launcher()
    assert main([*arguments.split(), "--output", str(tmp_path)], launch=launcher) == 2
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
    assert main(arguments, launch=Launcher()) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and folder in shown and "cannot be written" in shown


# Help


def test_help_and_its_names_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.run import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'tyro', 'tqdm', 'sklearn', 'PIL', 'scipy', 'seaborn'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    for name in ("frepo", "random_real", "cifar100", "convnet_doubling", "--budget", "--image-size"):
        assert name in shown


@pytest.mark.parametrize(
    "code",
    [
        "from harness.plan.experiments import Request, plan\n"
        "plan(Request(('frepo', 'mtt'), ('digits',), budget='smoke', device='cpu', output=Path(sys.argv[1])))",
        "import harness.cell",
    ],
)
def test_neither_planning_nor_the_start_of_a_cell_imports_what_it_can_do_without(code: str, tmp_path: Path) -> None:
    heavy = "{'sklearn', 'scipy', 'pandas', 'torchvision', 'matplotlib', 'seaborn', 'higher', 'sympy', 'torch._dynamo'}"
    code = f"import sys\nfrom pathlib import Path\n{code}\nheavy = {heavy} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)


def test_a_wrong_request_and_a_right_one_in_processes_of_their_own(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "harness.run", *command(tmp_path, "--no-random", "--dataset digits --width 4")]
    for method, status in (("fripo", 2), ("random_real", 0)):
        asked = [*start, "--methods", method, "--budget", "smoke", "--device", "cpu"]
        assert subprocess.run(asked, cwd=ROOT, capture_output=True).returncode == status
    (found,) = record.load_all(tmp_path)[0]
    assert found["status"] == "ok"


def test_help_on_methods_shows_their_hyper_parameters_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--methods", "frepo,random_real", "--budget", "smoke", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--frepo.pool-size INT" in shown and "networks in the pool" in " ".join(shown.split())
    assert "random_real: no hyper-parameters" in shown and "(default: 10)" in shown
    assert list(tmp_path.iterdir()) == []


def test_list_names_papers_and_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert (
        "figure3_accuracy" in shown
        and "NeurIPS 2022" in shown
        and "[protocol mtt]" in shown
        and "common" in shown
        and "folder:PATH" in shown
    )


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
    for tokens in (["--dummy.lr", "-1"], ["--dummy.fail", "maybe"], ["--dummy.betas", "1"], ["--dummy.entry", "maybe"]):
        with pytest.raises(UserError) as caught:
            parse({"dummy": DummyConfig()}, {"dummy": tokens})
        assert "\n" not in str(caught.value) and "│" not in str(caught.value)


def test_hyper_parameters_are_documented() -> None:
    shown = describe({"dummy": DummyConfig(lr=0.7)})
    assert "--dummy.lr FLOAT" in shown and "How far. (default: 0.7)" in shown
