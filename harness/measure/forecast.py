"""The counters of a cell with nothing computed, in seconds: ``python -m harness.run … --forecast``.

The method itself runs, on fake tensors, which have a shape, a type and a device but neither memory nor values. Integers
on the CPU and single numbers are real: methods branch on integers (indices, random draws), and optimisers on numbers.
The data of published sets are not needed, only their shape.

On a CPU it agrees with the counters of the cell: operations exactly, bytes as far as a library lays out maps as is
foreseen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from benchmarks.data.views import base_name
from benchmarks.datasets import PUBLISHED, RawData, stand_in
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec
from benchmarks.task import Task, class_sizes, generator_for
from harness.limits import available_bytes, show_bytes
from harness.measure.counters import Counters, Uncounted, count, tensors_in
from harness.plan.jobs import WHOLE_DATA, Distillation, Job, from_json
from harness.plan.planning import loaded
from harness.progress import Progress
from methods.base import Method

CPU = torch.device("cpu")
ACCELERATOR = torch.device("meta")
"""Stands for a GPU: fake tensors on ``cuda`` can only be differentiated where torch was built for CUDA."""
TOTAL_STEPS = 1000
"""For schedules, where a cell does not know its number of steps; no count depends on it."""


def forecast(job: Job) -> Counters:
    """The numbers that ``harness.measure.counters.count`` would count in the cell of ``job``.

    Every seed has the same. Raises UserError where the method has no steps, and where it asks for a value that it would
    have to compute.
    """
    return _forecast_job(job)


def forecast_flops(job: Job) -> float:
    """The operations of a step, as in `forecast`, in a fraction of its time."""
    return _forecast_job(job, settle=False).flops


def _forecast_job(job: Job, *, settle: bool = True) -> Counters:
    data = (job.source, job.data_root, job.cache, job.distillation.image_size)
    of = dataclasses.replace(job.distillation, seed=0)
    return _forecast(of, json.dumps(job.config), data, job.device, settle)


def forecast_bytes(job: Job) -> int | None:
    """Peak of live tensors in the cell of ``job``; None where memory is not asked for, or unknown.

    Raises nothing: what was measured must not be lost for lack of a forecast.
    """
    distillation = job.distillation
    if distillation.memory_limit_bytes is None and not distillation.cost_only:
        return None
    try:
        return forecast(job).peak_live_bytes
    except Exception:
        return None


def data_bytes(job: Job) -> int:
    """Bytes of the images and labels, training and test, on the device."""
    raw = _read(job.source, job.data_root, job.cache, job.distillation.image_size)
    pixels = (raw.train_images.numel() + raw.test_images.numel()) * getattr(torch, job.distillation.dtype).itemsize
    return int(pixels + raw.train_labels.nbytes + raw.test_labels.nbytes)


def table(jobs: Sequence[Job], limit: int | None) -> str:
    """The needs of each cell of ``jobs``, and whether it fits into ``limit`` bytes, or else into the device."""
    from tabulate import tabulate

    room = available_bytes(jobs[0].device) if limit is None else limit
    different = {(dataclasses.replace(job.distillation, seed=0), json.dumps(job.config)): job for job in jobs}.values()
    progress = Progress("forecasting, cells", len(different))
    rows = []
    for job in different:
        rows.append(_row(job, room))
        progress(len(rows))
    progress.close()
    whole = "the limit" if limit is not None else f"what is free on {jobs[0].device}"
    size = "unknown" if room is None else show_bytes(room)
    headers = ["method", "data set", "ipc", "network", "parameters", "GFLOP/step", "saved", "method's", "data", "fits"]
    shown = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=_ALIGNED)
    return f"{shown}\n\nmethod's: peak of live tensors; fits: together with the data, into {whole}, {size}."


_ALIGNED = ("left", "left", "right", "left", "right", "right", "right", "right", "right", "left")


def _row(job: Job, room: int | None) -> list[str]:
    distillation = job.distillation
    row = [
        distillation.method,
        distillation.dataset,
        str(distillation.ipc),
        f"{distillation.network} {distillation.width}",
    ]
    data = data_bytes(job)
    try:
        counted = forecast(job)
    except UserError as error:
        return [*row, *["–"] * 4, show_bytes(data), str(error)]
    fits = "?" if room is None else "yes" if counted.peak_live_bytes + data <= room else "no"
    costs = f"{counted.flops / 1e9:.3g}", show_bytes(counted.saved_bytes), show_bytes(counted.peak_live_bytes)
    return [*row, f"{counted.parameters:,}", *costs, show_bytes(data), fits]


@functools.cache
def _read(source: str, root: str, cache: str, image_size: int | None) -> RawData:
    if base_name(source) in PUBLISHED:
        return stand_in(source, image_size)
    return loaded(source, Path(root), image_size, False, Path(cache))


@functools.cache
def _forecast(
    distillation: Distillation, config: str, data: tuple[str, str, str, int | None], device: str, settle: bool
) -> Counters:
    where = CPU if device == "cpu" else ACCELERATOR
    return count_blank(distillation, json.loads(config), _read(*data), where, settle=settle)


def count_blank(
    distillation: Distillation,
    config: Mapping[str, Any],
    raw: RawData,
    device: torch.device,
    *,
    settle: bool = True,
) -> Counters:
    """The counters of ``distillation`` on images like those of ``raw``; ``device``: ``cpu`` or ``ACCELERATOR``.

    ``settle``: as in `count`.
    """
    method_class = None if distillation.method == WHOLE_DATA else methods.get(distillation.method)
    if method_class is None or not method_class.iterative:
        raise UserError(f"{distillation.method} has no steps to forecast")
    shorter = method_class.BUDGETS.get("forecast", method_class.BUDGETS.get("cost", {}))
    resolved = from_json(method_class.Config, {**config, **shorter})
    with _fakes(device) as fake:
        task = _task(distillation, raw, device)

        def make() -> Method:
            method = method_class(task, resolved, distillation.steps or TOTAL_STEPS)
            method.prepare(Uncounted(_Store(fake)))
            return method

        try:
            return count(make, device, settle=settle)
        except (RuntimeError, NotImplementedError) as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(f"{distillation.method} cannot be forecast: {reason}") from error


def _task(distillation: Distillation, raw: RawData, device: torch.device) -> Task:
    channels, height, width = raw.train_images.shape[1:]
    name, norm = distillation.network, cast(Any, distillation.norm)
    size, classes, dtype = (height, width), len(raw.class_names), getattr(torch, distillation.dtype)
    spec = NetworkSpec(name, channels, size, classes, distillation.width, distillation.depth, norm)
    return _Task(
        images=torch.empty(raw.train_images.shape, dtype=dtype, device=device),
        labels=raw.train_labels.to(device),
        num_classes=spec.num_classes,
        ipc=distillation.ipc,
        network=functools.partial(spec.build, device=device, dtype=dtype),
        generator=generator_for("count"),
        flip=raw.flip,
        values=raw.train_labels,
    )


@dataclass(frozen=True)
class _Task(Task):
    values: Tensor
    """The labels with their values."""

    @functools.cached_property
    def classes(self) -> tuple[int, ...]:
        return tuple(class_sizes(self.values))

    def rows_of_classes(self) -> list[Tensor]:
        return list(torch.split(self.values.argsort(stable=True), list(class_sizes(self.values).values())))


class _Store(UserDict[str, Any]):
    """Keeps shapes, and makes fake tensors of them."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._fake = fake

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        with self._fake:
            return {key: torch.empty(shape, dtype=dtype) for key, (shape, dtype) in self.data[name].items()}

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.data[name] = {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}


