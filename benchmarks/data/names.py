"""Names of data sets: a published one, or where another lies, as in ``folder:PATH``; without its views.

Names are read without torch: the command line asks for them.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import DATASETS
from benchmarks.errors import UserError, choose, printable

FORMS = {"folder": "folder:PATH", "hf": "hf:NAME_OR_PATH", "medmnist": "medmnist:NAME.npz"}
"""Kind of a set that is no published one → the form of its name."""
KNOWN = (*DATASETS, *FORMS.values())
"""What can be asked for."""
LISTED = tuple("patches (a demo)" if name == "patches" else name for name in KNOWN)
"""The same, for a help text."""
NO_FLIP = re.compile(r"digits|mnist|svhn|medmnist:(.*/)?organ[acs]mnist.*")
"""Sets whose mirrored images leave their class (DSA's rule; Fashion-MNIST *is* flipped). MedMNIST's organs have classes
such as left and right kidney."""


def kind_of(name: str) -> str | None:
    """The key of ``FORMS`` that ``name`` begins with; None where it is no such name."""
    kind, colon, _ = name.partition(":")
    return kind if colon and kind in FORMS else None


def place_of(name: str) -> Path:
    """The place in a name of ``FORMS``. Raises UserError where there is none, and where its user does not exist."""
    kind, _, place = name.partition(":")
    if not place.strip():
        raise UserError(f"--dataset {kind}: has no path: write {FORMS[kind]}")
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}: there is no such user") from error


def check(name: str) -> None:
    """Raise UserError for a name that no data set can have."""
    if kind_of(name):
        place_of(name)
        return
    if name not in DATASETS and Path(name).is_dir():
        raise UserError(f"unknown data set {name!r}: a folder of your own is folder:{name}")
    choose("data set", name, KNOWN)


def recorded(name: str) -> str:
    """The name for records. Of a path only the last part is kept: the rest belongs to this machine."""
    kind = kind_of(name)
    if kind is None or (kind == "hf" and not place_of(name).is_dir()):  # a name on the hub
        return name
    place = place_of(name)
    return f"{kind}:{printable(place.name if kind == 'medmnist' else place.resolve().name)}"


def flips(name: str) -> bool:
    """Whether a mirrored image still belongs to its class."""
    return not NO_FLIP.fullmatch(name)
