"""Choice of the protocol ``common`` by evidence: how do networks learn most from real images?

    python -m harness.choose_recipe --datasets mnist,folder:my_images --output results/common_recipe

A candidate is a recipe, a network, a norm and a preprocessing. Networks are trained on random real images, as many of
every class, and tested on other *training* images; test images are never looked at. Successive halving: each `Rung`
tries its candidates on more tasks, draws and steps, and the best few go on to the next. A task is a data set with a
number of images per class. On each the candidates are ranked by their mean accuracy over draws, and the mean rank over
tasks decides. All candidates of a task and draw meet the same images, initial weights and order.

Every accuracy is written to ``scores.csv`` as soon as it is measured, with the circumstances, and a second run goes on
from there. ``table.md`` shows all rungs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import io
import itertools
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from scipy.stats import rankdata
from torch import Tensor

from benchmarks.datasets import RawData, load_raw
from benchmarks.errors import UserError
from benchmarks.files import regular
from benchmarks.folders import default_cache, default_root
from benchmarks.networks import NetworkSpec
from benchmarks.preprocess import CONSTANTS, Preprocess, fit
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import generator_for
from benchmarks.training import accuracy, predict, train
from harness.command_line import Parser, command, end, file_path, whole
from harness.plan.planning import check_writable
from harness.records.files import only_runner, write_texts
from harness.records.provenance import provenance
from harness.reports.render import Table, markdown, percent

PROGRAM = "python -m harness.choose_recipe"
NETWORKS = ("convnet", "convnet_doubling")
NORMS = ("none", "instance", "batch")
RECIPES = ("vico", "frepo")
"""Those of MTT and KIP are the same where no step size is learned; that of soft labels is three times as long."""
PREPROCESSINGS = ("standardise", "zca_frepo", "zca_kornia")
"""The simplest first, which serves images of any size. The other two that there are differ from it in the published
constants of some data sets alone."""
IPCS = (10, 50)


@dataclass(frozen=True, order=True)
class Candidate:
    """A way to train and test."""

    recipe: str
    """The protocol whose recipe it is."""
    network: str
    norm: str
    preprocess: str

    def __str__(self) -> str:
        return f"recipe {self.recipe}, network {self.network}, norm {self.norm}, preprocessing {self.preprocess}"


@dataclass(frozen=True)
class Task:
    """A data set with a number of images per class."""

    dataset: str
    """As ``benchmarks.datasets`` takes it: a name or ``folder:PATH``."""
    ipc: int

    def __str__(self) -> str:
        name = self.dataset.removeprefix("folder:")
        return f"{Path(name).name}, ipc {self.ipc}"


@dataclass(frozen=True)
class Rung:
    """A round of successive halving."""

    images: int
    """Tasks with at most so many training images take part."""
    draws: int
    """Random sets of training images for each task."""
    steps: int | None
    """At most so many optimiser steps; the schedule shrinks with them. None: the recipe's."""
    kept: int
    """How many candidates go on."""


RUNGS = (
    Rung(images=100, draws=1, steps=100, kept=5),
    Rung(images=10_000, draws=1, steps=100, kept=3),
    Rung(images=10_000, draws=5, steps=100, kept=2),
)
"""The first candidate after the last of them is the choice."""
CHECK = Rung(images=100, draws=2, steps=None, kept=1)
"""Whole recipes on the small tasks: the finalists, and the best candidate of every other recipe in the first rung.

A recipe with few large steps gains by shortened schedules. This shows whether they mislead; it does not choose.
"""


@dataclass(frozen=True)
class Trial:
    """One network to be trained."""

    task: Task
    candidate: Candidate
    draw: int
    steps: int | None

    def key(self) -> tuple[str, ...]:
        """The cells by which ``scores.csv`` knows it."""
        steps = "" if self.steps is None else str(self.steps)
        return (str(self.task), *dataclasses.astuple(self.candidate), str(self.draw), steps)


KEY = ("task", "recipe", "network", "norm", "preprocess", "draw", "steps")
COLUMNS = (*KEY, "accuracy", "seconds", "width", "held_out", "data_fingerprint", "device", "threads", "torch", "commit")
Scores = dict[tuple[str, ...], float]
"""`Trial.key` → accuracy on held-out training images."""


def candidates() -> list[Candidate]:
    """All candidates of the first rung."""
    return [Candidate(*parts) for parts in itertools.product(RECIPES, NETWORKS, NORMS, PREPROCESSINGS)]


def trials(rung: Rung, tasks: Iterable[Task], classes: Mapping[str, int], ways: Sequence[Candidate]) -> Iterator[Trial]:
    """The networks that ``rung`` trains, draw by draw. ``classes``: data set → their number."""
    own = [task for task in tasks if classes[task.dataset] * task.ipc <= rung.images]
    for draw, task, candidate in itertools.product(range(rung.draws), own, ways):
        yield Trial(task, candidate, draw, rung.steps)