@contextlib.contextmanager
def _fakes(device: torch.device) -> Iterator[FakeTensorMode]:
    """Make tensors fake, except integers on the CPU and single numbers."""
    fake = FakeTensorMode()
    # It remembers what it made in weak references, and a module cannot exchange parameters that have some.
    fake.fake_tensor_converter.set_tensor_memo = lambda *_: None  # type: ignore[method-assign]
    optimiser = importlib.import_module("torch.optim.optimizer")  # torch.optim hides the name
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # higher copies tensors
        if device == ACCELERATOR:  # optimisers have their fused kernels there, and those for lists
            for name in ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices"):
                names = [*getattr(optimiser, name)(), device.type]
                stack.enter_context(mock.patch.object(optimiser, name, lambda names=names: names))
            types = [*optimiser._foreach_supported_types, FakeTensor]
            stack.enter_context(mock.patch.object(optimiser, "_foreach_supported_types", types))
        stack.enter_context(fake)
        stack.enter_context(_Fakes())  # type: ignore[no-untyped-call]
        yield fake


class _Fakes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Decides, over a FakeTensorMode, what is real."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Overrides the base class: True would import the compiler, for seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        arguments = list(tensors_in((*args, *kwargs.values())))
        device = kwargs.get("device")
        if not all(_is_real(tensor) for tensor in arguments) or (
            device is not None and torch.device(device).type != "cpu"
        ):
            return self._fake(func, args, kwargs)
        if not arguments:
            made = func(*args, **kwargs)  # its shape and type; no random number is drawn
            if not (isinstance(made, Tensor) and _stays_real(made)):
                return made
        with unset_fake_temporarily():
            made = func(*args, **kwargs)
        return _replaced(made, lambda tensor: tensor if _stays_real(tensor) else _like(tensor))

    def _fake(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        originals: dict[int, Tensor] = {}

        def fake(tensor: Tensor) -> Tensor:
            if isinstance(tensor, FakeTensor):
                return tensor
            made = _like(tensor)
            originals[id(made)] = tensor
            return made

        made = func(*_replaced(list(args), fake), **{name: _replaced(value, fake) for name, value in kwargs.items()})
        # A real tensor that was changed in place by fake ones stays, and its value means nothing from here on.
        return _replaced(made, lambda tensor: originals.get(id(tensor), tensor))


def _is_real(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and tensor.device.type == "cpu"


def _stays_real(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and (tensor.ndim == 0 or not (tensor.is_floating_point() or tensor.is_complex()))


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _replaced(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``change`` applied to its tensors, those in lists and tuples too."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, change) for item in value)
    return value
