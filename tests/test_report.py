"""Tables from records: what is aggregated, what is kept apart, and that the three files are well formed."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import report
from harness.evaluations.base import Quantity
from harness.plan.jobs import Distillation
from harness.records import record
from harness.records.provenance import provenance as measured_with
from harness.records.record import Distilled
from harness.reports import ratios
from harness.reports.groups import IMMATERIAL, grouped
from harness.reports.reported import reported
from harness.reports.tables import rows, tables
from tests.builders import DISTILLATION, MIB, TURNED, Turned, cost, curve, evaluated, made, saved, turned

__all__ = ["turned"]  # a fixture


def written(records: Sequence[Distilled], folder: Path) -> str:
    """``table.md`` of ``records``."""
    report.write(records, folder)
    return (folder / "table.md").read_text()


def cells(text: str) -> list[list[str]]:
    """Header and rows of the first Markdown table in ``text``."""
    lines = [line for line in text.split("\n\n")[1].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [rows[0], *rows[2:]]


def column(text: str, title: str) -> list[str]:
    header, *rows = cells(text)
    return [row[header.index(title)] for row in rows]


def test_seeds_are_aggregated_over_all_their_networks(tmp_path: Path) -> None:
    values = (0.90, 0.92, 0.95, 0.97)
    records = [made(values[:2], krr=(0.5, 0.7)), made(values[2:], krr=(0.6, 0.6), seed=1)]
    before = copy.deepcopy(records)
    text = written(records, tmp_path)
    assert records == before
    expected = f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
    assert column(text, "accuracy (%)") == [expected]
    assert column(text, "n") == ["2 × 2"]
    assert column(text, "KRR accuracy (%)") == ["60.0 ± 8.2"]
    assert column(text, "s/iteration (median)") == ["0.011"]
    row = pd.read_csv(tmp_path / "table.csv").iloc[0]
    assert row["accuracy_mean"] == statistics.fmean(values)
    assert row["accuracy_std"] == pytest.approx(statistics.stdev(values), rel=1e-15)
    assert row["seeds"] == "0 1"


def test_the_best_of_each_data_set_and_ipc_is_bold(tmp_path: Path) -> None:
    text = written(
        [
            made((0.90,)),
            made((0.80,), method="random_real"),
            made((0.85,), ipc=10),
            made((0.95,), ipc=10, method="random_real"),
            made((0.99,), dataset="digits"),
        ],
        tmp_path,
    )
    places = zip(column(text, "data set"), column(text, "ipc"), column(text, "accuracy (%)"), strict=True)
    bold = [place for place in places if place[2].startswith("**")]
    assert bold == [("mnist", "1", "**90.0**"), ("mnist", "10", "**95.0**")]  # no rival on digits
    assert "Bold: the highest mean of at least two rows that were evaluated alike, and every row that" in text


@pytest.mark.parametrize(
    "other",
    [
        {"protocol": "vico"},
        {"network": "convnet"},
        {"width": 64},
        {"depth": 2},
        {"preprocess": "zca_frepo"},
        {"evaluation": {"steps": 20}},
        {"evaluation": {"network": "resnet18"}},
        {"image_size": 16},
        {"dtype": "float64"},
        {"data_fingerprint": "fedcba"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_no_row_beats_another_that_was_evaluated_otherwise(other: dict[str, Any], tmp_path: Path) -> None:
    records = [made((0.9,)), made((0.8,), method="mtt", **other)]
    text = written(records, tmp_path)
    assert "**" not in text and "No row is bold as the best: no two were evaluated alike" in text
    assert r"\textbf" not in (tmp_path / "table.tex").read_text()
    text = written([*records, made((0.7,), method="dm", **other)], tmp_path)
    bold = [row for row in zip(column(text, "method"), column(text, "accuracy (%)"), strict=True) if "**" in row[1]]
    assert bold == [("mtt", "**80.0**")]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (((0.5,),), "of n = 1 evaluated network, without a deviation."),
        (((0.5, 0.6),), "mean ± sample standard deviation over n = 2 (evaluated networks × seeds)."),
        (((0.5,), (0.5, 0.6)), "over n = 1, 2 (evaluated networks × seeds), no deviation where n is 1."),
        (((),), "Nothing was evaluated."),
    ],
    ids=["one", "two", "both", "none"],
)
def test_a_deviation_is_promised_where_there_is_one(
    values: tuple[tuple[float, ...], ...], said: str, tmp_path: Path
) -> None:
    records = [made(numbers, config={"n": len(numbers)}) for numbers in values]
    assert said in written(records, tmp_path).splitlines()[0]


def test_the_caption_says_what_was_measured_and_the_notes_with_what(tmp_path: Path) -> None:
    records = [made(), made(ipc=10), made(ipc=10, method="random_real", protocol="vico", evaluation={"steps": 1000})]
    records[0].record["provenance"] |= {"commit": "abcdef0123", "dirty": True}
    records[1].record["provenance"] |= {"commit": "fedcba9876", "dirty": False}
    text = written(records, tmp_path)
    caption, notes = text.splitlines()[0], text.split("\n\n")[2:]
    assert caption.startswith("Accuracy: top-1 on the test set after the last step, mean ± sample standard deviation")
    for part in (
        "on A CPU",
        "budget quick",
        "native protocol",
        "of random_real shortened to at most 1000 training steps",
    ):
        assert part in caption
    assert column(text, "recipe") == ["frepo", "frepo", "vico"]
    assert caption.endswith(" Not measured here: random_real on mnist at ipc 1.")
    commits = "commits abcdef01 with uncommitted changes, fedcba98, unknown"
    assert notes[-1].strip() == f"With torch 2.13.0, python 3.11.7, {commits}."


@pytest.mark.parametrize(
    "other",
    [{"device": "Another CPU"}, {"budget": "smoke"}, {"protocol": "common"}, {}],
    ids=lambda other: next(iter(other), "version"),
)
def test_what_must_not_be_compared_stands_in_tables_apart(other: dict[str, Any], tmp_path: Path) -> None:
    records = [made(), made(**other), made(seed=1)]
    if not other:
        records[1].record["protocol_version"] = records[1].evaluations[0]["protocol_version"] = "0"
    text = written(records, tmp_path)
    assert text.count("| method") == 2
    assert len(pd.read_csv(tmp_path / "table.csv")) == 2


# What of a record tells rows apart

MEASURED = {
    *(f"record.cost.{part}_seconds" for part in ("prepare", "warmup", "compile", "distill", "step")),
    *(f"record.cost.{name}" for name in ("joules_per_step", "flops_per_step", "saved_bytes_per_step", "parameters")),
    *("record.cost.peak_live_bytes", "record.cost.forecast_bytes", "record.cost.memory.period_seconds"),
    *(
        f"record.cost.memory.{name}_bytes"
        for name in ("idle", "context", "allocated", "reserved", "device", "host_rss")
    ),
    *("record.snapshots", "evaluation.values.accuracy", "evaluation.cost.seconds", "evaluation.cost.parameters"),
}
MOVES_NOTHING = {
    **{f"{part}.schema": "the form of the file; another is not read" for part in ("record", "evaluation")},
    **{f"{part}.time_limit_seconds": "the note of the status says it" for part in ("record", "evaluation")},
    **{
        f"{part}.provenance.{name}": reason
        for part in ("record", "evaluation")
        for name, reason in IMMATERIAL.items()
        if name != "device"
    },
    "record.identity": "follows from what was asked",
    "record.distillation.seed": "what the records of a row differ in",
    "record.asked.protocol": "the recipe of the evaluation says it",
    "record.artifact": "where there is none, nothing was evaluated",
    "record.artifact.name": "the file of the set; its hash tells whether the evaluation asked about it",
    "record.steps": "a column has them",
    "record.curve_points": "how many snapshots were kept",
    "record.resolved.lr": "follows from the configuration, the data and the code",
    "evaluation.identity": "follows from the other fields",
    "evaluation.seed": "that of the distillation",
    "evaluation.sets": "the set of the record",
    "evaluation.config.networks": "n says how many there are",
    "evaluation.config.networks_at_once": "the cost has how many there were",
}
"""The reasons why rows need not be told apart by these."""
OTHER = {
    **{"record.status": "oom", "record.cost.memory.meter": "nvml", "record.cost.prepare": "reduced"},
    **{"evaluation.status": "oom", "evaluation.sets": None},
    "record.segments": [
        {"started": "", "ended": "", "device": device, "threads": 1, "torch": "2", "steps": 1, "seconds": 1.0}
        for device in ("A CPU", "Another")
    ],
}


def whole(budget: str) -> Distilled:
    """A distillation in which everything has a value that may have one; its evaluation as well, except for costs."""
    provenance = measured_with("a command", device="A CPU", fingerprint="abc") | {
        **{"commit": "abc", "dirty": False, "threads": 1, "cuda": "13.0", "driver": "580.1", "platform": "Linux"},
        **{
            "environment": {"OMP_WAIT_POLICY": "passive"},
            "source": "folder:/somewhere",
            "files": [{"name": "a", "sha256": "b"}],
            "class_order": "sorted names of class folders",
            "doubts": ["The images are odd."],
        },
    }
    fields: dict[str, Any] = {field.name: 1 for field in dataclasses.fields(Distillation)} | DISTILLATION
    distilled = made((), budget=budget, config={"lr": 0.1}, **{**fields, "seconds": None, "tf32": False})
    written = distilled.record
    written["provenance"], written["resolved"], written["time_limit_seconds"] = provenance, {"lr": 0.1}, 60.0
    costs: Any = written["cost"]
    words = ("meter", "busy", "missing", "prepare")
    for part in (costs, costs["memory"]):
        part |= {name: 2 for name, value in part.items() if value is None and name not in words}
    costs |= {"step_seconds": [0.5, 0.7], "prepare_cached": 0}
    return distilled if budget == "cost" else evaluated(distilled, {"accuracy": [0.5, 0.7]}, provenance=provenance)


def leaves(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of everything in a record that is no object."""
    for name, part in value.items():
        if isinstance(part, dict) and part:
            yield from leaves(part, f"{path}.{name}")
        else:
            yield f"{path}.{name}", part