def split(raw: RawData, ipc: int, count: int, draw: int) -> tuple[Tensor, Tensor]:
    """Rows of the training images to train on, ``ipc`` of each class, and ``count`` others to test on.

    Raises UserError where a class has fewer than ``ipc`` images, or no image is left.
    """
    order = torch.randperm(len(raw.train_labels), generator=generator_for("recipe", raw.fingerprint, ipc, draw))
    labels = raw.train_labels[order]
    own = torch.cat([torch.nonzero(labels == c).flatten()[:ipc] for c in range(len(raw.class_names))])
    others = torch.ones(len(order), dtype=torch.bool)
    others[own] = False
    left = order[others][:count]
    if len(own) < ipc * len(raw.class_names) or not len(left):
        raise UserError(f"{raw.name} has too few training images for ipc {ipc}")
    return order[own], left


class Bench:
    """Trains networks; holds the data sets and their fitted preprocessings, which are slow to make."""

    def __init__(self, root: Path, cache: Path, *, width: int, held_out: int) -> None:
        self.root, self.cache, self.width, self.held_out = root, cache, width, held_out

    @functools.cache  # noqa: B019  (a bench lives as long as the process)
    def raw(self, dataset: str) -> RawData:
        return load_raw(dataset, self.root, cache=self.cache)

    @functools.cache  # noqa: B019
    def preprocess(self, dataset: str, name: str) -> Preprocess:
        """The preprocessing ``name``, fitted to all training images."""
        raw = self.raw(dataset)
        constants = CONSTANTS.get(name, {}).get(raw.name)
        return fit(name, raw.train_images, constants=constants).to(dtype=torch.float32)

    def score(self, trial: Trial) -> float:
        """Accuracy on held-out training images of a network that is trained as ``trial`` says; 0 if it diverges."""
        raw, way = self.raw(trial.task.dataset), trial.candidate
        own, left = split(raw, trial.task.ipc, self.held_out, trial.draw)
        forward = self.preprocess(trial.task.dataset, way.preprocess).forward
        spec = NetworkSpec(
            name=way.network,
            in_channels=raw.train_images.shape[1],
            image_size=(raw.train_images.shape[2], raw.train_images.shape[3]),
            num_classes=len(raw.class_names),
            width=self.width,
            norm=cast(Any, way.norm),
        )
        network = spec.build(generator_for("evaluated network", trial.draw, 0))
        recipe = dataclasses.replace(PROTOCOLS[way.recipe].recipe, learned_lr=False)
        train(
            network,
            forward(raw.train_images[own]),
            raw.train_labels[own],
            "probability",
            recipe,
            flip=recipe.flip(raw.flip, raw.name),
            generator=generator_for("evaluation", trial.draw, 0),
            max_steps=trial.steps,
        )
        logits = predict(network, forward(raw.train_images[left]))
        return accuracy(logits, raw.train_labels[left]) if bool(logits.isfinite().all()) else 0.0


def mean_ranks(made: Iterable[Trial], scores: Scores) -> dict[Candidate, float]:
    """Candidate → its mean rank over tasks, best first; of equals the simpler preprocessing, then the higher mean.

    Rank 1 is the highest mean accuracy over draws; equal ones share the mean of their ranks.
    """
    by_task: dict[Task, dict[Candidate, list[float]]] = {}
    for trial in made:
        by_task.setdefault(trial.task, {}).setdefault(trial.candidate, []).append(scores[trial.key()])
    ranks: dict[Candidate, list[float]] = {}
    means: dict[Candidate, list[float]] = {}
    for own in by_task.values():
        averages = [statistics.fmean(values) for values in own.values()]
        for candidate, mean, rank in zip(own, averages, rankdata([-mean for mean in averages]), strict=True):
            ranks.setdefault(candidate, []).append(float(rank))
            means.setdefault(candidate, []).append(mean)

    def order(way: Candidate) -> tuple[Any, ...]:
        return statistics.fmean(ranks[way]), PREPROCESSINGS.index(way.preprocess), -statistics.fmean(means[way]), way

    return {candidate: statistics.fmean(ranks[candidate]) for candidate in sorted(ranks, key=order)}


def rung_table(rung: Rung, made: Sequence[Trial], scores: Scores, about: str) -> Table:
    """Held-out accuracies of a rung whose trials ``made`` have been carried out, best candidate first."""
    tasks = list(dict.fromkeys(trial.task for trial in made))
    rows = []
    for candidate, rank in mean_ranks(made, scores).items():
        cells = []
        for task in tasks:
            values = [scores[t.key()] for t in made if (t.task, t.candidate) == (task, candidate)]
            cells.append(percent(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None))
        rows.append((*dataclasses.astuple(candidate), f"{rank:.2f}", *cells))
    steps = "whole recipes" if rung.steps is None else f"at most {rung.steps} steps"
    return Table(
        caption=f"Accuracy (%) on held-out training images of networks trained on random real images: {steps}, "
        f"draws {rung.draws}, mean ± sample standard deviation over them. {about}",
        columns=("recipe", "network", "norm", "preprocessing", "mean rank", *map(str, tasks)),
        rows=tuple(rows),
        bold=frozenset(),
        notes=(),
    )


