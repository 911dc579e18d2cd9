"""What all commands share: words, exit statuses, streams, interrupts, and whose packages they import."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from benchmarks import folders
from benchmarks.errors import UserError, nearest, printable
from benchmarks.networks import NetworkSpec
from harness import __main__, limits, run, startup
from harness.command_line import exit_status
from harness.launch import environment, local
from harness.plan import planning
from harness.plan.jobs import Job
from harness.plan.options import describe, parse, split
from harness.plan.planning import plan, unpublished
from harness.plan.request import Request
from harness.stopping import Stopped
from tests.builders import all_in
from tests.dummies import Dummy, dummy

__all__ = ["dummy"]  # a fixture
ROOT = Path(__file__).parents[1]
MODULES = {
    "run": "harness.run",
    "report": "harness.report",
    "figures": "harness.figures",
    "regress": "harness.regress",
    "evaluate": "harness.evaluate",
    "check": "harness.measure.check",
    "all": "harness",
}


def process(
    *arguments: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """``python -m`` with ``arguments``."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        timeout=120,
    )


def status(module: str, *arguments: str) -> int:
    """The exit status of a command that is run in this process."""
    made: int = importlib.import_module("harness.__main__" if module == "harness" else module).main(list(arguments))
    return made


# Words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("an é, a – and 数字", "an é, a – and 数字"),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        ("\x1b[31mred\x9b0m\x07", r"\x1b[31mred\x9b0m\x07"),
        ("right\u202eto left\u2028", r"right\u202eto left\u2028"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
    ],
)
def test_what_is_printed_is_one_line_without_codes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_the_nearest_name_is_found_in_any_case() -> None:
    assert nearest("FREPO", ["mtt", "frepo"]) == "frepo" and nearest("Digit", ["digits", "mnist"]) == "digits"
    assert nearest("fooo", ["protocol", "force"], 0.6) is None