def parts(distilled: Distilled) -> dict[str, Any]:
    return dict(zip(("record", "evaluation"), (distilled.record, *distilled.evaluations), strict=False))


def uncovered(base: Distilled, ending: str = "") -> list[str]:
    """The paths in ``base`` with that ending that may differ between the records of a row without anyone being told."""

    def told(*distilled: Distilled) -> tuple[int, list[tuple[str, tuple[str, ...], Any]]]:
        groups = grouped(distilled)
        return len(groups), [(table.caption, table.notes, table.columns) for table in tables(groups)]

    same = copy.deepcopy(base)
    same.record["distillation"]["seed"] = 1
    paths = []
    for path, value in (
        leaf for name, part in parts(base).items() for leaf in leaves(part, name) if leaf[0].endswith(ending)
    ):
        other = copy.deepcopy(same)
        part, *folders, name = path.split(".")
        place = functools.reduce(dict.__getitem__, folders, parts(other)[part])
        if path in OTHER:
            place[name] = OTHER[path] or value
        elif isinstance(value, (bool, type(None))):
            place[name] = "another" if value is None else not value
        else:
            place[name] = value * 2 if isinstance(value, (str, list)) else value + 1
        if told(base, other) == told(base, same) and path not in MEASURED | MOVES_NOTHING.keys():
            paths.append(path)
    return paths