def read(path: Path, width: int, held_out: int, fingerprints: Mapping[str, str]) -> Scores:
    """The scores in ``path``. ``fingerprints``: task → that of its data, as the file has it.

    Raises UserError where they were measured with another width, held-out sample or other images of a task, and for a
    file that is damaged.
    """
    if not path.exists():
        return {}
    scores = {}
    try:
        with open(path, encoding="utf-8", newline="", opener=regular) as file:
            text = file.read()
        ended = text[: text.rfind("\n") + 1]
        if ended != text:  # a full disk leaves a part of a line
            os.truncate(path, len(ended.encode()))
        rows = list(csv.DictReader(io.StringIO(ended)))
        for row in rows:
            if (row["width"], row["held_out"]) != (str(width), str(held_out)):
                raise UserError(f"{path} has width {row['width']}, held out {row['held_out']}: name another --output")
            if fingerprints.get(row["task"], row["data_fingerprint"]) != row["data_fingerprint"]:
                raise UserError(f"{path} has scores of other images of {row['task']}: name another --output")
            value = scores[tuple(row[name] for name in KEY)] = float(row["accuracy"])
            if not 0 <= value <= 1:
                raise ValueError(f"an accuracy is {value}")
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): name another --output") from error
    return scores


def choose(bench: Bench, tasks: Sequence[Task], output: Path, command: str) -> tuple[Candidate, Candidate]:
    """Carry out all rungs; the scores and tables are in ``output``. Returns the choice, and the best of the check."""
    path = output / "scores.csv"
    fingerprints = {str(task): bench.raw(task.dataset).fingerprint[:16] for task in tasks}
    scores = read(path, bench.width, bench.held_out, fingerprints)
    classes = {task.dataset: len(bench.raw(task.dataset).class_names) for task in tasks}
    first = RUNGS[0].images
    if not any(classes[task.dataset] * task.ipc <= first for task in tasks):
        raise UserError(f"--datasets needs one with at most {first // min(IPCS)} classes, with which the choice begins")
    known = provenance(command, "cpu", "")
    about = f"Width {bench.width}, {bench.held_out} held-out images, {known['device']}, torch {known['torch']}."
    ways, tables, rankings = candidates(), [], list[list[Candidate]]()
    for number, rung in enumerate((*RUNGS, CHECK), start=1):
        if rung is CHECK:
            best: dict[str, Candidate] = {}
            for candidate in (*ways, *rankings[0]):
                best.setdefault(candidate.recipe, candidate)
            ways = list(dict.fromkeys([*ways, *best.values()]))
        made = list(trials(rung, tasks, classes, ways))
        missing = [trial for trial in made if trial.key() not in scores]
        for place, trial in enumerate(missing, start=1):
            started = time.process_time()
            value = bench.score(trial)
            row = dict(zip(KEY, trial.key(), strict=True)) | {
                "accuracy": value,
                "seconds": round(time.process_time() - started, 2),
                "width": bench.width,
                "held_out": bench.held_out,
                "data_fingerprint": fingerprints[str(trial.task)],
                **{name: known[name] for name in ("device", "threads", "torch", "commit")},
            }
            _append(path, row)
            scores[trial.key()] = value
            print(f"rung {number}, {place} of {len(missing)}: {', '.join(trial.key())}: {value:.3f}", file=sys.stderr)
        tables.append(rung_table(rung, made, scores, about))
        write_texts({"table.md": "\n\n".join(map(markdown, tables)) + "\n"}, output, "the table")
        rankings.append(list(mean_ranks(made, scores)))
        ways = rankings[-1][: rung.kept]
    return rankings[-2][0], rankings[-1][0]


def _append(path: Path, row: Mapping[str, object]) -> None:
    new = not path.exists() or not path.stat().st_size
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Train and test networks by each recipe, and print which is best."""
    parser = Parser(
        prog=program,
        description="Choose the recipe, network and preprocessing of the protocol `common`, by networks that are "
        "trained on random real images and tested on other training images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--datasets", required=True, metavar="NAMES", help="names or folder:PATH, with commas")
    parser.add_argument("--output", type=file_path, required=True, metavar="FOLDER", help="where scores and table go")
    parser.add_argument("--data-root", type=file_path, metavar="FOLDER", help="where published data sets lie")
    parser.add_argument("--width", type=whole, default=32, metavar="NUMBER", help="width of the networks")
    parser.add_argument("--held-out", type=whole, default=1000, metavar="NUMBER", help="held-out training images")
    options = parser.parse(arguments)
    for name in ("width", "held_out"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(options, name)}")
    check_writable(options.output, "--output")
    root = options.data_root or default_root()
    bench = Bench(root, default_cache(), width=options.width, held_out=options.held_out)
    tasks = [Task(name, ipc) for name in options.datasets.split(",") for ipc in IPCS]
    if len(set(map(str, tasks))) < len(tasks):
        raise UserError("two of --datasets have the same name, by which scores are stored: rename a folder")
    command = shlex.join([*program.split(), *arguments])
    with only_runner(options.output, command):
        chosen, checked = choose(bench, tasks, options.output, command)
    print(f"chosen: {chosen}")
    if checked != chosen:
        print(f"with whole recipes, on the small tasks alone: {checked}")
    return 0


if __name__ == "__main__":
    end(main())
