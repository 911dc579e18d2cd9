"""Records, whatever is in them: read whole, or one line; and no report, comparison or run breaks on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from benchmarks.errors import UserError
from harness import evaluate, figures, regress, report
from harness.plan.jobs import Job
from harness.records import record
from harness.records.events import continued
from harness.records.record import EVALUATIONS, RECORD
from tests.builders import MIB, cost, curve, evaluated, made, saved
from tests.properties.support import JSON, as_text, damaged, ended, examples, mutated, watched

FORMATS = ["--format", "markdown,latex,csv,html"]


def nothing(jobs: Iterable[Job]) -> Generator[Job, None, None]:
    """A launcher that takes all jobs and then stops the run."""
    if list(jobs):
        raise UserError("nothing is run here")
    yield from ()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of records: accuracies of two methods by two protocols, a curve, costs, another evaluation."""
    root = tmp_path_factory.mktemp("good")
    lira = {"balanced_accuracy": [0.6], "auc": [0.6], "tpr_at_low_fpr": [0.01]}
    distilled = [
        made((0.5, 0.6)),
        made((0.4, 0.5), method="mtt", seed=1),
        evaluated(made((0.3, 0.4), method="random_real"), lira, "lira", config={"protocol": "frepo"}),
        curve("dm", [(1.0, 0.3), (2.0, [0.4, 0.5])]),
        cost("frepo", width=16, meter="nvml", peak=200 * MIB),
        cost("frepo", 0.2, width=32),
        made((), status="oom", method="kip", message="too large"),
    ]
    saved(root, *distilled)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the records of one input after another lie."""
    return tmp_path_factory.mktemp("records")


def contents(good: Path) -> list[tuple[str, bytes]]:
    """Path of every record below ``good`` → its bytes."""
    return [(str(path.relative_to(good)), path.read_bytes()) for path in sorted(good.rglob("*.json"))]


@st.composite
def texts(draw: st.DrawFn, content: bytes) -> bytes:
    """The text of a record with other JSON in it, or with other bytes."""
    kind = draw(st.sampled_from(["mutated"] * 6 + ["damaged", "any", "twice", "mark", "utf-16", "deep", "long"]))
    if kind == "mutated":
        return as_text(draw(mutated(json.loads(content))))
    if kind == "damaged":
        return draw(damaged(content))
    if kind == "any":
        return as_text(draw(JSON))
    if kind == "twice":  # the last of equal keys counts
        key, value = draw(st.sampled_from(sorted(json.loads(content)))), draw(JSON)
        return content.rstrip()[:-1] + b", " + as_text(key) + b": " + as_text(value) + b"}"
    if kind == "mark":
        return b"\xef\xbb\xbf" + content
    if kind == "utf-16":
        return content.decode().encode("utf-16")
    if kind == "deep":
        depth = draw(st.sampled_from([100, 1000, 100_000]))
        return draw(st.sampled_from([b"[", b'{"schema":'])) * depth
    return content.replace(b": 1", b": 1" + b"0" * 5000, 1)


@examples(200)
@given(data=st.data())
def test_a_record_is_read_or_a_line(good: Path, root: Path, data: st.DataObject) -> None:
    name, content = data.draw(st.sampled_from(range(len(contents(good)))).map(contents(good).__getitem__))
    path = root / RECORD
    path.write_bytes(data.draw(texts(content)))
    load: Any = record.load_evaluation if EVALUATIONS in name else record.load
    with watched(root):
        try:
            loaded = load(path)
        except UserError as error:
            assert str(error).startswith((f"damaged record {path}: ", str(path))) and str(error).count("\n") == 0
        else:
            record.write(loaded, path)
            again = load(path)
            assert repr(again) == repr(loaded)  # which has NaN, unlike itself


@st.composite
def folders(draw: st.DrawFn, good: Path, place: Path) -> Path:
    """The records of ``good`` in ``place``, a few of them with another text."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place)
    known = contents(good)
    for index in draw(st.lists(st.integers(0, len(known) - 1), min_size=1, max_size=3, unique=True)):
        name, content = known[index]
        (place / name).write_bytes(draw(texts(content)))
    return place


@examples(10)
@given(data=st.data())
def test_a_report_of_any_records(good: Path, root: Path, data: st.DataObject) -> None:
    place = data.draw(folders(good, root / "report"))
    words = data.draw(st.lists(st.sampled_from(["--intervals", "--comparisons", "--claims"]), unique=True))
    experiment = data.draw(st.sampled_from([None, None, "table1", "table2", "table3", "table4", "figure5ab"]))
    words += [] if experiment is None else ["--experiment", experiment]
    with watched(place):
        shown = ended(report.main, [str(place), *FORMATS, *words], (0, 1, 2))
    damage = any("damaged record" in line or "newer version" in line for line in shown.err.splitlines())
    assert shown.status == 2 or (shown.status == 1) == damage


@examples(2)
@given(data=st.data())
def test_figures_of_any_records(good: Path, root: Path, data: st.DataObject) -> None:
    place = data.draw(folders(good, root / "figures"))
    with watched(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **how: path.touch())  # which takes seconds
        ended(figures.main, [str(place)], (0, 1, 2))


@examples(30)
@given(data=st.data())
def test_comparisons_with_any_records(good: Path, root: Path, data: st.DataObject) -> None:
    place = data.draw(folders(good, root / "regress"))
    sides = [str(good), str(place)]
    arguments = [*(sides if data.draw(st.booleans()) else sides[::-1])]
    arguments += ["--counters-only"] if data.draw(st.booleans()) else []
    with watched(place):
        ended(regress.main, [*arguments, "--output", str(place / "page.md")], (0, 1, 2, 3))


@examples(15)
@given(data=st.data())
def test_questions_about_any_records(good: Path, root: Path, data: st.DataObject) -> None:
    place = data.draw(folders(good, root / "evaluate"))
    words = data.draw(st.sampled_from([[], ["--protocol", "common"], ["--force"], ["--evaluations", "lira"]]))
    with watched(place.parent):
        ended(evaluate.main, [str(place), "--device", "cpu", *words], (0, 1, 2), launcher=nothing)


@examples(150)
@given(data=st.data())
def test_events_of_any_content(root: Path, data: st.DataObject) -> None:
    """Whole lines up to the step are kept as they are, and the file ends where the next one is written."""
    path = root / "events.jsonl"
    whole = [as_text({"step": step, "losses": {"loss": 0.5}}) for step in range(1, 6)]
    other = data.draw(st.one_of(st.binary(max_size=40), JSON.map(as_text), st.just(b"[" * 100_000)))
    assume(b"\n" not in other and other not in whole)
    place = data.draw(st.integers(0, 5))
    path.write_bytes(b"".join(line + b"\n" for line in (*whole[:place], other, *whole[place:])))
    with watched(path.parent), continued(path, 3) as events:
        events.write("the next\n")
    kept = path.read_bytes().split(b"\n")
    assert [line for line in kept if line in whole] == whole[:3] and kept[-2:] == [b"the next", b""]
    assert len(kept) in (5, 6)
