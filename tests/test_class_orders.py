"""Label numbers of others: known orders, lists of one's own, and refusals instead of guesses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import DATASETS
from benchmarks.datasets import wordnet_ids
from benchmarks.errors import UserError
from harness.records.class_orders import NAMELESS, NUMBERED, ORDERS, SOURCES, class_order, own_order

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
WOOF = tuple(wordnet_ids("imagewoof"))  # as this suite has them: sorted by WordNet id
NETTE = tuple(wordnet_ids("imagenette"))
TINY = ("n01", "n02", "n03")
DIGITS = tuple("0123456789")
OURS = tuple(range(10))
MTT_WOOF = (5, 4, 8, 2, 0, 3, 1, 9, 6, 7)
"""Its n02096294 is the sixth of the sorted ids, and so on."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tiny-imagenet-200").mkdir()
    (tmp_path / "tiny-imagenet-200/wnids.txt").write_text("n03\nn01\nn02\n")
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "names", "source", "said", "classes"),
    [
        ("cifar10", OURS, "dc", None, OURS),
        ("fashion_mnist", FASHION, "kip", None, OURS),
        ("fashion_mnist", FASHION, "mtt", "files", OURS),
        ("fashion_mnist", FASHION, "mtt", "sorted", (9, 8, 4, 3, 2, 5, 6, 7, 0, 1)),
        ("imagenette", NETTE, "mtt", None, OURS),
        ("imagenette", NETTE, "frepo", None, OURS),
        ("imagewoof", WOOF, "mtt", "mtt", MTT_WOOF),
        ("imagewoof", WOOF, "frepo", "mtt", MTT_WOOF),
        ("imagewoof", WOOF, "frepo", "sorted", OURS),
        ("tiny_imagenet", TINY, "mtt", None, (0, 1, 2)),
        ("tiny_imagenet", TINY, "frepo", None, (2, 0, 1)),
        ("tiny_imagenet", TINY, "dc", "frepo", (2, 0, 1)),
        ("imagenet64", OURS, "frepo", None, OURS),
        ("imagenet64", OURS, "mtt", "files", OURS),
        ("folder:photos", ("a", "b"), "mtt", "sorted", (0, 1)),
    ],
)
def test_orders(
    dataset: str, names: tuple[object, ...], source: str, said: str | None, classes: tuple[int, ...], root: Path
) -> None:
    order = class_order(dataset, tuple(map(str, names)), root, source, said)
    assert order.classes == classes and order.is_ours == (classes == tuple(range(len(classes))))
    first, last = names[classes[0]], names[classes[-1]]
    assert f"0 is '{first}'" in order.described and f"{len(names) - 1} is '{last}'" in order.described


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("imagewoof", "mtt"),  # MTT's own, or anybody's tensors in sorted order
        ("imagewoof", "frepo"),
        ("imagewoof", "dc"),
        ("imagenette", "kip"),
        ("tiny_imagenet", "dc"),
        ("imagenet64", "mtt"),
        *(("folder:photos", source) for source in SOURCES),
    ],
)
def test_an_unknown_order_is_asked_for(dataset: str, source: str, root: Path) -> None:
    with pytest.raises(UserError, match="--class-order") as error:
        class_order(dataset, WOOF, root, source, None)
    assert "\n" not in str(error.value)
    assert ("sorted (" in str(error.value)) == (dataset not in NAMELESS)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [("imagewoof", "frepo"), ("imagewoof", "files"), ("folder:a", "mtt"), ("imagenet64", "sorted")],
)
def test_a_word_that_says_nothing_is_refused(dataset: str, said: str, root: Path) -> None:
    with pytest.raises(UserError, match=f"{said} says nothing about {dataset}"):
        class_order(dataset, WOOF, root, "mtt", said)


def test_every_data_set_is_in_the_table_and_every_order_is_of_its_classes() -> None:
    assert set(DATASETS) - {"patches"} == NUMBERED | set(ORDERS) and not NUMBERED & set(ORDERS)
    assert {source for orders in ORDERS.values() for source in orders} <= set(SOURCES)
    assert sorted(ORDERS["imagewoof"]["mtt"]) == sorted(wordnet_ids("imagewoof").values())


def test_a_list_of_names_or_wordnet_ids(root: Path) -> None:
    ids = wordnet_ids("imagewoof")
    for names in (WOOF, [ids[name] for name in WOOF]):
        file = root / "order.txt"
        file.write_text("\ufeff" + "\r\n\n".join(f" {names[index]} " for index in MTT_WOOF), encoding="utf-8")
        order = class_order("imagewoof", WOOF, root, "dc", str(file))
        assert order.classes == MTT_WOOF and "order.txt" in order.described


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n".join(DIGITS[:9]), "class '9' is missing"),
        ("\n".join((*DIGITS, "3")), "class '3' is there twice"),
        ("\n".join((*DIGITS[:9], "99")), "'99' is no class"),
        ("", "class '0' is missing"),
        (b"\xff\xfe\x00\xd8", "cannot be read as text"),
    ],
)
def test_a_list_that_is_not_of_the_classes(text: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "order.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        class_order("digits", DIGITS, tmp_path, "mtt", str(file))
    assert said in str(error.value) and "order.txt" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        class_order("digits", DIGITS, tmp_path, "mtt", str(tmp_path / "missing"))


def test_a_set_of_this_suite_names_its_classes() -> None:
    assert own_order(("b", "a", "c"), ("a", "b", "c")).classes == (1, 0, 2)
    with pytest.raises(UserError, match="'d' is no class"):
        own_order(("a", "b", "d"), ("a", "b", "c"))
