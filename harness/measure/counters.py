"""Counters that need no hardware: operations, bytes saved for backward, peak of live tensors, parameters.

They are exact and repeatable, and the same on every machine: what a method computes and keeps is seen operator by
operator, and nothing depends on a clock, an allocator or on which random numbers come up. The same code counts real
tensors and, in ``harness.measure.forecast``, fake ones, which have a shape but no values.
"""

from __future__ import annotations

import functools
import gc
import math
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

from benchmarks.task import generator_for
from methods.base import Method, Store

aten = torch.ops.aten


@dataclass(frozen=True)
class Counters:
    """The cost of a method, counted over whole cycles."""

    flops: float
    """Per step, of matrix products, convolutions and solves; a multiplication and an addition are two. What works
    entry by entry (activations, norms, optimisers) is not counted."""
    saved_bytes: float
    """Per step, of tensors kept for the backward passes, every storage once. Those that were there before the step
    (parameters, real and synthetic images) are alive anyway and not counted."""
    peak_live_bytes: int
    """Most bytes of tensors on the task's device alive at once in a step, above those alive before the method was
    constructed. What its constructor and ``prepare`` leave alive is part of it; an ``Uncounted`` store is not."""
    parameters: int
    """Parameters of the network that the task builds."""


def count(make: Callable[[], Method], device: torch.device, *, settle: bool = True) -> Counters:
    """Count whole cycles of the method that ``make`` constructs and prepares; it computes on ``device``.

    What a method keeps may need some steps to come into being: the optimiser of a network of a pool has no state before
    that network is drawn. Cycles are therefore run until a step leaves no more bytes behind than one before it did, but
    only until every value of every integer drawn singly has come up: what still grows then never stops. In place of
    their random values such integers take all their values in turn, so that few steps see all cases.

    ``settle``: False counts a single cycle, which is enough for the operations.

    Raises whatever the method raises. The global random state is not touched, the generator of the task is.
    """
    counter = _Counter(device.type)
    collecting = gc.isenabled()
    # Garbage is collected between steps, and of what was made here alone, whatever else the process has allocated.
    gc.freeze()
    gc.disable()
    try:
        with counter:
            method = make()
            over = False
            while not over:
                for _ in range(method.steps_per_cycle):
                    counter.begin_step()
                    with torch.autograd.graph.saved_tensors_hooks(counter.save, lambda tensor: tensor):
                        method.step()
                    counter.end_step()
                over = not settle or counter.settled()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    network = method.task.network(generator_for("count"))
    return Counters(
        flops=counter.flops / counter.steps,
        saved_bytes=counter.saved_bytes / counter.steps,
        peak_live_bytes=counter.peak,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


class Uncounted(UserDict[str, Mapping[str, Tensor]]):
    """A store in which nothing is counted: what lies on a disk is in no memory."""

    def __init__(self, store: Store) -> None:
        self.data = store  # type: ignore[assignment]  # a mapping is enough

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        with _disable_current_modes():
            return self.data[name]

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        with _disable_current_modes():
            self.data[name] = tensors


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator that is called, those of the backward passes included."""

    def __init__(self, device_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device_type
        self.steps = 0
        self.flops = 0.0
        self.saved_bytes = 0
        self.peak = 0
        self._live: dict[int, _Live] = {}
        self._bytes = 0
        self._saved: set[int] = set()
        self._levels: list[int] = []
        self._draws = 0
        self._most_values = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Overrides the base class: True would import the compiler, for seconds."""
        return False

    def begin_step(self) -> None:
        gc.collect()
        self._saved.clear()
        self._draws = 0
        self.steps += 1
        self.peak = max(self.peak, self._bytes) if self.steps > 1 else self._bytes

    def end_step(self) -> None:
        gc.collect()
        self._levels.append(self._bytes)

    def settled(self) -> bool:
        """Whether more steps would tell nothing new; asked between cycles."""
        if self.steps < 2:
            return False
        *before, last = self._levels
        return last <= max(before) or self.steps >= 2 + self._most_values

    def save(self, tensor: Tensor) -> Tensor:
        """To be called with everything that is saved for a backward pass."""
        key = _key(tensor)
        live = self._live.get(key)
        if live is not None and live.step == self.steps and key not in self._saved:
            self._saved.add(key)
            self.saved_bytes += live.bytes
        return tensor.detach()  # the output of a node, kept by that node, would keep itself alive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if self.steps and (formula := FORMULAS.get(packet)):
            self.flops += formula(*args, **kwargs, out_val=out)
        if packet is aten.randint and isinstance(out, Tensor) and out.ndim == 0:
            self._take_turn(out, *(args[:2] if "low" in func._overloadname else (0, args[0])))
        for tensor in tensors_in((out,)):
            if tensor.device.type == self._device_type:
                self._see(tensor, func, args)
        return out

    def _take_turn(self, drawn: Tensor, low: int, high: int) -> None:
        """The first draw of a step takes its values step by step; the others of the step are ahead by their place."""
        drawn.fill_(low + (self.steps + self._draws) % (high - low))
        self._draws += 1
        self._most_values = max(self._most_values, high - low)

    def _see(self, tensor: Tensor, func: Any, args: Sequence[Any]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        live = self._live.get(key)
        if live is None:
            # Memory that was there before us is not ours, however it is looked at.
            if func is not aten.lift_fresh.default and any(_key(arg) == key for arg in tensors_in(args)):
                return
            reference = weakref.ref(storage, functools.partial(self._free, key))
            self._live[key] = _Live(size, self.steps, reference)
            self._bytes += size
        elif live.bytes != size:  # it was resized
            self._bytes += size - live.bytes
            live.bytes = size
        self.peak = max(self.peak, self._bytes)

    def _free(self, key: int, _: object) -> None:
        self._bytes -= self._live.pop(key).bytes
        self._saved.discard(key)


@dataclass
class _Live:
    """A storage that is alive."""

    bytes: int
    step: int
    """In which it came into being; 0: before the first."""
    reference: weakref.ref[torch.UntypedStorage]


def tensors_in(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operator: these, and those in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _key(tensor: Tensor) -> int:
    """Key of the storage, unique among those that are alive."""
    return int(tensor.untyped_storage()._cdata)


# What torch.utils.flop_counter lacks. Operations of the usual algorithms, highest order only; batches multiply.


def _rows(matrix: Tensor) -> int:
    return int(matrix.shape[-1])


def _batch(matrix: Tensor) -> int:
    return math.prod(matrix.shape[:-2])


def _cubic(factor: float) -> Callable[..., float]:
    """factor·n³ for a square matrix in the first argument."""
    return lambda matrix, *_, **__: factor * _batch(matrix) * _rows(matrix) ** 3


def _substitution(out: Tensor, triangles: int) -> int:
    """n²·k for each triangular system with the solution (n, k)."""
    return triangles * _batch(out) * out.shape[-2] ** 2 * out.shape[-1]


def _solve_flop(matrix: Tensor, *_: Any, out_val: Sequence[Tensor], **__: Any) -> float:
    result = out_val[0] if out_val[0].ndim >= matrix.ndim else out_val[0][..., None]
    return 2 / 3 * _batch(matrix) * _rows(matrix) ** 3 + _substitution(result, 2)


def _product_flop(matrix: Tensor, vector: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


FORMULAS: Mapping[Any, Callable[..., float]] = {
    **flop_registry,
    aten.mv: _product_flop,
    aten.dot: _product_flop,
    aten.vdot: _product_flop,
    aten.addmv: lambda _, matrix, vector, **__: _product_flop(matrix, vector),
    aten.linalg_cholesky_ex: _cubic(1 / 3),
    aten.cholesky_inverse: _cubic(2 / 3),
    aten.linalg_inv_ex: _cubic(2),
    aten.linalg_lu_factor_ex: _cubic(2 / 3),
    aten._linalg_eigh: _cubic(9),
    aten._linalg_solve_ex: _solve_flop,
    aten.cholesky_solve: lambda *_, out_val, **__: _substitution(out_val, 2),
    aten.linalg_lu_solve: lambda *_, out_val, **__: _substitution(out_val, 2),
    aten.linalg_solve_triangular: lambda *_, out_val, **__: _substitution(out_val, 1),
    aten.triangular_solve: lambda *_, out_val, **__: _substitution(out_val[0], 1),
}
