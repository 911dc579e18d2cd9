"""Checks of a method's class, of its losses and of its synthetic sets.

The harness runs them on every cell, and the conformance tests on every method. Each raises UserError: one line with
what was looked at, what came and what was expected.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.errors import UserError, choose, printable
from benchmarks.protocols import PROTOCOLS
from methods.base import LabelSpace, Method, Synthetic

TOLERANCE = 1e-3
"""How far a label may lie below 0, and a sum of labels from that of their space: rounding is far less."""


class NotFinite(UserError):
    """A set of the right form with a value that is infinite or not a number."""


def check_class(cls: type[Method], where: str) -> None:
    """All methods are there, ``Config`` is a frozen dataclass of plain values, and ``PAPER``, ``BUDGETS`` and
    ``PROTOCOL`` name what exists.

    Raises UserError where not.
    """
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UserError(f"{where} lacks {', '.join(f'{name}()' for name in missing)}")
    config = getattr(cls, "Config", None)
    frozen = isinstance(config, type) and dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not frozen:
        raise UserError(f"{where}: Config is {_shown(config)}; expected a frozen dataclass")
    assert config is not None
    try:
        json.dumps(dataclasses.asdict(config()))
    except Exception as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise UserError(f"{where}: Config() does not give numbers, text and lists of them ({reason})") from error
    names = {field.name for field in dataclasses.fields(config)}
    for table, entries in (("PAPER", cls.PAPER), ("BUDGETS", cls.BUDGETS)):
        for key, changes in entries.items():
            if unknown := sorted(changes.keys() - names - {"steps"}):
                raise UserError(f"{where}: {table}[{key!r}] changes {', '.join(unknown)}, which Config does not have")
    try:
        choose("protocol", cls.PROTOCOL, PROTOCOLS)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_losses(losses: object, where: str, device: torch.device) -> None:
    """Check what ``step`` returned: names → detached floating point tensors, 0-d, on ``device``; waits for no device.

    Raises UserError where not.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise UserError(f"{where}: {_shown(losses)}; expected a dictionary of losses")
    for name, loss in losses.items():
        sound = isinstance(loss, Tensor) and loss.shape == () and loss.is_floating_point() and not loss.requires_grad
        if not (isinstance(name, str) and sound and loss.device == device):
            expected = f"names of detached 0-d floating point tensors on {device}"
            raise UserError(f"{where}: {name!r} is {_shown(loss)}; expected {expected}")


def check_synthetic(
    synthetic: object,
    where: str,
    *,
    classes: int,
    ipc: int,
    image: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    initial: bool = False,
) -> None:
    """A set of ``classes`` × ``ipc`` images of shape ``image`` (C, H, W), class-major, with labels of their space.

    ``initial``: the set is as it was before the first step. Then the largest label of every row (one of the largest)
    is that of its class, and centred labels sum to 0. Later only hard labels, whose rows hold the same two values in
    another order, must be class-major: labels that are learned may move.

    Raises NotFinite for a value that is not finite, and UserError for anything else.
    """
    if not isinstance(synthetic, Synthetic):
        raise UserError(f"{where}: {_shown(synthetic)}; expected a Synthetic")
    expected = {"images": (classes * ipc, *image), "labels": (classes * ipc, classes)}
    for name, shape in expected.items():
        tensor = getattr(synthetic, name)
        if not _is(tensor, dtype, device) or tensor.shape != shape:
            said = f"detached {_name(dtype)} {shape} on {device}, for {classes} classes at ipc {ipc}"
            raise UserError(f"{where}: {name} are {_shown(tensor)}; expected {said}")
    rate = synthetic.lr
    if rate is not None and not (_is(rate, dtype, device) and rate.ndim <= 1 and rate.numel()):
        said = f"detached {_name(dtype)} on {device}, 0-d or one number per step"
        raise UserError(f"{where}: lr is {_shown(rate)}; expected {said}")
    if synthetic.label_space not in get_args(LabelSpace):
        known = " or ".join(get_args(LabelSpace))
        raise UserError(f"{where}: label_space is {printable(repr(synthetic.label_space))}; expected {known}")
    for name, values in (("images", synthetic.images), ("labels", synthetic.labels), ("step size", rate)):
        if values is not None and not bool(values.isfinite().all()):
            raise NotFinite(f"{where}: a value of the {name} is not finite")
    _check_labels(synthetic, where, ipc, initial)


def _check_labels(synthetic: Synthetic, where: str, ipc: int, initial: bool) -> None:
    labels, space = synthetic.labels, synthetic.label_space
    sums = labels.sum(1)
    came = f"{space} labels from {float(labels.min()):.4g} to {float(labels.max()):.4g}"
    came += f" with sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}"
    if space == "probability" and not (
        bool((labels >= -TOLERANCE).all()) and bool(((sums - 1).abs() <= TOLERANCE).all())
    ):
        raise UserError(f"{where}: {came}; expected values from 0 to 1 with sums of 1")
    if space == "centred" and initial and not bool((sums.abs() <= TOLERANCE).all()):
        raise UserError(f"{where}: {came}; expected sums of 0")
    if not initial and bool((labels == labels[:, :1]).all()):
        raise UserError(f"{where}: {came}, the same for every class; expected labels that tell classes apart")
    ordered = labels.sort(1).values
    hard = bool((ordered == ordered[0]).all()) and bool((ordered[0, :-1] == ordered[0, 0]).all())
    if initial or hard:
        order = torch.arange(labels.shape[1], device=labels.device).repeat_interleave(ipc)
        other = labels.gather(1, order[:, None])[:, 0] < labels.max(1).values
        if bool(other.any()):
            row = int(other.nonzero()[0])
            raise UserError(
                f"{where}: the labels of image {row} name class {int(labels[row].argmax())}; expected class "
                f"{int(order[row])}, for sets are class-major"
            )


def _is(value: object, dtype: torch.dtype, device: torch.device) -> bool:
    return isinstance(value, Tensor) and (value.dtype, value.device, value.requires_grad) == (dtype, device, False)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        graph = ", part of a graph" if value.requires_grad else ""
        return f"{_name(value.dtype)} {tuple(value.shape)} on {value.device}{graph}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "nothing" if value is None else f"of type {type(value).__name__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
