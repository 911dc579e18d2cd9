"""Hyper-parameters on the command line: ``--frepo.pool-size 20``, typed and documented by each method's ``Config``."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from benchmarks.errors import UserError, choose, nearest
from harness.command_line import LARGEST, NEGATIVE


def split(arguments: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Take the hyper-parameters out of ``arguments``: what is left, and method → its tokens.

    A hyper-parameter is ``--method.field`` with everything up to the next flag; names may have dashes or underscores.
    Raises UserError for a method that is not one of ``names``.
    """
    others: list[str] = []
    options: dict[str, list[str]] = {}
    current = others
    for argument in arguments:
        if match := re.match(r"--([\w-]+)\.", argument):
            method = choose("method or evaluation", match[1].replace("-", "_"), names)
            current = options.setdefault(method, [])
        elif argument.startswith("-") and not NEGATIVE.match(argument):
            current = others
        current.append(argument)
    return others, options


def typed(method: str, tokens: Sequence[str]) -> dict[str, list[str]]:
    """Field → its values, of the ``tokens`` of a method. Raises UserError for a field that is there twice."""
    values: dict[str, list[str]] = {}
    for token in tokens:
        if match := re.match(r"--[\w-]+\.([^=]*)(=?)", token):
            field = match[1].replace("-", "_")
            if field in values:
                raise UserError(f"{flag_of(method, field)} is given twice: leave one of them out")
            values[field] = [token[match.end() :]] if match[2] else []
        else:
            values[field].append(token)
    return values


def flag_of(method: str, field: str) -> str:
    """The hyper-parameter ``field`` of ``method`` as it is shown: ``--pixel-mean.lr``."""
    return f"--{method}.{field}".replace("_", "-")


def parse(defaults: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Each method's ``Config`` of ``defaults``, changed by its ``options``.

    Raises UserError, one line, for a field that does not exist (with the nearest and the list), one that is there
    twice, and a value that does not fit its type, is not finite, or that the ``Config`` refuses.
    """
    return {
        method: _changed(method, config, typed(method, options.get(method, ()))) for method, config in defaults.items()
    }


def _changed(method: str, config: Any, values: Mapping[str, Sequence[str]]) -> Any:
    if not values:
        return config
    known = {field.name: field for field in dataclasses.fields(config)}
    for name in values:
        if name not in known:
            guess = nearest(name, known)
            hint = f": did you mean {flag_of(method, guess)}?" if guess else "."
            listed = ", ".join(name.replace("_", "-") for name in known) or "none"
            raise UserError(f"unknown hyper-parameter {flag_of(method, name)}{hint} Those of {method}: {listed}")
    types = typing.get_type_hints(type(config))
    changes = {name: _value(flag_of(method, name), types[name], words) for name, words in values.items()}
    try:
        return dataclasses.replace(config, **changes)
    except (ValueError, TypeError, AssertionError) as error:
        # It speaks of fields, as a reader of the method knows them; who typed a flag knows that.
        names = "|".join(sorted(known, key=len, reverse=True))
        message = str(error).removeprefix(f"{method.replace('_', '')}: ")
        raise UserError(
            re.sub(rf"(?<![\w.-])({names})(?![\w-])", lambda field: flag_of(method, field[0]), message)
        ) from error


def _value(shown: str, kind: Any, words: Sequence[str]) -> Any:
    """``words`` as a value of the type ``kind``. Raises UserError, which begins with ``shown``, where they are none."""
    import tyro

    expected = f"{shown} takes {_in_words(kind)}"
    if typing.get_origin(kind) is tuple and Ellipsis in typing.get_args(kind):
        words = [part for word in words for part in word.split(",") if part]
    if not words:
        raise UserError(f"{expected}, but no value is given")
    refused = f"{expected}, not {' '.join(map(repr, words))}"
    form = dataclasses.make_dataclass("Form", [("value", kind)])
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            value: Any = tyro.cli(form, args=["--value", *words], config=(tyro.conf.FlagConversionOff,)).value
    except SystemExit:
        raise UserError(refused) from None
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(refused)
        if isinstance(number, int) and abs(number) > LARGEST:
            raise UserError(f"{shown} is too large: {number}")
    return value


def _in_words(kind: Any) -> str:
    """``kind`` for a reader: ``a whole number or None``."""
    simple = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a word", type(None): "None"}
    if kind in simple:
        return simple[kind]
    members = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, members))
    if typing.get_origin(kind) is tuple:
        if Ellipsis in members:
            return f"a list, comma between, of {_in_words(members[0])}"
        return " ".join(map(_in_words, members))
    return " or ".join(map(_in_words, members)) or str(kind)


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
