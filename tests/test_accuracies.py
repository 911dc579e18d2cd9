"""Tables for a paper: chosen columns and rows, and accuracies that fit a column."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from harness import report
from harness.records.record import Distilled
from tests.builders import made, saved

ALIKE = {"protocol": "common"}


def ranked() -> list[Distilled]:
    """Four methods on two tasks: on the first the ranks are clear, on the second two methods share the first."""
    steady = [0.001 * place for place in range(5)]
    means = {
        "frepo": (0.9, 0.9),
        "mtt": (0.8, 0.9),
        "dm": (0.7, 0.7),
        "random_real": (0.5, 0.5),
    }
    return [
        made([mean + each for each in steady], method=method, ipc=ipc, seed=seed, **ALIKE)
        for method, both in means.items()
        for ipc, mean in zip((1, 10), both, strict=True)
        for seed in (0, 1)
    ]


def body(text: str) -> dict[str, list[str]]:
    """Method → its cells, of the first Markdown table in ``text``."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in lines}


def test_the_second_is_underlined_where_ranks_are_clear(tmp_path: Path) -> None:
    report.write(ranked(), tmp_path, accuracies=True)
    text, tex = (tmp_path / "accuracies.md").read_text(), (tmp_path / "accuracies.tex").read_text()
    rows = body(text)
    assert rows["method"] == ["mnist, ipc 1", "mnist, ipc 10"]
    assert rows["frepo"] == ["**90.2 ± 0.1**", "**90.2 ± 0.1**"]
    assert rows["mtt"] == ["<ins>80.2 ± 0.1</ins>", "**90.2 ± 0.1**"]
    assert rows["dm"] == ["70.2 ± 0.1", "70.2 ± 0.1"]  # two share the first rank: there is no second
    assert r"mtt & \underline{80.2}{\scriptsize$\pm$0.1} & \textbf{90.2}{\scriptsize$\pm$0.1} \\" in tex
    for part in ("n = 10", "Recipe common", "Network convnet\\_doubling", "Width 32", "Underlined: ", "Bold: "):
        assert part in tex
    assert "resizebox" not in tex


def test_ranks_need_rows_that_were_evaluated_alike(tmp_path: Path) -> None:
    records = [made(method=method, protocol=recipe) for method, recipe in (("frepo", "frepo"), ("mtt", "mtt"))]
    records += [made((0.99,), method="whole_data", ipc=0, protocol="mtt"), made((), method="dm", status="oom")]
    report.write([*records, made((), method="mtt", protocol="mtt", seed=1, status="oom")], tmp_path, accuracies=True)
    text = (tmp_path / "accuracies.md").read_text()
    assert "**" not in text and "<ins>" not in text and "No row is bold" in text and "Underlined" not in text
    assert "Recipe frepo (frepo), mtt (mtt, whole_data)" in text
    rows = body(text)
    assert rows["method"] == ["mnist, ipc 1"] and rows["whole_data"] == ["99.0"] and rows["dm"] == ["oom"]
    assert rows["mtt"] == [r"91.0 ± 1.4\*"] and "mtt on mnist, ipc 1: ok 1, oom 1" in text


def test_settings_and_data_of_one_name_stay_apart(tmp_path: Path) -> None:
    records = [made(width=32, **ALIKE), made((0.5, 0.7), width=64, **ALIKE), made(data_fingerprint="fedcba", **ALIKE)]
    report.write(records, tmp_path, accuracies=True)
    text = (tmp_path / "accuracies.md").read_text()
    rows = body(text)
    assert rows["method"] == ["mnist (01234567), ipc 1", "mnist (fedcba), ipc 1"]
    assert rows["frepo [a]"] == ["91.0 ± 1.4", "91.0 ± 1.4"] and rows["frepo [b]"] == ["60.0 ± 14.1", "–"]
    assert "[a] frepo: width=32" in text and "[b] frepo: width=64" in text


def test_chosen_columns_and_rows_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "records", *ranked())
    arguments = [folder, "--accuracies", "--columns", "method, Accuracy,s/iter", "--rows", "method=m*,dm,R*; ipc=1"]
    assert report.main([*arguments, "--sort", "accuracy:down"]) == 0
    text = (tmp_path / "records" / "table.md").read_text()
    assert list(body(text)) == ["method", ":------------", "mtt", "dm", "random_real"]
    assert body(text)["method"] == ["accuracy (%)", "s/iteration (median)"]
    assert "**" not in text  # the best is not shown, and no other takes its place
    assert "3 of 8 rows are shown; bold is decided among all of them." in text
    assert "All rows: data set mnist, ipc 1, network convnet_doubling, width 32" in text
    tex = (tmp_path / "records" / "table.tex").read_text()
    assert tex.index("mtt &") < tex.index("dm &") < tex.index("random\\_real &") and "resizebox" not in tex
    assert len(pd.read_csv(tmp_path / "records" / "table.csv")) == 8
    rows = body((tmp_path / "records" / "accuracies.md").read_text())
    assert rows["mtt"] == ["<ins>80.2 ± 0.1</ins>"] and "frepo" not in rows
    assert "mtt" in capsys.readouterr().out
    assert report.main([folder, "--columns", "method,accuracy"]) == 0
    assert "rows differ in it: ipc." in (tmp_path / "records" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--columns", "metod"], "unknown column 'metod': did you mean 'method'? Known: "),
        (["--columns", ","], "--columns names no column"),
        (["--rows", "method"], "--rows takes each column once, as 'method=frepo,mtt; ipc=1', not 'method'"),
        (["--rows", "method=frepoo"], "no row is left by --rows; there are method=frepo"),
        (["--sort", "accuracy:up"], "--sort takes a column, as ipc, or accuracy:down"),
        (["--sort", "s"], "'s' is several columns: "),
        (["--sort", "ipc", "--page", "a.md"], "--page shows whole tables"),
    ],
)
def test_a_selection_of_what_is_not_there_is_a_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path, made())
    assert report.main([folder, *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {said}") and shown.count("\n") == 1
    assert not (tmp_path / "table.md").exists()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, as of Debian's texlive-latex-recommended")
def test_accuracies_fit_a_column_in_latex(tmp_path: Path) -> None:
    names = ("mnist", "fashion_mnist", "cifar10", "folder:tiny-imagenet_100%")
    records = [
        made(values, method=method, dataset=name, ipc=ipc, **ALIKE)
        for method, values in (("frepo", (0.5, 0.7, 0.6)), ("random_real", (1.0, 1.0)), ("[2pt]*", (0.3, 0.2)))
        for name in names
        for ipc in (1, 10, 50)
    ]
    records.append(made(method="frepo", dataset="mnist", status="oom", width=64, **ALIKE))
    narrow = report.Selection.of("method,ipc,accuracy,n", "data set=mnist", None)
    (tmp_path / "narrow").mkdir()
    report.write(records, tmp_path, accuracies=True)
    report.write(records, tmp_path / "narrow", formats=("latex",), selection=narrow)
    head = r"\documentclass{article}\usepackage[textwidth=3.25in]{geometry}\usepackage{booktabs}\usepackage{graphicx}"
    inputs = r"\sloppy\input{accuracies.tex}\input{narrow/table.tex}"
    (tmp_path / "whole.tex").write_text(head + r"\begin{document}" + inputs + r"\end{document}")
    ran = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "whole.tex"], cwd=tmp_path, capture_output=True
    )
    log = ran.stdout.decode(errors="replace")
    assert ran.returncode == 0, log[-2000:]
    assert not re.search(r"Overfull \\hbox", log), log
    assert (tmp_path / "accuracies.tex").read_text().count(r"\begin{tabular}") > 1