FOLDER = str(Path(__file__).parent)
RUN = "--methods frepo --dataset digits --budget smoke --device cpu"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        # A flag that is given twice
        ("run", [*RUN.split(), "--budget", "quick"], "--budget is given twice: leave one of them out"),
        ("run", [*RUN.split(), "--dataset=mnist"], "--dataset is given twice: leave one of them out"),
        ("run", [*RUN.split(), "--datasets", "mnist"], "--dataset and --datasets mean the same: leave one of them out"),
        ("run", ["--force", "--force"], "--force is given twice: leave one of them out"),
        ("run", ["-h", "--help"], "-h and --help mean the same: leave one of them out"),
        ("run", [*RUN.split(), "--frepo.lr", "1", "--frepo.lr=2"], "--frepo.lr is given twice: leave one of them out"),
        (
            "run",
            [*RUN.split(), "--frepo.pool-size", "1", "--frepo.pool_size", "2"],
            "--frepo.pool-size is given twice: leave one of them out",
        ),
        ("regress", ["a", "b", "--output", "c", "--output", "c"], "--output is given twice: leave one of them out"),
        ("evaluate", ["a", "--name", "c", "--name", "d"], "--name is given twice: leave one of them out"),
        ("check", ["--device", "cpu", "--device", "cpu"], "--device is given twice: leave one of them out"),
        # Paths
        *[("run", [*RUN.split(), flag, ""], f"{flag}: the path is empty") for flag in ("--output", "--cache")],
        ("run", [*RUN.split(), "--data-root= "], "--data-root: the path is empty"),
        ("run", [*RUN.split(), "--output", "~nobody_/x"], "--output: there is no such user: '~nobody_/x'"),
        ("run", ["--methods", "frepo", "--dataset", "folder:"], "--dataset folder: has no path: write folder:PATH"),
        ("run", ["--methods", "frepo", "--dataset", "digits,folder: "], "--dataset folder: has no path"),
        ("report", [""], "FOLDER: the path is empty"),
        ("figures", [""], "FOLDER: the path is empty"),
        ("regress", ["", "x"], "BASELINE: the path is empty"),
        ("regress", ["x", "y", "--output", ""], "--output: the path is empty"),
        ("regress", ["x", "y", "--output", FOLDER], f"--output: {FOLDER} is a folder: name a file in it"),
        ("regress", ["x\0", "y"], r"BASELINE: 'x\x00' cannot be a path"),
        ("evaluate", [""], "PATH: the path is empty"),
        ("evaluate", ["x", "--output", ""], "--output: the path is empty"),
        ("report", ["x", "--page", "."], "--page: . is a folder: name a file in it"),
        ("regress", ["x", "y", "--output", "./"], "--output: ./ is a folder: name a file in it"),
        ("report", ["a\nb\x1b[31m"], r"no such folder: a\nb\x1b[31m"),
        ("report", [__file__], f"{__file__} is a file, not a folder"),
        ("regress", ["a\nb", "c"], r"no such folder or record: a\nb"),
        ("evaluate", ["a\nb"], r"no such file: a\nb"),
        ("evaluate", ["a", "--name", "a\nb"], r"--name 'a\nb' cannot be printed"),
        # Numbers
        ("run", [*RUN.split(), "--steps", "x"], "--steps: expected a whole number, not 'x'"),
        ("run", [*RUN.split(), "--steps", "-x"], "--steps: no value is given"),
        ("run", [*RUN.split(), "--steps", str(10**30)], f"--steps: {10**30} is too large"),
        ("run", [*RUN.split(), "--ipcs", "1,,2"], "--ipcs/--ipc: expected whole numbers, comma between, not '1,,2'"),
        ("run", [*RUN.split(), "--ipcs", f"1,{10**30}"], f"--ipcs/--ipc: {10**30} is too large"),
        ("run", [*RUN.split(), "--seeds", "-1,2"], "--seeds must be at least 0, not -1"),
        *[
            ("run", [*RUN.split(), "--seconds", text], f"--seconds: expected a finite number, not '{text}'")
            for text in ("nan", "-inf", "1e400", "", "one")
        ],
        ("run", [*RUN.split(), "--curve-points", "1001"], "--curve-points must be at most 1000, not 1001"),
        (
            "run",
            [*RUN.split(), "--memory-limit", "-5GiB"],
            "--memory-limit: expected something like 24GiB, not '-5GiB'",
        ),
        ("run", [*RUN.split(), "--memory-limit", "9" * 400], f"--memory-limit: {'9' * 400} is too large"),
        ("run", [*RUN.split(), "--time-limit", "9999999999"], "--time-limit: 9999999999 is too large"),
        ("run", [*RUN.split(), "--time-limit", "-2h"], "--time-limit: expected something like 2h, not '-2h'"),
        ("regress", ["a", "b", "--one-seed", "inf"], "--one-seed: expected a finite number, not 'inf'"),
        ("evaluate", ["a", "--lr", "nan"], "--lr: expected a finite number, not 'nan'"),
        ("evaluate", ["a", "--width", "1.5"], "--width: expected a whole number, not '1.5'"),
        # What does not exist
        ("run", [*RUN.split(), "--fooo"], "unknown argument '--fooo'; see --help"),
        ("run", [*RUN.split(), "--widht=3"], "unknown argument '--widht': did you mean --width?"),
        ("run", [*RUN.split(), "--force=1"], "--force: takes no value, but has '1'"),
        ("report", ["a", "--fooo"], "unknown argument '--fooo'; see --help"),
        ("regress", ["a", "b", "--outpt", "c"], "unknown argument '--outpt': did you mean --output?"),
        ("regress", ["a"], "the following arguments are required: NEW"),
        ("check", ["--devise", "cpu"], "unknown argument '--devise': did you mean --device?"),
        ("run", ["--methods", "FREPO", "--dataset", "digits"], "unknown method 'FREPO': did you mean 'frepo'?"),
        # Hyper-parameters
        ("run", [*RUN.split(), "--frepo.pool-size", "-3"], "--frepo.pool-size is -3; it must be above 0"),
        ("run", [*RUN.split(), "--frepo.pool-size"], "--frepo.pool-size takes a whole number, but no value is given"),
        ("run", [*RUN.split(), "--frepo.pool-size="], "--frepo.pool-size takes a whole number, not ''"),
        ("run", [*RUN.split(), "--frepo.pool-size", "3", "4"], "--frepo.pool-size takes a whole number, not '3' '4'"),
        ("run", [*RUN.split(), "--frepo.pool-size", str(10**30)], f"--frepo.pool-size is too large: {10**30}"),
        ("run", [*RUN.split(), "--frepo.lr", "inf"], "--frepo.lr takes a finite number, not 'inf'"),
        ("run", [*RUN.split(), "--frepo.lr", "NaN"], "--frepo.lr takes a finite number, not 'NaN'"),
        ("run", [*RUN.split(), "--frepo.lr", "-inf"], "--frepo.lr takes a finite number, not '-inf'"),
        ("run", [*RUN.split(), "--frepo.lr", "1\n2"], r"--frepo.lr takes a finite number, not '1\n2'"),
        (
            "run",
            [*RUN.split(), "--mtt.syn-steps", "3", "--mtt.lr=1"],
            "--mtt.syn-steps, --mtt.lr: mtt is not among the methods, frepo",
        ),
        # Commands
        (
            "all",
            [],
            "a command is missing: run, forecast, list, data, report, figures, watch, evaluate, export, tune, regress, "
            "schedule, check-method; see frepo-bench",
        ),
        ("all", ["rnu"], "unknown command 'rnu': did you mean 'run'? Known: "),
        ("all", ["run"], "--methods is missing; for instance: frepo-bench run --methods frepo,mtt --dataset digits"),
        ("all", ["forecast", "--methods", "mtt"], "--dataset is missing; for instance: frepo-bench forecast --methods"),
        ("all", ["report"], "no folder is given; for instance: frepo-bench report results/local"),
        ("all", ["evaluate"], "no folder or file is named; for instance: frepo-bench evaluate results/local"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(MODULES[command], *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert status("harness.report", "~/below") == 2
    assert f"no such folder: {tmp_path}/below" in capsys.readouterr().err


# Hyper-parameters


@dataclass(frozen=True)
class Typed:
    """Of no method."""

    a_size: int = 1
    betas: tuple[float, float] = (0.5, 0.5)
    kind: Literal["x", "y"] | None = None
    on: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.a_size < 1:
            raise ValueError(f"pixel_mean: a_size is {self.a_size}, not a_size_s, and betas are {self.betas[0]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a-size", "1.5"], "--pixel-mean.a-size takes a whole number, not '1.5'"),
        (["a_size", "0"], "--pixel-mean.a-size is 0, not a_size_s, and --pixel-mean.betas are 0.5"),
        (["betas", "1"], "--pixel-mean.betas takes a finite number a finite number, not '1'"),
        (["betas", "1", "inf"], "--pixel-mean.betas takes a finite number a finite number, not '1' 'inf'"),
        (["kind", "z"], "--pixel-mean.kind takes x or y or None, not 'z'"),
        (["on", "yes"], "--pixel-mean.on takes True or False, not 'yes'"),
        (["on"], "--pixel-mean.on takes True or False, but no value is given"),
        (["name"], "--pixel-mean.name takes a word, but no value is given"),
        (["a-sise", "1"], "unknown hyper-parameter --pixel-mean.a-sise: did you mean --pixel-mean.a-size? Those of "),
        (["", "1"], "unknown hyper-parameter --pixel-mean.. Those of pixel_mean: a-size, betas, kind, on, name"),
    ],
)
@pytest.mark.parametrize("method", ["pixel-mean", "pixel_mean"])
def test_a_wrong_value_names_its_flag(method: str, words: list[str], message: str) -> None:
    _, options = split([f"--{method}.{words[0]}", *words[1:]], ["pixel_mean"])
    with pytest.raises(UserError, match=re.escape(message)):
        parse({"pixel_mean": Typed()}, options)