@pytest.mark.parametrize("budget", ["quick", "cost"])
def test_everything_that_can_move_a_number_tells_rows_apart_or_is_said(budget: str) -> None:
    assert uncovered(whole(budget)) == []


def test_no_field_is_listed_that_is_not_there() -> None:
    all_parts = [pair for budget in ("quick", "cost") for pair in parts(whole(budget)).items()]
    assert MEASURED | MOVES_NOTHING.keys() <= {path for name, part in all_parts for path, _ in leaves(part, name)}


@pytest.mark.parametrize(
    ("place", "hidden"),
    [
        *(("record", True), ("record.cost", True), ("record.cost.memory", True), ("evaluation", True)),
        *(("record.distillation", False), ("record.provenance", False), ("evaluation.provenance", False)),
        *(("evaluation.config", False), ("record.config", False)),
    ],
)
def test_a_new_field_is_covered_or_seen(place: str, hidden: bool) -> None:
    """New fields of what was asked and of the provenance tell rows apart; others must be listed by hand."""
    base = whole("quick")
    part, *folders = place.split(".")
    functools.reduce(dict.__getitem__, folders, parts(base)[part])["brand_new"] = 3
    assert uncovered(base, "brand_new") == [f"{place}.brand_new"] * hidden


def test_the_provenance_has_no_name_of_the_cell() -> None:
    names = {*whole("quick").record["provenance"]} - {"data_fingerprint"}
    assert not names & whole("quick").record["distillation"].keys()


def test_what_numbers_were_measured_with_is_in_the_setting_where_it_differs(tmp_path: Path) -> None:
    """And nothing is divided by what was measured otherwise."""
    records = [cost(), cost(seed=1, seconds=0.05), cost("mtt", 1.2), cost("dm", 0.2)]
    for each, threads, policy in zip(records, (1, 2, 1, 1), ("passive",) * 3 + ("active",), strict=True):
        each.record["provenance"] |= {"threads": threads, "environment": {"OMP_WAIT_POLICY": policy}}
    text = written(records, tmp_path)
    titles = ("method", "setting", "s/iteration (median)", "s/iteration (median) ÷ frepo")
    assert list(zip(*(column(text, title) for title in titles), strict=True)) == [
        ("dm", "threads=1, OMP_WAIT_POLICY=active", "0.2", "–"),
        ("frepo", "threads=1, OMP_WAIT_POLICY=passive", "0.1", "1.0×"),
        ("frepo", "threads=2, OMP_WAIT_POLICY=passive", "0.05", "1.0×"),
        ("mtt", "threads=1, OMP_WAIT_POLICY=passive", "1.2", "12.0×"),
    ]
    assert "OMP_WAIT_POLICY active, passive" in text.splitlines()[-1] and "1, 2 CPU threads" in text.splitlines()[0]


def test_a_killed_cell_is_a_mark_in_the_row_that_it_does_not_contradict(tmp_path: Path) -> None:
    """The process that was killed noted nothing, so its record knows neither meter nor environment."""
    killed = made((), status="oom", meter=None, peak=None, seed=2)
    killed.record["cost"]["step_seconds"] = []
    records = [made(), made(seed=1)]
    for each in records:
        each.record["provenance"]["environment"] = {"A": "1"}
    for order in ([*records, killed], [killed, *records]):
        assert column(written(order, tmp_path), "accuracy (%)") == ["91.0 ± 1.2 (oom 1 of 3)"]
    records[1].record["provenance"]["environment"] = {"A": "2"}
    shown = column(written([*records, killed], tmp_path), "accuracy (%)")
    assert sorted(text.strip("*") for text in shown) == ["91.0 ± 1.4", "91.0 ± 1.4", "oom"], (
        "of two kinds it is of neither"
    )


@pytest.mark.parametrize("other", [{"meter": "nvml"}, {"device": "B"}], ids=lambda other: next(iter(other)))
def test_two_meters_and_two_devices_never_share_a_row(other: dict[str, Any], tmp_path: Path) -> None:
    records = [cost(seconds=0.1), cost(seconds=0.3, seed=1, peak=200 * MIB, **other)]
    for each, joules in zip(records, (1.0, 9.0), strict=True):
        each.record["cost"]["joules_per_step"] = joules
    report.write(records, tmp_path)
    table = pd.read_csv(tmp_path / "table.csv").sort_values("step_seconds_median")
    assert list(table["step_seconds_median"]) == [0.1, 0.3] and list(table["joules_per_step"]) == [1.0, 9.0]
    assert list(table["seeds"]) == [0, 1]


def test_another_setting_is_another_row_that_says_so_and_steps_by_time_are_none(tmp_path: Path) -> None:
    records = [made(config={"pool_size": size, "ridge": 1e-6}) for size in (10, 20)]
    assert column(written(records, tmp_path), "setting") == ["pool_size=10", "pool_size=20"]
    records = [made(seconds=60.0, steps=None, seed=seed) for seed in (0, 1)]
    for each, steps in zip(records, (812, 830), strict=True):
        each.record["steps"] = steps
    text = written(records, tmp_path)
    assert column(text, "steps") == ["812–830"] and "setting" not in cells(text)[0]


