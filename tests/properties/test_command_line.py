"""Command lines of any words: a request that can be planned, or one line; nothing is written but where it was asked."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import methods
from harness import __main__, check_method, choose_recipe, evaluate, evaluations, figures, regress, report, run, tune
from harness.plan.experiments import EXPERIMENTS
from tests.builders import made, saved
from tests.properties.support import NUMBERS, WORDS, ended, examples, inside, watched
from tests.properties.test_records import nothing
from tests.test_importers import CLASSES, IMAGES, mtt

VIEWS = st.one_of(
    st.builds("@images:{}-{}".format, st.sampled_from([0, 1, 999, 10**8, 10**9, "00", -1]), st.integers(0, 2000)),
    st.builds("@fold:{}-of-{}".format, *(st.sampled_from([0, 1, 5, 999_999_999]) for _ in range(2))),
    st.builds("@half:{}".format, st.sampled_from([0, 7, 10**8, 10**30, "x", ""])),
    st.builds(
        "@step:{}-of-{}-order-{}{}".format,
        *(st.sampled_from([0, 1, 4, 5, 3, 10, 999_999_999]) for _ in range(3)),
        st.sampled_from(["", "-leak", "-LEAK"]),
    ),
    st.sampled_from(["@", "@@", "@images:1-2@", "@images", "@step:0-of-0-order-0", "@half:1@half:1@half:1@half:1"]),
)
BASES = (
    "digits",
    "digits",
    "mnist",
    "cifar10",
    "imagewoof",
    "folder:own",
    "folder:records",
    "folder:.",
    "folder:none",
    "folder:~nobody_",
)
DATASETS = st.builds("".join, st.tuples(st.one_of(st.sampled_from(BASES), WORDS), st.just("") | VIEWS))
PATHS = st.one_of(
    st.sampled_from(["out", "out/é", "out/\udcff", "out/a\nb", "out/-x", "out/" + "n" * 300, "out/" + "n/" * 60]),
    st.sampled_from(
        ["own", "records", "images_best.pt", ".", "./", "/dev/null", "/dev/null/x", "/proc/self/x", "~/x", "~nobody_"]
    ),
    WORDS.map("out/".__add__),
)
GARBAGE = st.one_of(
    WORDS,
    NUMBERS.map(str),
    st.sampled_from(
        ["", " ", ",", ",,", "-", "--", "-1", "1e400", "1_0", "٣", "²", "0x10", "+1", "9" * 5000, "a" * 3000]
    ),
    st.sampled_from(["None", "True", "native", "common", "5GiB", "9" * 400 + "GiB", ".5h", "1d", "--help", "-h", "="]),
)
WHOLE = st.one_of(st.sampled_from(["0", "1", "2", "8"]), NUMBERS.map(str))


def lists(of: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Some of them with commas between, perhaps twice."""
    return st.lists(of, min_size=1, max_size=3).map(",".join)


USUAL: dict[str, st.SearchStrategy[str]] = {
    **dict.fromkeys(("--methods", "--method"), lists(st.sampled_from([*methods.names(), "FREPO", ""]))),
    **dict.fromkeys(("--datasets", "--dataset"), lists(DATASETS)),
    **dict.fromkeys(("--ipcs", "--ipc", "--widths", "--width", "--seeds", "--seed"), lists(WHOLE)),
    **dict.fromkeys(("--output", "--cache", "--data-root", "--page", "--class-order"), PATHS),
    "--experiment": st.sampled_from([*EXPERIMENTS, "table9"]),
    "--evaluations": lists(st.sampled_from([*evaluations.names(), "acuracy"])),
    "--protocol": st.sampled_from(["native", "common", "frepo", "mtt", "kip"]),
    "--budget": st.sampled_from(["smoke", "quick", "long", "paper", "cost"]),
    "--device": st.sampled_from(["cpu", "cuda", "cuda:0", "cuda:99999999999999999999", "gpu"]),
    "--preprocess": st.sampled_from(["standardise", "zca_frepo", "zca_kornia", "none"]),
    "--label-space": st.sampled_from(["probability", "centred", "logits"]),
    "--format": lists(st.sampled_from(["markdown", "latex", "csv", "html", "pdf"])),
    "--image-size": st.sampled_from(["1", "8", "17", "0", "-3", "999999999999", "x"]),  # others take all memory
}
LEFT_OUT = {"--download", "--list", "--help"}
"""Flags that go to the network, or that print without reading the rest."""


