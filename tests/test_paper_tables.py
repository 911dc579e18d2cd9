"""Tables of experiments: the paper's rows and columns, and its numbers beside the measured ones, never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.errors import UserError
from harness import report
from harness.plan.experiments import ARCHITECTURES, EXPERIMENTS
from harness.records.record import Distilled
from harness.reports.paper_tables import Sheet, has_table, sheets
from harness.reports.reported import reported
from tests.builders import evaluated, made, saved

CROSS = {"protocol": "vico", "architectures": ["alexnet:none"], "networks": 2, "steps": None, "width": None}
ATTACK = {
    **{"members": 10_000, "chunk": 0, "augment": "frepo", "batch_size": None, "repeats": 1, "attacked": "all"},
    **{"grid": "short", "lengths": [100, 250]},
}
CONTINUAL = {"protocol": "frepo", "class_steps": 5, "order": 0, "leak": False, "networks": 1, "steps": None}


def one(experiment: str, *distilled: Distilled) -> Sheet:
    (sheet,) = sheets(experiment, distilled)
    return sheet


def rows(sheet: Sheet) -> dict[str, dict[str, str]]:
    table = sheet.table()
    return {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}


def asked(distilled: Distilled, name: str, config: dict[str, Any], **values: Sequence[float]) -> Distilled:
    return evaluated(distilled, values, name, config=config)


# The paper's numbers


def test_every_number_of_the_paper_has_its_place_and_a_line() -> None:
    cells = reported()["cells"]
    assert len({(cell["table"], cell["row"], cell["column"]) for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["table"] in EXPERIMENTS and has_table(cell["table"]) and cell["line"] > 0
        assert 0 < cell["mean"] <= 1 and (cell["std"] is None or 0 <= cell["std"] < 0.1)
    counts = [sum(cell["table"] == name for cell in cells) for name in ("table2", "table4", "figure5ab")]
    assert counts == [30, 30, 4]
    assert all(entry["line"] > 0 for entry in reported()["entries"] if entry["source"].startswith("frepo-table"))


# Table by table


def test_table1_has_methods_beside_the_paper_and_kernel_regression_in_brackets() -> None:
    sheet = one(
        "table1",
        made((0.5, 0.6), krr=(0.7, 0.8)),
        made((0.5,), dataset="digits", protocol="frepo"),
        made((0.4,), method="dm", protocol="vico"),
        made((0.9,), method="dm", protocol="common", ipc=10),
    )
    assert rows(sheet) == {
        "mnist, ipc 1": {
            **{"dsa, paper": "88.7 ± 0.6", "dm": "40.0", "dm, paper": "89.9 ± 0.8†", "mtt, paper": "91.4 ± 0.9†"},
            **{
                "kip, paper": "90.1 ± 0.1",
                "frepo": "55.0 ± 7.1 (75.0 ± 7.1)",
                "frepo, paper": "93.0 ± 0.4 (92.6 ± 0.4)",
            },
        },
        "digits, ipc 1": {
            **{name: "–" for name in ("dsa, paper", "dm", "dm, paper", "mtt, paper", "kip, paper", "frepo, paper")},
            "frepo": "50.0",
        },
    }
    caption = sheet.table().caption
    assert "budget quick" in caption and "networks of width 32 (published: 128)" in caption and "A CPU" in caption
    assert EXPERIMENTS["table1"].unknown in caption


def test_table2_is_by_network_and_knows_when_the_paper_has_other_data() -> None:
    own = {"dataset": "cifar10", "ipc": 10, "method": "dm", "protocol": "vico"}
    set_ = made((0.3,), **own)
    for architecture in ("own", "alexnet:none", "resnet18", "convnet:batch@vico"):
        set_ = asked(set_, "cross_architecture", {**CROSS, "architectures": [architecture]}, accuracy=[0.2, 0.4])
    shown = rows(one("table2", set_))
    assert list(shown["dm"].items())[:2] == [("Conv", "30.0 ± 14.1"), ("Conv, paper", "49.2 ± 0.8")]
    assert (shown["dm"]["ResNet-DN"], shown["dm"]["AlexNet"]) == ("30.0 ± 14.1",) * 2
    assert "VGG-BN" not in shown["dm"] and shown["frepo"]["AlexNet, paper"] == "61.9 ± 0.7"
    assert list(shown) == ["dsa", "dm", "mtt", "kip", "frepo"] and shown["kip"]["AlexNet"] == "–"
    jpeg = asked(made((), **{**own, "dataset": "folder:cifar10-jpeg"}), "cross_architecture", CROSS, accuracy=[0.2])
    assert rows(one("table2", jpeg))["dm"]["AlexNet, paper"] == "34.9 ± 1.1"
    failed = evaluated(set_, {}, "cross_architecture", config={**CROSS, "architectures": ["vgg11:batch"]}, status="oom")
    assert rows(one("table2", failed))["dm"]["VGG-BN"] == "oom"
    sheet = one("table2", asked(made((), **{**own, "dataset": "digits"}), "cross_architecture", CROSS, accuracy=[0.2]))
    assert rows(sheet) == {"dm": {"AlexNet": "20.0"}} and "The paper has no numbers for this" in sheet.caption
    assert sheets("table2", [made((0.3,), **own)]) == [], "an accuracy is trained otherwise than the other columns"
    assert set(ARCHITECTURES.values()) < {cell["column"] for cell in reported()["cells"]}


def test_the_caption_names_the_networks_that_were_tested() -> None:
    config = {**CROSS, "width": 16, "steps": 500}
    caption = one("table2", asked(made(()), "cross_architecture", config, accuracy=[0.2])).caption
    assert (
        "networks of width 16 (published: 128), trained for at most 500 steps, on sets distilled with width 32"
        in caption
    )


def test_table3_is_of_large_images() -> None:
    own = {"ipc": 1, "protocol": "frepo"}
    sheet = one("table3", made((0.5,), dataset="imagenette", **own), made((0.9,), dataset="mnist", **own))
    shown = rows(sheet)
    assert (
        shown["frepo"]["imagenette, ipc 1"] == "50.0"
        and shown["random real"]["imagenette, ipc 1, paper"] == "23.5 ± 4.8"
    )
    assert shown["frepo"]["imagenet64, ipc 2, paper"] == "9.7 ± 0.2" and "mnist, ipc 1" not in shown["frepo"]


def test_attacks_take_the_mean_over_chunks_after_the_longest_training() -> None:
    values = {"accuracy": [0.5, 0.9], "threshold_auc": [0.5, 0.52], "threshold_tpr_at_0.01": [0.0, 0.02]}
    sets = [
        asked(
            made((), method=method, ipc=50, dataset=f"mnist@images:{10_000 * chunk}-{10_000 * (chunk + 1)}"),
            "membership_inference",
            {**ATTACK, "chunk": chunk},
            **{name: [value + chunk / 50 for value in series] for name, series in values.items()},
        )
        for method in ("dm", "random_real")
        for chunk in (0, 1)
    ]
    sheet = one("table4", *sets)
    shown = rows(sheet)
    assert list(shown) == ["real data", "random real", "dsa", "dm", "frepo"]
    assert shown["dm"]["test accuracy (%)"] == "91.0 ± 1.4" and shown["dm"]["threshold"] == "0.530 ± 0.014"
    assert shown["dm"]["threshold, paper"] == "0.500 ± 0.000" and shown["dm"]["TPR at 1 % FPR"] == "3.0 ± 1.4"
    assert shown["real data"]["test accuracy (%), paper"] == "99.2 ± 0.1"
    assert sheet.about == "mnist, 10000 members, with the released augmentation"
    accuracy, auc = sheets("figure5cd", sets)
    assert rows(accuracy)["dm"] == {"100 steps": "51.0 ± 1.4", "250 steps": "91.0 ± 1.4"}
    assert rows(auc)["random real"]["250 steps"] == "0.530 ± 0.014" and "threshold AUC" in auc.about


def test_continual_learning_shows_the_last_step_and_the_mean() -> None:
    sets = [
        asked(
            made((), ipc=20, dataset=f"cifar100@step:4-of-5-order-{order}"),
            "continual_learning",
            {**CONTINUAL, "order": order},
            continual_accuracy=[0.9, 0.5 + order / 10],
            average_incremental_accuracy=[0.7],
        )
        for order in (0, 1)
    ]
    shown = rows(one("figure5ab", *sets))
    assert shown["frepo"] == {
        "5 steps, last": "55.0 ± 7.1",
        "5 steps, last, paper": "41.6",
        "5 steps, mean over steps": "70.0 ± 0.0",
        "10 steps, last, paper": "38.0",
    }
    assert shown["dm"]["5 steps, last, paper"] == "33.9"


def test_ablations_are_named_by_what_differs() -> None:
    from benchmarks.protocols import PROTOCOLS
    from harness.plan.jobs import as_json
    from harness.plan.planning import resolve
    from methods import get

    usual = as_json(resolve({"frepo": get("frepo")}, "mnist", 10, "quick", {})["frepo"][0])
    of = {"ipc": 10, "norm": PROTOCOLS["frepo"].distill_norm}
    sheet = one(
        "ablations",
        made((0.5,), config={**usual, "pool_size": 1}, **of),
        made((0.6,), config=usual, **of),
        made((0.7,), config=usual, **{**of, "norm": "none"}),
    )
    assert rows(sheet) == {
        "published": {"accuracy (%)": "60.0"},
        "pool_size=1": {"accuracy (%)": "50.0"},
        "norm=none": {"accuracy (%)": "70.0"},
    }
    assert sheets("ablations", [made((0.6,), config=usual, **of)]) == []


def test_the_matrix_is_by_recipe() -> None:
    set_ = made((), dataset="cifar10", ipc=10, method="dm")
    for recipe, accuracy in (("vico", 0.2), ("frepo", 0.3)):
        config = {**CROSS, "architectures": [f"convnet:none@{recipe}"]}
        set_ = asked(set_, "cross_architecture", config, accuracy=[accuracy])
    assert rows(one("protocol_matrix", set_)) == {"dm, convnet:none": {"vico": "20.0", "frepo": "30.0"}}


# Never mixed


def test_devices_and_budgets_have_tables_of_their_own_and_other_settings_a_mark() -> None:
    many = [made((0.5,)), made((0.6,), device="A GPU"), made((0.7,), budget="smoke"), made((0.8,), config={"lr": 1})]
    first, *others = sheets("table1", [*many, made((0.9,), width=64)])
    assert len(others) == 2
    table = first.table()
    (text,) = [row[table.columns.index("frepo")] for row in table.rows]
    assert text == "50.0 [a]; 80.0 [b]; 90.0 [c]"
    assert table.notes == ("[a]: width=32.", "[b]: lr=1, width=32.", "[c]: width=64.")


def test_two_folders_of_one_name_are_not_one_row() -> None:
    twins = [made((0.2 * n,), dataset="folder:a", data_fingerprint=f"{n}" * 16) for n in (1, 2)]
    assert rows(one("table1", *twins))["folder:a, ipc 1"]["frepo"].startswith("20.0 [a]; 40.0 [b]")


def test_the_answer_about_a_set_that_is_gone_is_no_row() -> None:
    gone = made((0.5,))
    gone.record["artifact"] = {"name": "set.safetensors", "sha256": "another"}
    assert sheets("table1", [gone]) == [] and sheets("table1", [made((0.5,), status="oom")]) != []


def test_reports_write_the_tables_of_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "results", made((0.5, 0.6), krr=(0.7, 0.8)))
    assert report.main([folder, "--experiment", "table1"]) == 0
    assert "93.0 ± 0.4" in capsys.readouterr().out
    assert "| 55.0 ± 7.1 (75.0 ± 7.1) |" in (tmp_path / "results/table1.md").read_text()
    assert r"55.0 $\pm$ 7.1" in (tmp_path / "results/table1.tex").read_text()
    (row,) = pd.read_csv(tmp_path / "results/table1.csv").to_dict("records")
    assert (row["row"], row["column"], row["mean"], row["n"]) == ("mnist, ipc 1", "frepo", pytest.approx(0.55), 2)
    assert row["paper"] == "93.0 ± 0.4 (92.6 ± 0.4)" and row["width"] == 32
    assert report.main([folder, "--experiment", "table2"]) == 2
    assert "nothing of table2 is measured there: python -m harness.run --experiment table2" in capsys.readouterr().err
    assert report.main([folder, "--experiment", "tabel1"]) == 2
    assert "did you mean 'table1'" in capsys.readouterr().err
    with pytest.raises(UserError, match="figure1 has no table; those that have: table1"):
        sheets("figure1", [])