def test_dashes_and_underscores_are_the_same_and_dashes_are_shown() -> None:
    for flag in ("--pixel-mean.a-size", "--pixel_mean.a_size", "--pixel-mean.a_size=3", "--pixel_mean.a-size=3"):
        _, options = split([flag, *([] if "=" in flag else ["3"])], ["pixel_mean"])
        assert parse({"pixel_mean": Typed()}, options) == {"pixel_mean": Typed(a_size=3)}
    assert "--pixel-mean.a-size INT" in describe({"pixel_mean": Typed()})


def test_a_line_break_in_a_value_is_part_of_it() -> None:
    _, options = split(["--pixel-mean.name=a\nb"], ["pixel_mean"])
    assert parse({"pixel_mean": Typed()}, options) == {"pixel_mean": Typed(name="a\nb")}


# What would not fit


@pytest.mark.parametrize("name", ["convnet", "convnet_doubling"])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_parameters_are_counted_without_building_the_network(
    name: Literal["convnet", "convnet_doubling"], norm: Literal["batch", "instance", "none"]
) -> None:
    from benchmarks.task import generator_for

    spec = NetworkSpec(name, 3, (32, 32), 10, 4, None, norm)
    assert spec.parameters() == sum(p.numel() for p in spec.build(generator_for("x")).parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (10**7,)}, r"--widths 10000000: the parameters of the network alone would take .* TiB, and there "),
        ({"widths": (10**12,)}, "a network of width 1000000000000 is larger than any memory"),
        ({"widths": (10**18,)}, "a network of width 1000000000000000000 is larger than any memory"),
        ({"image_size": 10**6}, "--image-size 1000000: the images alone would take .*, and there are "),
        ({"datasets": ("folder:x",), "image_size": 10**9}, "--image-size 1000000000: the images alone"),
    ],
)
def test_what_is_larger_than_the_machine_is_refused_before_it_is_allocated(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    asked: dict[str, Any] = {"methods": ("dm",), "datasets": ("digits",), "device": "cpu", "output": tmp_path}
    if limits.total_bytes("cpu") is None and "larger than any" not in message:
        pytest.skip("the system does not tell its memory")
    with pytest.raises(UserError, match=message):
        plan(Request(**{**asked, **changes}))


def test_a_network_that_only_might_not_fit_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory is a result."""
    request = Request(methods=("dm",), datasets=("digits",), widths=(8,), device="cpu", output=tmp_path)
    (job,) = plan(request)
    spec = NetworkSpec("convnet", 1, (8, 8), 10, 8, job.distillation.depth, "instance")
    for room, fits in ((4 * spec.parameters(), True), (4 * spec.parameters() - 1, False)):
        monkeypatch.setattr(planning, "total_bytes", lambda device, room=room: room)
        if fits:
            assert plan(request) == [job]
        else:
            with pytest.raises(UserError, match="the parameters of the network alone"):
                plan(request)


def test_a_forecast_tells_of_widths_beyond_memory(tmp_path: Path) -> None:
    asked = Request(methods=("dm",), datasets=("mnist",), widths=(10**7,), device="cpu", output=tmp_path, forecast=True)
    (job,) = plan(asked)
    assert job.distillation.width == 10**7


# Forecasts of the published budget


def test_a_forecast_leaves_out_what_was_not_published(
    tmp_path: Path, dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.measure import forecast

    planned: list[tuple[str, int]] = []

    def table(jobs: list[Job], limit: int | None) -> str:
        planned.extend((job.distillation.method, job.distillation.ipc) for job in jobs)
        return "a table"

    monkeypatch.setattr(forecast, "table", table)
    base = "--dataset digits --budget paper --device cpu --forecast --no-random --methods"
    assert run.main([*base.split(), "frepo,dummy,random_real", "--ipcs", "1,2"]) == 0
    shown = capsys.readouterr()
    assert planned == [("random_real", 1), ("dummy", 2), ("random_real", 2)] and shown.out == "a table\n"
    assert shown.err.splitlines() == [
        "left out: frepo on digits, ipc 1: no published setting",
        "left out: frepo on digits, ipc 2: no published setting",
        "left out: dummy on digits, ipc 1: no published setting",
    ]
    assert run.main([*base.split(), "frepo,random_real"]) == 2  # nothing would be left
    assert "no published setting for frepo" in capsys.readouterr().err
    asked = {"methods": ("frepo", "dummy"), "datasets": ("digits",), "ipcs": (2,), "budget": "paper"}
    ran = Request(**asked, device="cpu", output=tmp_path)  # type: ignore[arg-type]
    assert unpublished(ran) == []
    with pytest.raises(UserError, match="no published setting for frepo"):
        plan(ran)


# What is said


def test_the_name_of_a_folder_is_printable_wherever_it_goes(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "my\npets\x1b[31m"
    for part in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (folder / part).mkdir(parents=True)
        Image.new("RGB", (8, 8), (len(part), ord(part[-1]), 9)).save(folder / part / "1.png")
    asked = {"methods": ("random_real",), "datasets": (f"folder:{folder}",), "image_size": 8, "device": "cpu"}
    (job,) = plan(Request(**asked, output=tmp_path / "out"))  # type: ignore[arg-type]
    assert job.distillation.dataset == r"folder:my\npets\x1b[31m" and job.path.name.startswith(
        "folder_my_npets_x1b_31m-"
    )


def test_no_home_folder_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("FREPO_BENCH_CACHE", "FREPO_BENCH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="set FREPO_BENCH_CACHE"):
        folders.default_root()


# How a command ends


def raises(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "expected", "line"),
    [
        (lambda: 1, 1, ""),
        (raises(SystemExit(0)), 0, ""),
        (raises(UserError("a\nb\x1b[0m")), 2, "error: a\\nb\\x1b[0m\n"),
        (raises(OSError(28, "No space left on device", "a\nb")), 2, "error: a\\nb: No space left on device\n"),
        (raises(OSError("no number")), 2, "error: no number\n"),
        (raises(KeyboardInterrupt()), 130, "stopped\n"),
        (raises(Stopped(signal.SIGUSR1)), 75, "stopped by SIGUSR1\n"),
        (raises(MemoryError("9 TiB")), 2, "error: there is too little memory for this: 9 TiB\n"),
        (raises(MemoryError()), 2, "error: there is too little memory for this\n"),
    ],
)
def test_exit_statuses(capsys: pytest.CaptureFixture[str], work: Callable[[], int], expected: int, line: str) -> None:
    assert exit_status(work) == expected
    assert capsys.readouterr().err == line


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0)


@pytest.mark.parametrize("arguments", [["harness", "--help"], ["harness.run", "--list"]])
def test_a_closed_pipe_is_a_quiet_end(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = process(*arguments, stdout=writing)
    os.close(writing)
    assert ended.returncode == 141 and ended.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_output_that_cannot_be_written_is_a_line() -> None:
    with open("/dev/full", "w") as full:
        ended = process("harness", "--help", stdout=full.fileno())
    assert ended.returncode == 2 and ended.stderr == "error: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_an_encoding_without_our_characters_gets_others(encoding: str) -> None:
    ended = process("harness.run", "--help", environment={"PYTHONIOENCODING": encoding})
    assert ended.returncode == 0 and ended.stderr == "" and "N,?" in ended.stdout


def test_closed_streams_stay_nowhere() -> None:
    """The first file that is opened would otherwise be standard output to those who write there."""
    command = [sys.executable, "-m", "harness", "nothing"]
    ended = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command], cwd=ROOT)
    assert ended.returncode == 2
    code = "import os\nfrom harness.startup import begin\nbegin()\nraise SystemExit(os.open(os.devnull, os.O_RDONLY))"
    ended = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], cwd=ROOT)
    assert ended.returncode >= 3


# Ctrl-C

STUBBORN = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except BaseException:
    raise ImportError("an initialiser that hides what it was interrupted by") from None
"""


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [
        (["harness.run", *RUN.split()], "shlex"),
        (["harness.run", *RUN.split(), "--forecast"], "torch"),
        (["harness.run", *RUN.split(), "--frepo.lr", "1", "--forecast"], "tyro"),
        (["harness.report", "."], "statistics"),
        (["harness.figures", "."], "pandas"),
        (["harness.regress", ".", "."], "statistics"),
        (["harness.evaluate", "README.md"], "shlex"),
        (["harness.measure.check"], "torch"),
        (["harness", "list"], "torch"),
    ],
)
def test_an_interrupt_while_importing_is_a_line(tmp_path: Path, arguments: list[str], imported: str) -> None:
    (tmp_path / f"{imported}.py").write_text(STUBBORN)
    ended = process(*arguments, environment={"PYTHONPATH": str(tmp_path)})
    assert ended.stderr == "stopped\n" and ended.returncode == 130