@functools.cache
def flags_of(main: Callable[..., int]) -> list[str]:
    """The flags in the help of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["--help"]) == 0
    return sorted({*re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.getvalue()), "--fooo"} - LEFT_OUT)


def options() -> list[str]:
    """Every hyper-parameter and option of an evaluation, as a flag."""
    kinds = {name: methods.get(name).Config for name in methods.names()}
    kinds |= {name: evaluations.get(name).Config for name in evaluations.names()}
    return [f"--{name}.{field.name}" for name, kind in kinds.items() for field in dataclasses.fields(kind)]


OPTIONS = options()


@st.composite
def words(draw: st.DrawFn, flags: list[str], beginning: st.SearchStrategy[list[str]]) -> list[str]:
    """A command line: a beginning that is right, then flags with values that are right, odd, missing or too many."""
    made = list(draw(beginning))
    for _ in range(draw(st.integers(0, 5))):
        flag = draw(st.sampled_from(OPTIONS if draw(st.integers(0, 3)) == 0 else flags))
        values = (
            draw(st.lists(GARBAGE, max_size=2)) if draw(st.integers(0, 3)) == 0 else [draw(USUAL.get(flag, GARBAGE))]
        )
        if flag not in USUAL and draw(st.booleans()):
            values = []
        joined = values and draw(st.booleans())
        part = [f"{flag}={values[0]}", *values[1:]] if joined else [flag, *values]
        where = draw(st.sampled_from([len(made), len(made), len(made), 0]))
        made[where:where] = part
    if draw(st.integers(0, 9)) == 0:
        made.insert(draw(st.integers(0, len(made))), draw(GARBAGE))
    return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with an image folder, records, and the files of a set."""
    root = tmp_path_factory.mktemp("place")
    for split in ("train", "test"):
        for value, name in enumerate(("a", "é\udcff")):
            (root / "own" / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = np.full((8, 8), 60 * value + index, np.uint8)
                Image.fromarray(pixels).save(root / "own" / split / name / f"{index}.png")
    saved(root / "records", made(), made(method="mtt", seed=1))
    mtt(root, images=IMAGES, labels=CLASSES)
    return root


def tried(place: Path, main: Callable[..., int], arguments: list[str], **more: Any) -> None:
    """Fails unless ``main`` ends as a command does, with what was there left as it was."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and "out" not in path.parts}
    with inside(place), watched(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(place / "out"))
        patch.setenv("FREPO_BENCH_CACHE", str(place / "out" / "cache"))
        patch.setenv("FREPO_BENCH_DATA", str(place / "out" / "data"))
        ended(main, arguments, (0, 1, 2, 3), **more)
    names = [path.name for path, content in before.items() if path.read_bytes() != content]
    assert not [name for name in names if not name.startswith(("table.", "report.", "comparisons.", "claims."))]


RUN = st.just(["--methods", "random_real", "--dataset", "digits", "--no-random", "--device", "cpu"])


@examples(40)
@given(data=st.data())
def test_run(place: Path, data: st.DataObject) -> None:
    beginning = st.one_of(
        RUN, RUN.map(lambda words: words[:4]), st.just([]), RUN.map(lambda words: [*words, "--forecast"])
    )
    tried(place, run.main, data.draw(words(flags_of(run.main), beginning)), launcher=nothing)


EVALUATE = [["records"], ["records", "--protocol", "common"], ["."], []]
FILES = ["images_best.pt", "labels_best.pt", "--dataset", "digits", "--preprocess", "standardise", "--name", "x"]


@examples(40)
@given(data=st.data())
def test_evaluate(place: Path, data: st.DataObject) -> None:
    beginning = st.sampled_from([*EVALUATE, FILES, [*FILES, "--output", "out"], FILES[:2], ["own"]])
    tried(place, evaluate.main, data.draw(words(flags_of(evaluate.main), beginning)), launcher=nothing)


@examples(40)
@given(data=st.data())
def test_report(place: Path, data: st.DataObject) -> None:
    beginning = st.sampled_from([["records", "--output", "out"], ["records"], ["own"], ["records", "own"], []])
    tried(place, report.main, data.draw(words(flags_of(report.main), beginning)))


@examples(60)
@given(data=st.data())
def test_regress(place: Path, data: st.DataObject) -> None:
    beginning = st.sampled_from(
        [["records", "records"], ["records", "own"], ["records"], ["images_best.pt", "records"]]
    )
    tried(place, regress.main, data.draw(words(flags_of(regress.main), beginning)))


@examples(30)
@given(data=st.data())
def test_figures(place: Path, data: st.DataObject) -> None:
    beginning = st.sampled_from([["records", "--output", "out"], ["own"], ["nothing"], []])
    tried(place, figures.main, data.draw(words(flags_of(figures.main), beginning)))


@examples(60)
@given(data=st.data())
def test_choose_recipe(place: Path, data: st.DataObject) -> None:
    class Enough(Exception):
        """The networks would be trained from here on."""

    def enough(*_: object) -> None:
        raise Enough

    beginning = st.sampled_from([["--datasets", "digits", "--output", "out"], ["--datasets", "folder:own"], []])
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Enough):
        patch.setattr(choose_recipe.Bench, "score", enough)
        tried(place, choose_recipe.main, data.draw(words(flags_of(choose_recipe.main), beginning)))


@examples(40)
@given(data=st.data())
def test_tune(place: Path, data: st.DataObject) -> None:
    right = ["--methods", "dm", "--dataset", "digits", "--device", "cpu", "--output", "out"]
    beginning = st.sampled_from([right, right[2:], [*right, "--check", "folder:own"]])
    tried(place, tune.main, data.draw(words(flags_of(tune.main), beginning)), launcher=nothing)


@examples(40)
@given(data=st.data())
def test_check_method(place: Path, data: st.DataObject) -> None:
    names = st.one_of(st.just([]), GARBAGE.filter(lambda word: word not in methods.names()).map(lambda word: [word]))
    tried(place, check_method.main, data.draw(words(flags_of(check_method.main), names)))


@examples(60)
@given(name=GARBAGE.filter(lambda word: word not in __main__.COMMANDS), more=st.lists(GARBAGE, max_size=3))
def test_commands_that_there_are_not(place: Path, name: str, more: list[str]) -> None:
    tried(place, __main__.main, [name, *more])
