"""Errors of the user, each said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A request that cannot be carried out as it stands.

    The message is one line that says what is wrong and what to do; the command line prints it without a
    traceback and exits with status 2.
    """


def printable(text: str) -> str:
    """Text on one line, safe to print.

    Characters that are not printable, such as line breaks and the start of an escape code, become escapes as in a
    Python string.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(name: str, names: Iterable[str], likeness: float = 0.5) -> str | None:
    """The member of ``names`` most like ``name``, upper or lower case; None where all differ too much.

    ``likeness``: the least that counts as like, between 0 and 1.
    """
    lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=likeness)
    return lower[close[0]] if close else None


def choose(kind: str, name: str, names: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``names``.

    Raises UserError that names the nearest match and the whole list: ``unknown data set 'cifar11': did you mean
    'cifar10'? Known: ...``.
    """
    known = sorted(names)
    if name in known:
        return name
    guess = nearest(name, known)
    hint = f": did you mean {guess!r}?" if guess else "."
    raise UserError(f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}")
