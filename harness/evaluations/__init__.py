"""The questions that are asked of a distilled set: a file here is one, and another package adds one by an entry point.

Listing names imports nothing, so that ``--help`` is quick.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from benchmarks.errors import UserError
from benchmarks.registry import Registry

if TYPE_CHECKING:
    from harness.evaluations.base import Evaluation

ENTRY_POINTS = "frepo_bench.evaluations"
"""Entry-point group for evaluations of other packages: ``name = "package.module:Class"``."""
_REGISTRY = Registry("evaluation", "harness.evaluations", others=("base", "training"), group=ENTRY_POINTS)


def names() -> list[str]:
    """The names of all evaluations, built-in and installed, sorted."""
    return _REGISTRY.names()


def get(name: str) -> type[Evaluation]:
    """The evaluation class called ``name``. Raises UserError as `Registry.get` and `check_class` do."""
    from harness.evaluations.base import Evaluation, check_class

    evaluation: type[Evaluation] = _REGISTRY.get(name, Evaluation, check_class)
    return evaluation


def config_problem(name: str, config: Mapping[str, Any]) -> str | None:
    """Why ``config``, as JSON has it, is no configuration of the evaluation ``name``.

    None: it is, or there is no such evaluation here. Fields may be missing, or unknown: another version had others.
    """
    try:
        kind = get(name).Config
    except UserError:
        return None
    hints = get_type_hints(kind)
    known = {field: value for field, value in config.items() if field in hints}
    for field, value in known.items():
        if not _is(value, hints[field]):
            return f"config.{field} is {str(value)[:40]!r}, which it cannot be"
    try:
        kind(**{field: tuple(value) if isinstance(value, list) else value for field, value in known.items()})
    except (ValueError, TypeError, AssertionError) as error:
        return f"config: {error}"
    return None


def values_problem(name: str, config: Mapping[str, Any], values: Mapping[str, Sequence[float]]) -> str | None:
    """Why ``values`` cannot be the series that ``config`` of the evaluation ``name`` counts; as `config_problem`."""
    try:
        quantities = get(name).quantities
    except UserError:
        return None
    for own, quantity in quantities.items():
        if len(values.get(own, ())) % (config.get(quantity.repeats or "") or 1):
            return f"values.{own} are {len(values[own])}, which config.{quantity.repeats} does not divide"
    return None


def _is(value: Any, kind: Any) -> bool:
    """Whether JSON ``value`` is of the type ``kind``; of a type that no built-in configuration has, anything is."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis and isinstance(value, list) else arguments
        return isinstance(value, list) and len(value) == len(kinds) and all(map(_is, value, kinds))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind in (int, str, bool, NoneType):
        return type(value) is kind
    return True