def test_a_network_of_another_size_than_the_one_that_distilled_is_named(tmp_path: Path) -> None:
    records = [made(evaluation={"width": 128}), made(evaluation={"width": DISTILLATION["width"]}, seed=1)]
    text = written(records, tmp_path)
    assert sorted(column(text, "evaluated on")) == ["width 128", "–"] and "setting" not in cells(text)[0]
    assert "evaluated on" not in cells(written(records[1:], tmp_path))[0]


def test_meters_never_share_a_column(tmp_path: Path) -> None:
    text = written([made(meter="nvml", peak=900 * MIB), made(method="mtt", peak=150 * MIB, protocol="mtt")], tmp_path)
    assert column(text, "peak GPU memory, NVML (MiB)") == ["900", "–"]
    assert column(text, "peak host RSS above baseline (MiB)") == ["–", "150"]
    assert "peak GPU memory, allocated by torch (MiB)" not in cells(text)[0]


def test_measured_and_reported_never_share_a_column(tmp_path: Path) -> None:
    text = written([made(), made(method="mtt", protocol="mtt"), made(method="mtt", dataset="digits")], tmp_path)
    reported = column(text, "reported by papers (%)")
    assert reported == ["–", "93.0 ± 0.4, KRR 92.6 ± 0.4 [1]", "91.4 ± 0.9† [1]"]
    assert "Reported by papers: for their full schedules, not measured here." in text
    assert "NeurIPS 2022, table 1" in text
    assert "† run again by the authors of [1]" in text
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'frepo'").iloc[0]
    assert (row["accuracy_mean"], row["reported_accuracy"]) == (0.91, 0.93)


@pytest.mark.parametrize("status", ["oom", "timeout", "diverged", "error"])
def test_what_did_not_end_well_is_a_mark_and_a_note(status: str, tmp_path: Path) -> None:
    failed = made((), status=status, message="what\nhappened", method="mtt", protocol="mtt")
    text = written([made(), failed], tmp_path)
    assert column(text, "accuracy (%)")[1] == status
    assert f"{status}: mtt on mnist, ipc 1, width 32, seed 0: what happened" in text
    both = written([made(), made((), status=status, seed=1)], tmp_path)
    assert column(both, "accuracy (%)") == [f"91.0 ± 1.4 ({status} 1 of 2)"]
    assert column(both, "n") == ["2 × 1"]


@pytest.mark.parametrize("place", ["dataset", "message", "method", "config", "evaluation"])
def test_no_control_character_reaches_a_table(place: str, tmp_path: Path) -> None:
    nasty, shown = "a\n|b\x1b[31m\r\u202e\udcff\x00", r"a\n|b\x1b[31m\r\u202e\udcff\x00"
    records = [made(), made(seed=1)]
    records[0].record["config"] = {"x": nasty} if place == "config" else {}
    records[0].record["message"] = nasty if place == "message" else None
    if place in ("dataset", "method"):
        records[0].record["distillation"][place] = nasty
        records[0].evaluations[0]["sets"][0]["distillation"] = records[0].record["identity"]
    if place == "evaluation":
        records[0] = evaluated(records[0], {"leak": [0.5]}, nasty, config={})
    report.write(records, tmp_path)
    texts = {ending: (tmp_path / f"table.{ending}").read_bytes().decode() for ending in ("md", "tex", "csv")}
    texts["screen"] = report.show(records)
    for text in texts.values():
        assert all(character.isprintable() or character == "\n" for character in text)
    if place == "message":
        shown = shown.replace(r"\n", " ").replace(r"\r", " ")  # messages are put on one line
    escaped = shown.replace("\\", "\\\\").replace("|", r"\|")
    assert escaped in texts["md"]
    if place != "message":
        assert shown in texts["csv"] and len({len(row) for row in cells(texts["md"])}) == 1


def test_latex_is_escaped_and_balanced(tmp_path: Path) -> None:
    report.write([made(dataset="folder:a_b&c%#"), made(method="random_real", protocol="vico")], tmp_path)
    tex = (tmp_path / "table.tex").read_text()
    assert r"folder:a\_b\&c\%\#" in tex
    assert r"random\_real" in tex
    assert r"$\pm$" in tex
    assert not re.search(r"(?<!\\)[_#]", tex)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert tex.count(f"\\{rule}") == 1
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", tex)
    assert columns
    rows = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns[1])}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    report.write(
        [
            made(dataset="folder:a_b&c%#{}~^\\<é>"),
            made(method="[2pt]*"),
            made(method="mtt", status="oom"),
            made(device="Another"),
        ],
        tmp_path,
    )
    head = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
    (tmp_path / "whole.tex").write_text(head + r"\input{table.tex}\end{document}")
    ran = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "whole.tex"], cwd=tmp_path, capture_output=True
    )
    assert ran.returncode == 0, ran.stdout.decode(errors="replace")[-2000:]


