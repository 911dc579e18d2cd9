"""Hyper-parameters on the command line: ``--frepo.pool-size 20``, typed and documented by each method's ``Config``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.errors import UserError, choose, nearest


def split(arguments: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Take the hyper-parameters out of ``arguments``: what is left, and method → its tokens.

    A hyper-parameter is ``--method.field`` with everything up to the next flag. Raises UserError for a method that is
    not one of ``names``.
    """
    rest: list[str] = []
    options: dict[str, list[str]] = {}
    current = rest
    for argument in arguments:
        if match := re.match(r"--([\w-]+)\.(.*)", argument):
            method = choose("method", match[1].replace("-", "_"), names)
            current = options.setdefault(method, [])
            argument = f"--{method}.{match[2]}"
        elif argument.startswith("-") and not re.match(r"-[.\d]|-inf$", argument):
            current = rest
        current.append(argument)
    return rest, options


def parse(defaults: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Each method's ``Config`` of ``defaults``, changed by its ``options``.

    Raises UserError, one line, for a field that does not exist (with the nearest and the list) or a value that does not
    fit its type or that the ``Config`` refuses.
    """
    import tyro

    for method, tokens in options.items():
        _check_fields(method, defaults[method], tokens)
    tokens = [token for of_one in options.values() for token in of_one]
    if not tokens:
        return dict(defaults)
    shown = _Screen()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            parsed = tyro.cli(_form(defaults), args=tokens, prog="harness.run", config=(tyro.conf.FlagConversionOff,))
    except SystemExit:
        raise UserError(_one_line(shown.getvalue())) from None
    return {method: getattr(parsed, method) for method in defaults}


def describe(defaults: Mapping[str, Any]) -> str:
    """The hyper-parameters of every method under its own heading: flag, type, default, meaning."""
    import tyro

    shown = _Screen()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        tyro.cli(_form(defaults), args=["--help"], prog="harness.run", config=(tyro.conf.FlagConversionOff,))
    # Usage and the box of --help itself come first; the methods' boxes follow.
    boxes = re.split(r"\n(?=╭)", shown.getvalue())
    without = [f"{name}: no hyper-parameters" for name in defaults if not dataclasses.fields(defaults[name])]
    return "\n".join([*(box.rstrip() for box in boxes[2:]), *without])


class _Screen(io.StringIO):
    """Takes what tyro prints; with an encoding it draws its boxes in one way wherever we run."""

    encoding = "utf-8"


def _form(defaults: Mapping[str, Any]) -> type[Any]:
    """A dataclass with one field per method, which gives every flag its ``--method.`` prefix."""
    fields = [(name, type(config), dataclasses.field(default=config)) for name, config in defaults.items()]
    return dataclasses.make_dataclass("Hyperparameters", fields, frozen=True)


def _check_fields(method: str, config: Any, tokens: Sequence[str]) -> None:
    known = [field.name.replace("_", "-") for field in dataclasses.fields(config)]
    for token in tokens:
        if not token.startswith(f"--{method}."):
            continue
        given = token.removeprefix(f"--{method}.").partition("=")[0].replace("_", "-")
        if given not in known:
            guess = nearest(given, known)
            hint = f": did you mean --{method}.{guess}?" if guess else "."
            listed = ", ".join(known) or "none"
            raise UserError(f"unknown hyper-parameter --{method}.{given}{hint} Those of {method}: {listed}")


def _one_line(box: str) -> str:
    """What an error box of tyro says above its first rule, without the frame."""
    lines = [line.strip("│ ").rstrip() for line in box.splitlines() if line.startswith("│")]
    message = itertools.takewhile(lambda line: not line.startswith("───"), lines)
    return " ".join(message).strip() or "a hyper-parameter on the command line does not fit"
