"""Class orders by source and data set: the classes that the label numbers of a distilled set stand for.

A file of labels holds numbers and no names. Label 0 is whatever class its authors' code counted first, and this suite
may count another first: a set that is read in the wrong order is evaluated without an error, at chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.views import base_name
from benchmarks.datasets import listed_wnids, wordnet_ids
from benchmarks.errors import UserError, nearest, printable

FILES, SORTED, WNIDS = "files", "sorted", "wnids"
"""Orders that can be said in a word: the numbers in the published files of the data set; class folders sorted by name,
as torchvision's ``ImageFolder`` has them; Tiny ImageNet's own list ``wnids.txt``."""

NUMBERED = frozenset({"digits", "mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "stl10", "cub200"})
"""Data sets whose published files number the classes. All sources below take these numbers, and so does this suite."""

Order = str | tuple[str, ...]
"""A word, or class names or WordNet ids in their order."""
ORDERS: Mapping[str, Mapping[str, Order]] = {
    "imagenet64": {"frepo": FILES},
    "imagenette": {"mtt": SORTED, "frepo": SORTED},
    # FRePo's code names the ten breeds in two ways that contradict each other, so its order is not known.
    "imagewoof": {
        "mtt": (
            *("n02096294", "n02093754", "n02111889", "n02088364", "n02086240"),
            *("n02089973", "n02087394", "n02115641", "n02099601", "n02105641"),
        )
    },
    # DC, DSA and DM read a file tinyimagenet.pt of their own making, with a list of classes in it.
    "tiny_imagenet": {"mtt": SORTED, "frepo": WNIDS},
}
"""Data set → source → order, of the other data sets, as the code of the sources has it. What is not here is not known.

Sources are called after what their code is known for: ``dc`` (DC, DSA, DM), ``mtt``, ``frepo``, ``kip``."""
SOURCES = ("dc", "mtt", "frepo", "kip")
SHARED = "mtt"
"""The source whose format, lone tensors, is anybody's: its order is assumed only where it is the sorted one as well."""
NAMELESS = frozenset({"imagenet64"})
"""Data sets whose files do not tell the names of the classes, which this suite numbers from 1."""
_WORDS = {
    FILES: "the numbers in the published files",
    SORTED: "sorted names of class folders",
    WNIDS: "the list wnids.txt",
}


@dataclass(frozen=True)
class ClassOrder:
    """The classes of the data set that the label numbers of a file stand for."""

    classes: tuple[int, ...]
    """(num_classes,): label number → class of the data set."""
    described: str
    """On one line: where the order comes from, and the classes of some numbers."""

    @property
    def is_ours(self) -> bool:
        """Whether the numbers are those of this suite."""
        return self.classes == tuple(range(len(self.classes)))


def class_order(dataset: str, class_names: Sequence[str], root: Path, source: str, said: str | None) -> ClassOrder:
    """The order that the user ``said``, else that of the ``source`` of the file, for a data set with ``class_names``.

    ``said``: ``files``, ``sorted``, a source, or a file with a class name or WordNet id on each line. ``root``: where
    published data sets lie.

    Raises UserError where the order of the source is not known, and for a list that does not have every class once.
    """
    dataset = base_name(dataset)
    order: Order | None
    if said is None:
        order, place = _known(dataset, source), f"the code of {source}"
        if order is None or (source == SHARED and order not in (FILES, SORTED)):
            raise UserError(
                f"what the label numbers mean for {dataset} is not known, as the file does not say in which order its "
                f"authors count the classes: give --class-order {_choices(dataset)}"
            )
    elif said in _choosable(dataset):
        order, place = _known(dataset, said) or said, f"the code of {said}" if said in SOURCES else ""
    elif said in (FILES, SORTED, *SOURCES):
        raise UserError(f"--class-order {said} says nothing about {dataset}: give {_choices(dataset)}")
    else:
        order, place = tuple(_lines(Path(said))), f"the list {said}"
    keys = [wordnet_ids(dataset).get(name, name) for name in class_names]
    if order == FILES:
        classes = tuple(range(len(class_names)))
    else:
        listed = sorted(keys) if order == SORTED else listed_wnids(root) if order == WNIDS else order
        classes = _numbers(listed, class_names, keys, place)
    words = [_WORDS[order]] if isinstance(order, str) else []
    words += [f"as in {place}"] if place else []
    return ClassOrder(classes, printable(f"{', '.join(words)}; {_examples(classes, class_names)}"))


def own_order(stated: Sequence[str], class_names: Sequence[str]) -> ClassOrder:
    """The order of a set of this suite, whose file has the names of its classes.

    Raises UserError where these are not those of the data set.
    """
    classes = _numbers(stated, class_names, class_names, "the set's own list of classes")
    return ClassOrder(classes, f"as in the set's own list of classes; {_examples(classes, class_names)}")


def _known(dataset: str, source: str) -> Order | None:
    return FILES if dataset in NUMBERED and source in SOURCES else ORDERS.get(dataset, {}).get(source)


def _choosable(dataset: str) -> list[str]:
    words = [FILES] if dataset in NUMBERED | NAMELESS else []
    words += [] if dataset in NAMELESS else [SORTED]
    return words + [source for source in SOURCES if _known(dataset, source)]


def _choices(dataset: str) -> str:
    words = [f"{word} ({_WORDS[word]})" if word in _WORDS else word for word in _choosable(dataset)]
    return f"{', '.join(words)}, or a file with a class name or WordNet id on each line, in the order of the numbers"


def _examples(classes: Sequence[int], class_names: Sequence[str]) -> str:
    numbers = dict.fromkeys((0, 1, len(classes) - 1))
    return ", ".join(f"{number} is {class_names[classes[number]]!r}" for number in numbers)


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"--class-order {file}: no such file, and none of {FILES}, {SORTED}, {', '.join(SOURCES)}")
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-order {file} cannot be read as text ({type(error).__name__})") from error


def _numbers(listed: Sequence[str], class_names: Sequence[str], keys: Sequence[str], place: str) -> tuple[int, ...]:
    """The class of every name or key in ``listed``. Raises UserError where these are not all classes, each once."""
    number = {key: index for names in (keys, class_names) for index, key in enumerate(names)}
    classes: dict[int, str] = {}
    for name in listed:
        if name not in number:
            guess = nearest(name, number)
            raise UserError(f"{place}: {name!r} is no class" + (f": did you mean {guess!r}?" if guess else ""))
        if number[name] in classes:
            raise UserError(f"{place}: class {name!r} is there twice")
        classes[number[name]] = name
    if missing := sorted(set(range(len(class_names))).difference(classes)):
        raise UserError(f"{place}: class {class_names[missing[0]]!r} is missing")
    return tuple(classes)