def test_the_command_makes_the_tables_again_and_reads_every_folder_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "a" / "deep", made())
    saved(tmp_path / "b", made(seed=1))
    arguments = [str(tmp_path / name) for name in ("a", "b", "a/deep")]
    (tmp_path / "c").mkdir()
    for output, options in (("a", []), ("c", ["--output", str(tmp_path / "c")])):
        assert report.main([*arguments, *options]) == 0
        assert list(pd.read_csv(tmp_path / output / "table.csv")["seeds"]) == ["0 1"]
    assert "2 × 2" in capsys.readouterr().out and not (tmp_path / "b" / "table.csv").exists()
    before = (tmp_path / "a" / "table.md").read_bytes()
    (tmp_path / "c" / "record.json").write_text("{")
    assert report.main([*arguments, str(tmp_path / "c")]) == 1  # good records are shown, the damaged one is named
    shown = capsys.readouterr()
    assert "c/record.json" in shown.err and "frepo" in shown.out
    assert (tmp_path / "a" / "table.md").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no folder is given"),
        (["a", "--b"], "unknown argument '--b'"),
        (["missing"], "no such folder"),
        (["."], "no records in ."),
        ([".", "--output", "made"], "no records in ."),
        ([".", "--page", "page.md", "--output", "made"], "--page writes the tables of every FOLDER into it"),
        ([".", "--experiment", "table1", "--claims"], "--claims means nothing for --experiment"),
        ([".", "--experiment", "table1", "--page", "page.md"], "--page means nothing for --experiment"),
        ([".", "--experiment", "table1", "--format", "html"], "--experiment writes tables alone: leave html out"),
    ],
)
def test_a_bad_command_is_a_line_and_status_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}") and shown.count("\n") == 1 and not (tmp_path / "made").exists()


def test_reported_numbers_are_fractions_with_a_source() -> None:
    entries = reported()["entries"]
    assert len({(e["method"], e["dataset"], e["ipc"], e["source"]) for e in entries}) == len(entries)
    for entry in entries:
        assert 0 < entry["accuracy"] < 1
        assert entry["source"] in reported()["sources"]
        assert not entry["rerun"] or entry["source"] == "frepo-table1"


# What evaluations say


def test_two_recipes_are_two_rows_and_a_failed_seed_is_in_both(tmp_path: Path) -> None:
    twice = [evaluated(made(seed=seed), {"accuracy": [0.5, 0.6]}, steps=20) for seed in (0, 1)]
    text = written([*twice, made((), status="oom", seed=2)], tmp_path)
    shown = zip(*(column(text, title) for title in ("setting", "accuracy (%)", "n")), strict=True)
    assert list(shown) == [
        ("evaluation.steps=20", "55.0 ± 5.8 (oom 1 of 3)", "2 × 2"),
        ("–", "91.0 ± 1.2 (oom 1 of 3)", "2 × 2"),
    ]
    assert text.count("oom: frepo on mnist") == 1
    table = pd.read_csv(tmp_path / "table.csv")
    assert sorted(table["accuracy_mean"]) == pytest.approx([0.55, 0.91])
    assert list(table["evaluate_seconds_mean"]) == [7.0] * 2 and list(table["parameters_evaluated"]) == [654321] * 2


def test_a_set_evaluated_by_the_common_protocol_stands_in_both_tables(tmp_path: Path) -> None:
    both = evaluated(made(), {"accuracy": [0.5]}, protocol="common")
    text = written([both, made((), method="mtt"), made((), method="dm", protocol="common")], tmp_path)
    kinds = re.findall(r", (\w+) protocol, version", text)
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| ")]
    assert kinds == ["common", "native"]
    assert [row[0] for row in rows] == ["method", "dm", "frepo", "method", "frepo", "mtt"]
    assert [row[1] for row in rows[3:]] == ["recipe", "frepo", "mtt"]


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"provenance": {"device": "Another CPU", "torch": "2.13.0"}}, "evaluation.device=Another CPU"),
        ({"provenance": {"device": "A CPU", "torch": "2.14.0"}}, "evaluation.torch=2.14.0"),
        ({"tf32": True}, "evaluation.tf32=True"),
    ],
)
def test_what_an_evaluation_was_measured_with_tells_rows_apart(
    change: dict[str, Any], setting: str, tmp_path: Path
) -> None:
    records = [made(), evaluated(made((), seed=1), {"accuracy": [0.5]}, protocol="frepo", **change)]
    text = written(records, tmp_path)
    assert sorted(column(text, "n")) == ["1 × 1", "2 × 1"] and setting in column(text, "setting")
    said = f". Evaluated in part with {setting.removeprefix('evaluation.').replace('=', ' ')}."
    assert (said in text) == ("tf32" not in change)
    assert "**" not in text or "tf32" not in change


def test_an_evaluation_of_a_set_that_was_distilled_again_is_left_out(tmp_path: Path) -> None:
    again = made()
    again.record["artifact"] = {"name": record.SET, "sha256": "another"}
    assert "accuracy (%)" not in cells(written([again], tmp_path))[0]


def test_copies_are_no_second_measurement_and_the_same_seed_again_is_said(tmp_path: Path) -> None:
    copied = evaluated(made(), {"accuracy": [0.5, 0.6]}, steps=20)
    twice = dataclasses.replace(made(), evaluations=made().evaluations * 2)
    text = written([twice, copied, made((0.7,), seed=1, evaluation={"networks": 1})], tmp_path)
    assert column(text, "n") == ["2 × 1", "3"], "and counts of networks do not part seeds"
    again = made()
    again.record["cost"]["distill_seconds"] = 31.0
    text = written([made(), again], tmp_path)
    assert column(text, "n") == ["2 × 2"]
    assert "Distilled more than once, and counted as often: frepo on mnist, ipc 1, width 32, seed 0." in text


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        ([{"name": "a|b", "sha256": "0123456789"}], r"read from a\|b (SHA-256 01234567…);"),
        ([{"name": "a"}, 3], "read from {'name': 'a'}, 3;"),
        ("a", "read from a;"),
        (None, "read from None;"),
        ({"sha256": [1]}, "read from {'sha256': [1]};"),
    ],
    ids=str,
)
def test_the_files_of_a_published_set_are_named_whatever_their_form(files: Any, shown: str, tmp_path: Path) -> None:
    published = made()
    published.record["provenance"] |= {"files": files, "doubts": ["Odd images.", 7]}
    text = written([published], tmp_path)
    assert shown in text and "preprocessing, standardise. Odd images. 7\n" in text


