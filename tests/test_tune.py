"""Tuning alike: which settings are tried, on which images, and what the best of them is called."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.errors import UserError
from harness import tune
from harness.plan.jobs import Job
from harness.plan.trials import defaults, trials
from harness.plan.trials import tuned as tuned_fields
from harness.records import record
from methods.base import Range
from tests.builders import all_in, in_process, quick
from tests.dummies import Dummy, DummyConfig, dummy
from tests.test_run import Pretending

__all__ = ["dummy", "quick"]  # fixtures
ROOT = Path(__file__).parents[1]
WORDS = "--methods dummy,random_real --dataset digits --ipc 2 --budget quick --width 4 --device cpu"


class ByStepSize(Pretending):
    """A launcher that pretends: accuracy is highest at lr 0.2, at ipc 1 at 0.3; large step sizes diverge."""

    def _run(self, job: Job) -> None:
        lr = job.config["lr"]
        self.accuracy = 1 - abs(lr - 0.2) if job.distillation.ipc == 2 else 0.5 + 0.05 * (lr == 0.3)
        self.answers = "ok" if lr < 0.8 else "diverged"
        super()._run(job)


@pytest.fixture
def tuned(dummy: type[Dummy], monkeypatch: pytest.MonkeyPatch) -> type[Dummy]:
    """``dummy``, whose quick step size is 0.3, its default 0.1, and that of its paper on digits at ipc 2 0.2."""
    monkeypatch.setattr(dummy, "TUNE", {"lr": Range(0.05, 1.0)})
    return dummy


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "tune.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def request(extra: str = "", output: Path = Path("nowhere")) -> tune.TuneRequest:
    return tune.parse([*WORDS.split(), *extra.split(), "--output", str(output)])


def settings(output: Path, extra: str = "") -> list[tuple[str, float | None]]:
    asked = request(extra, output)
    own = [job for job in defaults(asked) if job.distillation.method == "dummy"]
    return [(trial.kind, trial.settings.get("lr")) for trial in trials(asked, "dummy", own)]


def test_the_default_and_the_paper_come_first_and_more_trials_begin_with_the_same(
    tuned: type[Dummy], tmp_path: Path
) -> None:
    few, many = settings(tmp_path, "--trials 4"), settings(tmp_path, "--trials 9")
    assert few[:2] == [("default", None), ("paper", 0.2)] and many[:4] == few
    drawn = [lr for kind, lr in many if kind == "drawn"]
    assert len(set(drawn)) == 7 and all(lr is not None and 0.05 <= lr <= 1 for lr in drawn)
    assert sum(lr is not None and lr < 0.05**0.5 for lr in drawn) in (3, 4), "half of them in half of the logarithm"
    assert settings(tmp_path, "--trials 9 --scramble 1") != many
    assert tuned_fields(request("--dummy.lr 0.1"), "dummy") == {}, "a field of the command line is not tuned"


def test_whole_numbers_are_tried_once(tuned: type[Dummy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {Range(2, 4).at(share / 9) for share in range(10)} == {2, 3, 4} and type(Range(2, 4).at(0.5)) is int
    assert Range(0.0, 0.9, log=False).at(0.5) == 0.45 and Range(1e-4, 1e-2).at(0.5) == 1e-3
    monkeypatch.setattr(tuned, "TUNE", {"lr": Range(2, 4)})
    assert sorted(lr for _, lr in settings(tmp_path) if lr is not None) == [2, 3, 4]


def test_the_best_is_chosen_checked_and_written_down(
    tuned: type[Dummy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS.split(), "--trials", "6", "--seeds", "0,1", "--check", "digits", "--output", str(tmp_path)]
    launcher = ByStepSize()
    assert tune.main(words, launcher=launcher) == 0
    shown = capsys.readouterr()
    assert "left out: random_real: nothing to tune" in shown.err
    assert '"quick": {"lr": 0.2},' in shown.out and "+10.0" in shown.out and "0.3" not in shown.out
    trying, checking = launcher.jobs[:12], launcher.jobs[12:]
    assert {job.distillation.dataset for job in trying} == {"digits@fold:0-of-5"}
    assert [job.config["lr"] for job in trying[:4]] == [0.3, 0.3, 0.2, 0.2], "trial by trial"
    assert {job.distillation.seconds for job in launcher.jobs} == {60.0}
    assert {job.distillation.steps for job in launcher.jobs} == {None}
    assert [(j.distillation.dataset, j.distillation.seed, j.config["lr"]) for j in checking] == [
        ("digits@fold:1-of-5", seed, lr) for lr in (0.3, 0.2) for seed in (2, 3)
    ]
    table, own = (tmp_path / "tune.md").read_text(encoding="utf-8"), rows(tmp_path)
    assert table.count("lr 0.2") == 2 and '"quick": {"lr": 0.2},' in table
    assert len(own) == 16 and {row["settings"] for row in own if row["chosen"] == "True"} == {"lr=0.2"}
    diverged = {row["settings"] for row in own if row["status"] == "diverged"}
    assert f"6 ({len(diverged)} diverged)" in table
    assert {row["folder"] for row in own} == {each.folder.name for each in all_in(tmp_path)}
    # The same command has nothing left to do, and says the same.
    assert tune.main(words, launcher=launcher) == 0
    assert len(launcher.jobs) == 16 and capsys.readouterr().out == shown.out


def test_a_trial_that_fails_cannot_win_and_the_best_of_the_others_is_checked(
    tuned: type[Dummy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(ByStepSize):
        def _run(self, job: Job) -> None:
            self.status = "error" if job.config["lr"] == 0.3 else "ok"
            super()._run(job)

    words = [*WORDS.split(), "--trials", "4", "--check", "digits", "--output", str(tmp_path)]
    assert tune.main(words, launcher=Failing()) == 1
    checked = [(row["settings"], row["status"]) for row in rows(tmp_path) if row["part"] == "check"]
    assert checked == [("", "error"), ("lr=0.2", "ok")]
    assert "4 (1 error)" in capsys.readouterr().out


def test_a_run_that_was_stopped_is_not_checked(
    tuned: type[Dummy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise UserError("the disk is full")

    words = [*WORDS.split(), "--trials", "4", "--check", "digits", "--output", str(tmp_path)]
    launcher = ByStepSize(after={2: stop})
    assert tune.main(words, launcher=launcher) == 1 and len(launcher.jobs) == 2
    assert "dummy: not checked, as trials are not done" in capsys.readouterr().err


def test_settings_that_the_config_refuses_are_replaced_by_the_next(
    tuned: type[Dummy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request("--trials 6", tmp_path)
    jobs = [job for job in defaults(asked) if job.distillation.method == "dummy"]
    many = trials(request("--trials 12", tmp_path), "dummy", jobs)
    last = many[5].settings["lr"]
    made = DummyConfig.__post_init__

    def refusing(self: DummyConfig) -> None:
        if self.lr == last:
            raise UserError(f"dummy: lr is {self.lr}")
        made(self)

    monkeypatch.setattr(DummyConfig, "__post_init__", refusing)
    lines: list[str] = []
    assert trials(asked, "dummy", jobs, left_out=lines) == [*many[:5], many[6]]
    assert lines == [f"dummy: left out, lr {last:g} (dummy: lr is {last}); the next settings are tried instead"]


def test_a_choice_is_made_over_all_tasks(
    tuned: type[Dummy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At ipc 2 the paper's 0.2 is better by 10 points, and at ipc 1 the default 0.3 by 5: the mean decides."""
    words = f"{WORDS.replace('--ipc 2', '--ipcs 1,2')} --trials 3 --output {tmp_path}".split()
    assert tune.main(words, launcher=ByStepSize()) == 0
    assert {row["settings"] for row in rows(tmp_path) if row["chosen"] == "True"} == {"lr=0.2"}
    assert {"-5.0", "+10.0"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("--methods random_real", "error: random_real: nothing to tune"),
        ("--methods dummy --dummy.lr 0.1", "error: dummy: nothing to tune"),
        ("--methods dummy --budget paper", "--budget paper has nothing to tune"),
        ("--methods dummy --budget long", "--budget long has nothing to tune"),
        ("--methods dummy --trials 0", "--trials must be from 1 to 1000"),
        ("--methods dummy --check digist", "did you mean 'digits'"),
        ("--methods dummy --check folder:nowhere", "there is no folder"),
        ("--methods dummy --steps 5", "unknown argument '--steps'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_run(
    extra: str, says: str, tuned: type[Dummy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", "digits", "--device", "cpu", "--output", str(tmp_path), *extra.split()]
    assert tune.main(words, launcher=Pretending()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and not list(record.folders(tmp_path))


def test_a_trial_is_a_cell(tuned: type[Dummy], tmp_path: Path, quick: None) -> None:
    extra = "--trials 2 --seconds 0.01 --evaluate-steps 2 --networks-evaluated 2 --protocol common"
    assert tune.main([*WORDS.split(), *extra.split(), "--output", str(tmp_path)], launcher=in_process) == 0
    assert [row["status"] for row in rows(tmp_path)] == ["ok", "ok"]
    (first, _) = all_in(tmp_path)
    assert len(first.evaluations[0]["values"]["accuracy"]) == 2 and (first.record["steps"] or 0) >= 6
    assert "digits@fold:0-of-5" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_help_shows_the_hyper_parameters_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--methods", "frepo", "--help"]) == 0
    assert "--frepo.pool-size" in capsys.readouterr().out


def test_all_methods_are_those_that_say_what_to_tune_and_help_does_not_import_torch() -> None:
    import methods

    asked = tune.parse(["--methods", "all", "--dataset", "mnist"])
    assert asked.methods == tuple(methods.names())
    assert [name for name in asked.methods if not methods.get(name).TUNE] == [
        *("herding", "k_centre", "k_means", "random_real")
    ]
    code = "import sys\nfrom harness.tune import main\nassert main(['--help']) == 0 and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
