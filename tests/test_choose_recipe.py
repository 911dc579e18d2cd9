"""The choice of the common recipe: its draws, ranks and rounds, and that it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.datasets import RawData, load_raw
from benchmarks.errors import UserError
from harness import choose_recipe
from harness.choose_recipe import (
    CHECK,
    RECIPES,
    RUNGS,
    Bench,
    Candidate,
    Rung,
    Task,
    Trial,
    candidates,
    main,
    mean_ranks,
    read,
    split,
    trials,
)


@pytest.fixture(scope="module")
def raw() -> RawData:
    return load_raw("digits", Path("nowhere"))


def test_every_recipe_is_tried_on_every_network() -> None:
    assert len(candidates()) == len(set(candidates())) == 18 * len(RECIPES)


def test_a_draw_has_as_many_of_each_class_and_holds_others_out(raw: RawData) -> None:
    own, left = split(raw, 5, 300, 0)
    assert torch.bincount(raw.train_labels[own]).tolist() == [5] * 10
    assert len(set(left.tolist())) == 300 and not set(own.tolist()) & set(left.tolist())
    assert torch.equal(split(raw, 5, 300, 0)[0], own) and not torch.equal(split(raw, 5, 300, 1)[0], own)
    with pytest.raises(UserError, match="too few training images"):
        split(raw, 1000, 300, 0)


def test_the_mean_rank_decides_and_then_the_mean_accuracy() -> None:
    ways = [Candidate("vico", "convnet", norm, "standardise") for norm in ("none", "instance", "batch")]
    tasks = [Task("a", 1), Task("b", 1)]
    accuracies = {tasks[0]: (0.9, 0.5, 0.5), tasks[1]: (0.2, 0.3, 0.4)}
    made = [Trial(task, way, draw, None) for task in tasks for way in ways for draw in (0, 1)]
    spread = {0: 0.01, 1: -0.01}
    scores = {t.key(): accuracies[t.task][ways.index(t.candidate)] + spread[t.draw] for t in made}
    none, instance, batch = ways
    # Ranks 1, 2.5, 2.5 and 3, 2, 1.
    assert list(mean_ranks(made, scores).items()) == [(batch, 1.75), (none, 2.0), (instance, 2.25)]
    scores = {key: value + (key[3] == "instance" and key[0].startswith("b")) for key, value in scores.items()}
    assert list(mean_ranks(made, scores).items()) == [(instance, 1.75), (none, 2.0), (batch, 2.25)]
    equal = {t.key(): 0.5 if t.task == tasks[0] else accuracies[tasks[1]][ways.index(t.candidate)] for t in made}
    assert list(mean_ranks(made, equal)) == [batch, instance, none]


def test_a_rung_takes_the_tasks_that_are_small_enough() -> None:
    tasks, ways = [Task("few", 10), Task("few", 50), Task("many", 10)], candidates()[:2]
    made = list(trials(Rung(images=100, draws=2, steps=3, kept=1), tasks, {"few": 10, "many": 100}, ways))
    assert {trial.task for trial in made} == {tasks[0]} and len(made) == 4
    assert [trial.draw for trial in made] == [0, 0, 1, 1], "a run that is stopped has whole draws"


def test_the_choice_begins_with_few_classes(
    raw: RawData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = dataclasses.replace(raw, class_names=tuple(map(str, range(11))))
    monkeypatch.setattr(choose_recipe, "load_raw", lambda *arguments, **options: many)
    assert main(["--datasets", "digits", "--output", str(tmp_path / "out")]) == 2
    assert "--datasets needs one with at most 10 classes" in capsys.readouterr().err


def test_each_round_is_smaller_and_the_last_has_five_draws() -> None:
    kept = [len(candidates()), *(rung.kept for rung in RUNGS)]
    assert kept == sorted(kept, reverse=True) and CHECK.steps is None
    assert RUNGS[-1].draws == 5 and RUNGS[-1].steps == RUNGS[-2].steps, "the first draws are not trained again"


def test_scores_are_of_held_out_images_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command on a small data set without test images, stopped once."""
    ways = [Candidate("vico", "convnet", "instance", "standardise"), Candidate("frepo", "convnet", "none", "zca_frepo")]
    first, last = Rung(100, 1, 2, 2), Rung(1000, 2, 2, 1)
    monkeypatch.setattr(choose_recipe, "candidates", lambda: ways)
    monkeypatch.setattr(choose_recipe, "RUNGS", (first, last))
    monkeypatch.setattr(choose_recipe, "CHECK", Rung(100, 1, 3, 1))
    without_test = dataclasses.replace(
        load_raw("digits", tmp_path), test_images=torch.empty(0), test_labels=torch.empty(0)
    )
    monkeypatch.setattr(choose_recipe, "load_raw", lambda *arguments, **options: without_test)
    score, done = Bench.score, list[Trial]()

    def stopping(bench: Bench, trial: Trial) -> float:
        if len(done) == 5:
            raise OSError("the power is gone")
        done.append(trial)
        return score(bench, trial)

    monkeypatch.setattr(Bench, "score", stopping)
    command = ["--datasets", "digits", "--output", str(tmp_path / "out"), "--width", "4", "--held-out", "50"]
    assert main(command) == 2
    with (tmp_path / "out" / "scores.csv").open("a", encoding="utf-8") as file:
        file.write("digits, ipc 10,vi")  # the disk was full
    done.insert(0, done[0])  # no longer five
    assert main(command) == 0
    trained = done[1:]
    # Two candidates on one task; then on two, with two draws, of which one task has the first draw; then the winner and
    # the best of the other recipe.
    assert len(trained) == len(set(trained)) == 2 + 6 + 2
    assert {trial.candidate for trial in trained if trial.steps == 3} == set(ways)
    chosen = capsys.readouterr().out
    (winner,) = [way for way in ways if chosen.startswith(f"chosen: {way}\n")]
    last_round = [trial for trial in trained if trial.steps == 2]
    assert winner == next(iter(mean_ranks(last_round, read(tmp_path / "out" / "scores.csv", 4, 50, {}))))
    lines = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + len(trained)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("held-out training images of networks") == 3 and "digits, ipc 50" in table
    done.clear()
    assert main(command) == 0 and done == [], "everything is there"
    assert (tmp_path / "out" / "table.md").read_text() == table
    assert main([*command[:-3], "8", *command[-2:]]) == 2 and "width 4" in capsys.readouterr().err
    other = dataclasses.replace(without_test, fingerprint="that of others")
    monkeypatch.setattr(choose_recipe, "load_raw", lambda *arguments, **options: other)
    assert main(command) == 2 and "has scores of other images of digits, ipc 10" in capsys.readouterr().err
    twice = ["--datasets", "folder:a/set,folder:b/set", *command[2:]]
    assert main(twice) == 2 and "two of --datasets have the same name" in capsys.readouterr().err