@pytest.mark.usefixtures("turned")
def test_another_evaluation_has_columns_beside_the_accuracy(tmp_path: Path) -> None:
    """With the settings that differ in their titles, and n where it is not that of the accuracy."""
    values = {"turned": [0.25, 0.75], "loss": [1.25, 1.75], "kept": [0.9, 0.5]}
    records = [
        evaluated(each, values, "turned", config={**TURNED, "networks": networks})
        for each, networks in ((made(), 2), (made(seed=1), 9))
    ]
    text = written([*records, made(method="dm")], tmp_path)
    assert column(text, "accuracy on turned images (%)") == ["–", "50.0 ± 28.9"]
    assert column(text, "loss") == ["–", "1.5 ± 0.29"] and column(text, "kept (%)") == ["–", "50.0 ± 0.0, n = 2"]
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'frepo'").iloc[0]
    assert (row["turned.turned_mean"], row["turned.turned_n"], row["turned.kept_n"]) == (0.5, 4, 2)
    again = evaluated(records[0], {"turned": [0.1]}, "turned", config={**TURNED, "quarter_turns": 1})
    text = written([again], tmp_path)
    assert column(text, "accuracy on turned images (%), quarter_turns=1") == ["10.0"]
    assert column(text, "accuracy on turned images (%), quarter_turns=2") == ["50.0 ± 35.4"]
    assert pd.read_csv(tmp_path / "table.csv")["turned[quarter_turns=2].turned_mean"][0] == 0.5