def test_an_interrupt_of_what_was_started_can_be_caught() -> None:
    before = signal.signal(signal.SIGINT, startup.quit_at_once), signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt), startup.interruptible():
            signal.raise_signal(signal.SIGINT)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            with pytest.raises(Stopped), startup.interruptible():
                signal.raise_signal(number)
        assert signal.getsignal(signal.SIGINT) is startup.quit_at_once
        assert signal.getsignal(signal.SIGTERM) == before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])
    with startup.interruptible():  # not ours to change elsewhere
        assert signal.getsignal(signal.SIGINT) is before[0]


# Whose packages are imported


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A working directory full of names that we import."""
    for name in (
        "benchmarks/__init__.py",
        "methods/__init__.py",
        "harness/notes.py",
        "torch.py",
        "shlex.py",
        "tyro.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a stranger')")
    return tmp_path


def test_what_lies_in_the_working_directory_is_not_imported(strangers: Path) -> None:
    """By the command line nor by a cell."""
    installed = {"PYTHONPATH": str(ROOT), "FREPO_BENCH_CACHE": str(strangers / "cache")}
    arguments = "--methods random_real --dataset digits --budget smoke --width 4 --device cpu --no-random"
    ended = process("harness.run", *arguments.split(), cwd=strangers, environment=installed)
    assert ended.returncode == 0 and "a stranger" not in ended.stdout + ended.stderr
    (distilled,) = all_in(strangers / "results" / "local")
    assert distilled.record["status"] == "ok" and distilled.set_path.exists()


@pytest.mark.parametrize("name", ["benchmarks", "methods"])
def test_a_package_that_hides_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stranger')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    (tmp_path / "elsewhere").mkdir()
    ended = process("harness", "--help", cwd=tmp_path / "elsewhere", environment={"PYTHONPATH": path})
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: the package {name} is found in '{tmp_path / name}', not beside ")


def test_a_cell_imports_what_the_command_line_imports(tmp_path: Path) -> None:
    """Of a checkout that is not installed, started in its folder, although another one is."""
    for layer in ("benchmarks", "methods", "harness"):
        shutil.copytree(ROOT / layer, tmp_path / layer, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "harness" / "cell.py").write_text("raise SystemExit('the cell of the checkout')")
    arguments = "--methods random_real --dataset digits --budget smoke --width 4 --device cpu --no-random"
    ended = process("harness.run", *arguments.split(), cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1 and "the cell of the checkout" in ended.stderr


@pytest.mark.parametrize("root", ["/a/checkout", "/venv/lib/python3.11/site-packages"])
def test_the_environment_of_a_cell(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setattr(environment, "ROOT", root)
    assert local.COMMAND[1:3] == ("-P", "-m")
    ours = [] if root.endswith("site-packages") else [root]  # before the standard library it has no business
    for theirs in ([], ["/x"], ["/x", "/y"]):
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", *theirs]))
        made = environment.environment()
        assert made["PYTHONSAFEPATH"] == "1"
        if ours + theirs:
            assert made["PYTHONPATH"].split(os.pathsep) == ours + theirs


# All commands under one name


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_every_command_helps_under_the_name_that_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: frepo-bench {name} ") and "python -m" not in shown


def test_forecast_and_list_are_flags_of_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], str]] = []

    def main(arguments: list[str], *, program: str) -> int:
        seen.append((arguments, program))
        return 7

    monkeypatch.setattr(run, "main", main)
    assert [__main__.main([name, "--x", "y"]) for name in ("run", "forecast", "list")] == [7, 7, 7]
    assert seen == [
        (["--x", "y"], "frepo-bench run"),
        (["--forecast", "--x", "y"], "frepo-bench forecast"),
        (["--list", "--x", "y"], "frepo-bench list"),
    ]


def test_the_help_of_all_commands_imports_none_of_them() -> None:
    code = (
        "import sys\nfrom harness.__main__ import main\nassert main(['--help']) == 0\n"
        "ours = ('harness.', 'methods', 'torch', 'numpy', 'pandas')\n"
        "loaded = {name for name in sys.modules if name.startswith(ours)}\n"
        "assert loaded == {f'harness.{name}' for name in ('__main__', 'command_line', 'startup', 'stopping')}, loaded"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert all(re.search(rf"^  {name} +\w", shown, re.M) for name in __main__.COMMANDS)
