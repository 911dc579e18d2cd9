"""A report on a data set before anything is run on it: ``python -m harness.data DATASET``.

It tells of classes, sizes, duplicates, what is left out, the order of the classes, the preprocessings that fit, and the
work and memory of distilling it as they are forecast. Nothing is distilled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks import PREPROCESSINGS
from benchmarks.data.names import LISTED, kind_of
from benchmarks.data.views import base_name
from benchmarks.errors import UserError, printable
from benchmarks.folders import default_cache, default_root
from benchmarks.protocols import PROTOCOLS
from harness.command_line import Parser, command, end, file_path, whole
from harness.devices import NAMES
from harness.plan.request import Request, integers, names, told

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.datasets import RawData

PROGRAM = "python -m harness.data"
SIDES = (28, 32, 64, 128)
"""Sides of images in published experiments, in pixels."""
MOST_CLASSES = 40
"""Classes that are shown one by one."""
# torch is imported where it is used: --help must not wait for it.


@command(PROGRAM)
def main(arguments: Sequence[str], program: str) -> int:
    """Print the report on a data set."""
    parser = Parser(
        prog=program,
        description="Report on a data set before a run: classes, sizes, duplicates, preprocessing, and the work and "
        "memory of distilling it. Nothing is distilled.",
        epilog=f"data sets: {', '.join(LISTED)}",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="a data set, or a view of one")
    add("--methods", type=names, default=("frepo",), metavar="NAMES", help="whose needs are forecast (frepo)")
    add("--ipc", dest="ipcs", type=integers, default=(1, 10), metavar="N,…", help="at how many images per class (1,10)")
    add("--image-size", type=whole, metavar="N", help="resize images to N×N")
    add("--data-root", type=file_path, metavar="DIR", help="where data sets lie (FREPO_BENCH_DATA or a cache folder)")
    add("--cache", type=file_path, metavar="DIR", help="for decoded images (FREPO_BENCH_CACHE)")
    add("--download", action="store_true", help="fetch data sets that are missing")
    add("--device", metavar="NAME", help=f"{NAMES} (cuda if there is one)")
    parsed = parser.parse(arguments)
    for line in report(Request(datasets=(parsed.dataset,), forecast=True, **told(parsed, Request))):
        print(line, flush=True)
    return 0


def report(request: Request) -> Iterator[str]:
    """The lines of the report on the only data set of ``request``; its methods and numbers of images are forecast.

    Raises UserError as `benchmarks.datasets.load_raw` does; but images of several sizes are reported on, at a size that
    is named.
    """
    from benchmarks.data.source import one_line
    from benchmarks.datasets import find_source
    from harness.plan.planning import loaded

    (name,) = request.datasets
    root, cache = request.data_root or default_root(), request.cache or default_cache()
    with one_line(name):
        source = find_source(base_name(name), root, request.image_size, request.download)
        sizes = Counter(source.sizes() if source.sizes else {})
    request = dataclasses.replace(request, download=False)  # it is there now
    own = kind_of(name) is not None and request.image_size is None
    if own and len(sizes) > 1:
        request = dataclasses.replace(request, image_size=_side(sizes))
    raw = loaded(name, root, request.image_size, False, cache)
    channels, height, width = raw.train_images.shape[1:]
    counts = f"{len(raw.train_labels):,} training and {len(raw.test_labels):,} test images"
    yield printable(f"{name}: {len(raw.class_names)} classes, {counts} of {channels}×{height}×{width}")
    yield printable(f"order of the classes: {raw.class_order}")
    if len(sizes) > 1:
        yield _sizes(sizes)
    if own and len(sizes) > 1:
        yield f"a run needs --image-size N; this report is for --image-size {request.image_size}"
    if raw.left_out:
        yield printable(raw.left_out)
    yield f"mirrored images {'belong to' if raw.flip else 'leave'} their class"
    yield ""
    yield from _classes(raw)
    yield ""
    yield from _duplicates(raw, [str(f) for f in source.files] if name == base_name(name) else [])
    yield ""
    yield from _preprocessings(raw, request.ipcs[0])
    yield ""
    yield from _forecast(request, raw)


def _side(sizes: Counter[tuple[int, int]]) -> int:
    """The largest side of published experiments to which at least half of the images need not be enlarged."""
    usual = _usual(sizes)
    return max((side for side in SIDES if side <= usual), default=usual)


def _usual(sizes: Counter[tuple[int, int]]) -> int:
    """Median of the shorter sides."""
    return statistics.median_low(min(size) for size in sizes.elements())


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    smallest, largest = (f"{height}×{width}" for height, width in (min(sizes), max(sizes)))
    usual = _usual(sizes)
    return f"files: {len(sizes)} sizes from {smallest} to {largest}; median of the shorter sides: {usual} pixels"


def _classes(raw: RawData) -> Iterator[str]:
    """Images of each class and split, and how unequal they are."""
    from tabulate import tabulate

    from harness.evaluations.accuracy import UNBALANCED

    splits = {"train": raw.train_labels, "test": raw.test_labels}
    counts = {split: labels.bincount(minlength=len(raw.class_names)).tolist() for split, labels in splits.items()}
    rows = [(printable(name), *own) for name, *own in zip(raw.class_names, *counts.values(), strict=True)]
    if len(rows) > MOST_CLASSES:
        rows.sort(key=lambda row: row[1])
        rows = [*rows[: MOST_CLASSES // 2], ("…", "…", "…"), *rows[-MOST_CLASSES // 2 :]]
    yield from tabulate(rows, ["class", *splits], tablefmt="github", disable_numparse=True).splitlines()
    for split, own in counts.items():
        least, most = min(filter(None, own)), max(own)
        text = f"{split}: {least} images in each class"
        if most > least:
            smallest = raw.class_names[own.index(least)]
            text = f"{split}: from {least} images ({smallest!r}) to {most}, {most / least:.3g} times as many"
        yield printable(text + (f"; {own.count(0)} classes have none" if 0 in own else ""))
    if max(counts["test"]) > UNBALANCED * min(filter(None, counts["test"])):
        yield "classes differ: evaluations report balanced accuracy, the mean over the classes, beside the accuracy"


def _duplicates(raw: RawData, files: Sequence[str]) -> Iterator[str]:
    """Images that are equal in every pixel; ``files``: where they lie, training images first, where that is known."""
    count = len(raw.train_labels)
    train, test = _digests(raw.train_images), _digests(raw.test_images)
    labels = [*raw.train_labels.tolist(), *raw.test_labels.tolist()]

    def shown(place: int) -> str:
        number = f"training image {place}" if place < count else f"test image {place - count}"
        return files[place] if len(files) == len(labels) else number

    for title, pairs in (
        ("training images that equal an earlier one", _repeated(train)),
        ("test images that equal an earlier one", [(a + count, b + count) for a, b in _repeated(test)]),
        ("test images that are training images as well", _shared(train, test)),
    ):
        text = f"{title}: {len(pairs)}"
        if pairs:
            others = sum(labels[a] != labels[b] for a, b in pairs)
            first, second = pairs[0]
            text += f", {others} of them in another class; for example {shown(second)} and {shown(first)}"
        yield printable(text)


def _digests(images: Tensor) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]


def _repeated(digests: Sequence[bytes]) -> list[tuple[int, int]]:
    """Places of equal digests: of the first, and of each later one."""
    first: dict[bytes, int] = {}
    return [(first[d], place) for place, d in enumerate(digests) if first.setdefault(d, place) != place]


def _shared(train: Sequence[bytes], test: Sequence[bytes]) -> list[tuple[int, int]]:
    """Places of equal digests: of the first in ``train``, and of that in ``test``, counted on from ``train``."""
    first = {d: len(train) - 1 - place for place, d in enumerate(reversed(train))}
    return [(first[d], len(train) + place) for place, d in enumerate(test) if d in first]


def _preprocessings(raw: RawData, ipc: int) -> Iterator[str]:
    """Whether each preprocessing fits the images, by what it normalises, and which protocols take it at ``ipc``."""
    from benchmarks.preprocess import CONSTANTS, check

    images = raw.train_images if raw.fit_images is None else raw.fit_images
    yield "preprocessing"
    for name in PREPROCESSINGS:
        known = raw.published_statistics and base_name(raw.name) in CONSTANTS.get(name, {})
        users = [protocol.name for protocol in PROTOCOLS.values() if protocol.preprocess(raw.name, ipc) == name]
        text = f"by {'published' if known else 'its own'} mean and standard deviation"
        if name == "zca_kornia":
            text = "fitted to the images, which are not standardised"
        try:
            check(name, images)
        except UserError as error:
            text = str(error)
        yield f"  {name:<16} {text}" + (f"; protocols {', '.join(users)}" if users else "")


def _forecast(request: Request, raw: RawData) -> Iterator[str]:
    """Work and memory of distilling, as far as there are images enough."""
    from harness.measure.forecast import table
    from harness.plan.planning import plan

    most = min(filter(None, raw.train_labels.bincount().tolist()))
    ipcs = tuple(ipc for ipc in request.ipcs if ipc <= most)
    (name,) = request.datasets
    left_out: list[str] = []
    try:
        jobs = plan(dataclasses.replace(request, ipcs=ipcs or (1,)), left_out)
        shown = table(jobs, None)
    except UserError as error:
        shown = f"not forecast: {printable(str(error))}"
    yield f"forecast of budget {request.budget}; --ipc can be at most {most}, the images of the smallest class"
    yield from map(printable, left_out)
    yield from shown.splitlines()
    command = f"--methods {','.join(request.methods)} --dataset {shlex.quote(name)} --budget cost"
    yield printable(f"seconds are not known before they are measured: python -m harness.run {command}")


if __name__ == "__main__":
    end(main())