@pytest.mark.usefixtures("turned")
def test_a_quantity_that_is_not_tabled_stays_in_the_csv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are told in the first column that there is; a series of several networks has a value from each."""
    shown = Quantity("shown", percent=False, against="training steps", at="lengths")
    hidden = Quantity("hidden", percent=False, tabled=False)
    monkeypatch.setattr(Turned, "quantities", {"hidden": hidden, "shown": shown})
    config = {"quarter_turns": 1, "lengths": [10, 20]}
    good = evaluated(made(), {"hidden": [0.25], "shown": [0.1, 0.2, 0.3, 0.4]}, "turned", config=config)
    bad = evaluated(made(method="dm"), {}, "turned", config=config, status="diverged")
    text = written([good, bad], tmp_path)
    assert column(text, "shown") == ["diverged", "0.3 ± 0.14"] and "hidden" not in text
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'frepo'").iloc[0]
    assert (row["turned.hidden_mean"], row["turned.shown_n"]) == (0.25, 2)


@pytest.mark.usefixtures("turned")
def test_an_evaluation_joins_the_rows_of_its_recipe_or_all_or_has_its_own(tmp_path: Path) -> None:
    each = evaluated(made(), {"accuracy": [0.5]}, protocol="vico")
    for protocol in ("frepo", "kip"):
        each = evaluated(each, {"turned": [0.2]}, "turned", config={**TURNED, "protocol": protocol})
    each = evaluated(each, {"leak": [0.25]}, "attack", config={"shadows": 3})
    text = written([each], tmp_path)
    titles = ("accuracy (%)", "accuracy on turned images (%)", "attack.leak")
    shown = set(zip(*(column(text, title) for title in titles), strict=True))
    assert shown == {("91.0 ± 1.4", "20.0", "0.25"), ("–", "20.0", "0.25"), ("50.0", "–", "0.25")}


@pytest.mark.usefixtures("turned")
def test_a_failed_evaluation_is_a_mark_and_a_note(tmp_path: Path) -> None:
    each = evaluated(made(), {}, "turned", status="diverged", message="no\nway", config=TURNED)
    text = written([evaluated(each, {}, "unknown", status="oom", message="full", config={})], tmp_path)
    assert column(text, "accuracy on turned images (%)") == ["diverged"] and column(text, "unknown") == ["oom"]
    assert column(text, "accuracy (%)") == ["91.0 ± 1.4"]
    assert "diverged: turned of frepo on mnist, ipc 1, width 32, seed 0: no way" in text
    accuracy = evaluated(made((), seed=1), {}, status="oom", message="full", protocol="frepo")
    text = written([made(), accuracy], tmp_path)
    assert column(text, "accuracy (%)") == ["91.0 ± 1.4 (oom 1 of 2)"] and "oom: accuracy of frepo on mnist" in text


def test_networks_trained_on_all_real_images_are_the_last_row_and_never_bold(tmp_path: Path) -> None:
    ceiling = made((0.99,), method="whole_data", ipc=0, steps=None)
    records = [ceiling, made((0.9,)), made((0.8,), method="mtt"), made((0.7,), ipc=50), made((0.9,), dataset="digits")]
    text = written(records, tmp_path)
    shown = zip(*(column(text, title) for title in ("data set", "ipc", "accuracy (%)")), strict=True)
    assert list(shown) == [
        ("digits", "1", "90.0"),
        *(("mnist", "1", "**90.0**"), ("mnist", "1", "80.0"), ("mnist", "50", "70.0"), ("mnist", "all", "99.0")),
    ]
    assert "ipc all: networks trained on all real images" in text and "random_real on mnist at ipc all" not in text


# Costs


def test_a_table_of_costs_has_ratios_and_no_accuracies(tmp_path: Path) -> None:
    records = [cost(), cost("mtt", 1.2, 1000 * MIB, 400), cost(width=64), cost("mtt", 30.0, 200 * MIB, width=64)]
    records[1].record["cost"]["prepare"] = "reduced"
    text = written(records, tmp_path)
    assert not {"accuracy (%)", "n", "KRR accuracy (%)"} & set(cells(text)[0]) and "reported" not in text
    assert column(text, "s/iteration (median) ÷ frepo") == ["1.0×", "12.0×", "1.0×", "300×"]
    assert column(text, "memory ÷ frepo") == ["1.0×", "10.0×", "1.0×", "2.0×"]
    assert column(text, "live tensors ÷ frepo") == ["1.0×", "8.0×", "1.0×", "1.0×"]
    assert column(text, "prepare (s)") == ["2.0", "2.0 (reduced)", "2.0", "2.0"] and "prepare reduced" in text
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'mtt' and width == 32").iloc[0]
    assert row["step_seconds_ratio"] == pytest.approx(12) and row["prepare"] == "reduced"
    assert r"12.0$\times$" in (tmp_path / "table.tex").read_text()


@pytest.mark.parametrize("other", [{"network": "convnet"}, {"width": 64}, {"ipc": 10}, {"device": "B"}], ids=str)
def test_ratios_are_of_the_same_setting_or_none(other: dict[str, Any], tmp_path: Path) -> None:
    report.write([cost(), cost("mtt", **other)], tmp_path)
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'mtt'").iloc[0]
    assert pd.isna(row["step_seconds_ratio"]) and pd.isna(row["peak_memory_ratio"])


def test_every_column_of_costs_has_its_own_rule(tmp_path: Path) -> None:
    records = [cost(meter="nvml"), cost("mtt", 0.2), cost("bptt", status="oom", message="too much")]
    for each, live in zip(records, (3 * 2**10, 12 * 2**10, 0), strict=True):
        each.record["cost"] |= {"peak_live_bytes": live, "flops_per_step": 2e9}
    records[0].record["cost"]["step_seconds"] = [0.1, 0.1, 0.1, 0.5]
    text = written(records, tmp_path)
    titles = ("method", "s/iteration (median)", "s/iteration (mean)", "s/iteration (median) ÷ frepo", "GFLOP/s")
    assert list(zip(*(column(text, title) for title in titles), strict=True)) == [
        ("bptt", "oom", "–", "–", "–"),
        ("frepo", "0.1", "0.2", "1.0×", "20"),  # rare expensive steps show in the mean
        ("mtt", "0.2", "0.2", "2.0×", "10"),
    ]
    assert column(text, "memory ÷ frepo") == ["–", "1.0×", "–"], "meters are never divided by each other"
    assert column(text, "peak host RSS above baseline (MiB)") == ["–", "–", "100"]
    assert column(text, "peak of live tensors (MiB)") == ["–", "0.0029", "0.012"]
    assert column(text, "live tensors ÷ frepo") == ["–", "1.0×", "4.0×"]
    assert "oom: bptt on mnist, ipc 1, width 32, seed 0: too much" in text
    assert pd.read_csv(tmp_path / "table.csv").query("method == 'frepo'")["flops_per_second"].item() == 2e10


def test_the_ratio_of_operations_stands_beside_that_of_times(tmp_path: Path) -> None:
    records = [cost(), cost("mtt", 1.2), cost("dm", 0.2)]
    for each, operations in zip(records, (2e9, 20e9, None), strict=True):
        each.record["cost"]["flops_per_step"] = operations
    text = written(records, tmp_path)
    header = cells(text)[0]
    assert header.index("operations ÷ frepo") == header.index("s/iteration (median) ÷ frepo") + 1
    rows = zip(column(text, "method"), column(text, "operations ÷ frepo"), strict=True)
    assert dict(rows) == {"frepo": "1.0×", "mtt": "10.0×", "dm": "–"}
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    assert table.loc["mtt", "flops_per_step_ratio"] == pytest.approx(10)


def test_what_was_measured_on_a_gpu_is_said_with_a_ratio_of_what_torch_allocated(tmp_path: Path) -> None:
    records = [cost(meter="nvml", peak=500 * MIB), cost("mtt", 0.2, 1000 * MIB, meter="nvml")]
    for each, allocated in zip(records, (50, 400), strict=True):
        memory = {"allocated_bytes": allocated * MIB, "missing": "the driver is too old", "busy": "another process"}
        each.record["cost"]["memory"] |= memory  # type: ignore[typeddict-item]
        each.record["provenance"] |= {"cuda": "13.0", "driver": "580.1"}
    text = written(records, tmp_path)
    assert column(text, "peak GPU memory, NVML (MiB)") == ["500", "1,000"]
    assert column(text, "peak GPU memory, allocated by torch (MiB)") == ["50", "400"]
    assert (column(text, "memory ÷ frepo")[1], column(text, "allocated ÷ frepo")[1]) == ("2.0×", "8.0×")
    assert "Other work on the device: frepo on mnist, ipc 1, width 32, seed 0: another process." in text
    assert "No peak by NVML, or not of all the time: mtt on mnist, ipc 1, width 32, seed 0: the driver" in text
    assert "With torch 2.13.0, python 3.11.7, cuda 13.0, driver 580.1." in text


def by_turns(words: str, samples: Mapping[str, Sequence[float]], **changes: Any) -> list[Distilled]:
    """The records of one interleaved run: seconds of a step by method."""
    records = [cost(method, interleaved=words, meter=None, **changes) for method in samples]
    for each, seconds in zip(records, samples.values(), strict=True):
        each.record["cost"]["step_seconds"] = list(seconds)
    return records


def test_ratios_of_steps_by_turns_are_those_of_pairs(tmp_path: Path) -> None:
    """The machine is twice as slow in the second half, which changes each of the medians and no ratio."""
    machine = [1.0, 1.0, 2.0, 2.0, 2.0]
    theirs = [2.0 * m for m in machine[:4]] + [2.4 * machine[4]]
    first = by_turns("frepo, mtt", {"frepo": machine, "mtt": theirs})
    second = by_turns("mtt, mtt_plain", {"mtt": [1.0, 4.0, 2.0], "mtt_plain": [1.1, 4.8, 2.6]})
    text = written([cost(meter=None), cost("mtt", 1.2, meter=None), *first, *second], tmp_path)
    titles = ("method", "setting", "s/iteration (median) ÷ frepo or mtt")
    assert sorted(zip(*(column(text, title) for title in titles), strict=True)) == [
        ("frepo", "interleaved=frepo, mtt", "1.0×"),
        ("frepo", "–", "1.0×"),
        ("mtt", "interleaved=frepo, mtt", "2.0×"),
        ("mtt", "interleaved=mtt, mtt_plain", "1.0×"),
        ("mtt", "–", "12.0×"),
        ("mtt_plain", "–", "1.2× (1.15 to 1.25)"),
    ]
    assert (
        "Steps taken by turns in one process: frepo, mtt, mtt, mtt_plain. Ratios of their seconds are medians" in text
    )
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'mtt_plain'").iloc[0]
    assert (row["ratio_to"], row["step_seconds_ratio_upper_quartile"]) == ("mtt", pytest.approx(1.25))


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0)], ids=str)
def test_pairs_are_of_one_run_or_there_is_no_ratio(seeds: tuple[int, int], tmp_path: Path) -> None:
    samples = [{"frepo": [1.0, 2.0], "mtt": [3.0, 6.0]}, {"frepo": [10.0], "mtt": [40.0]}]
    records = [
        each for seed, run in zip(seeds, samples, strict=True) for each in by_turns("frepo, mtt", run, seed=seed)
    ]
    report.write(records, tmp_path)
    row = pd.read_csv(tmp_path / "table.csv").query("method == 'mtt'").iloc[0]
    assert row["step_seconds_ratio"] == 3 if seeds == (0, 1) else pd.isna(row["step_seconds_ratio"])
    records[1].record["cost"]["step_seconds"].pop()
    assert pd.isna(rows(grouped(records))[-1]["step_seconds_ratio"]), "a sample has no partner"


# Times to an accuracy


def test_the_time_to_an_accuracy_is_interpolated_in_the_logarithm(tmp_path: Path) -> None:
    """It may come before the end, and again be lost: the first time counts."""
    (group,) = grouped([curve("frepo", [(1.0, 0.23), (100.0, 0.69), (200.0, 0.3), (400.0, 0.5)])])
    assert ratios.time_to(group.curve, 0.69) == (pytest.approx(100.0), False)
    assert ratios.time_to(group.curve, 0.23) == (1.0, True)  # earlier was not measured
    assert ratios.time_to(group.curve, 0.7) is None
    assert ratios.time_to_share(group) == (pytest.approx(10.0), False)  # 0.46 is half way in the logarithm
    row = rows([group])[0]
    assert row["seconds_to_92_percent_of_final_accuracy"] == pytest.approx(10.0)
    assert row["seconds_to_92_percent_are_upper_bound"] is False
    (without,) = grouped([made((0.5,))])
    assert rows([without])[0]["seconds_to_92_percent_of_final_accuracy"] is None


def test_seeds_share_the_points_that_all_have_counted_from_the_end() -> None:
    short = curve("frepo", [(4.0, 0.4), (16.0, 0.6)], steps=None, seed=1)
    (group,) = grouped([curve("frepo", [(1.0, 0.1), (2.0, 0.2), (8.0, 0.4)], steps=None), short])
    assert [(point.seconds, point.values) for point in group.curve] == [(3.0, (0.2, 0.4)), (12.0, (0.4, 0.6))]
    points = [(1.0, [0.1]), (10.0, [0.3]), (100.0, [0.5])]
    (group,) = grouped([curve("mtt", points), curve("mtt", [points[0], (10.0, []), points[2]], seed=1)])
    assert [(point.seconds, point.values) for point in group.curve] == [(1.0, (0.1, 0.1)), (100.0, (0.5, 0.5))]
    (group,) = grouped([curve("mtt", [(0.0, 0.1), *points[1:]])])
    assert [point.seconds for point in group.curve] == [10.0, 100.0], "0 seconds have no logarithm"


def test_a_page_has_the_notes_and_tables_of_every_folder(tmp_path: Path) -> None:
    saved(tmp_path / "device/digits", made((0.5,)))
    saved(tmp_path / "device/mnist", made((0.25,), dataset="mnist"))
    (tmp_path / "notes.md").write_text("# All\n")
    (tmp_path / "device/mnist/notes.md").write_text("Only in words.\n")
    (tmp_path / "device/mnist/a|b (1).png").write_bytes(b"")
    folders = [str(tmp_path / "device" / name) for name in ("digits", "mnist")]
    assert report.main([*folders, "--page", str(tmp_path / "README.md")]) == 0
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# All\n\n## digits\n\nAccuracy: ")
    assert page.endswith("![a\\|b (1)](device/mnist/a%7Cb%20%281%29.png)\n")
    assert page.index("## mnist\n\nOnly in words.\n\nAccuracy: ") < page.rindex("| mnist ")
    assert page.count((tmp_path / "device/digits/table.md").read_text().strip()) == 1
