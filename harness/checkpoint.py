"""The state of a distillation that is under way, on disk, so that an interrupted cell goes on where it was.

A checkpoint is one safetensors file: the tensors of the method's state, and everything else in its JSON header. It is
read without pickle, has a checksum, and is written whole or not at all. The last `KEPT` are kept, in case the last one
is damaged.

A cell that goes on with the same configuration and code, on the same device, with as many threads and the same torch,
ends with the same bytes as one that was not interrupted. On another machine it goes on as well and says that the set
may differ by rounding; its seconds, memory and energy are then those of the last machine. A cell that is asked for its
cost alone begins again there.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from benchmarks.cache import Cache
from benchmarks.errors import printable
from benchmarks.files import put_aside
from harness import stopping
from harness.records import artifact
from harness.records.files import steps_in
from harness.records.record import CHECKPOINT, Record
from methods.base import Method
from methods.checks import imported

KEPT = 2
KEPT_FIELDS = ("resolved", "message", "steps", "cost", "snapshots", "segments")
"""Fields of the record that are continued."""


class Unsavable(Exception):
    """A state that cannot be written, in words."""


@dataclass
class Position:
    """How far the steps are, and everything about it that the record does not tell."""

    steps: int
    """Steps of the whole distillation, also where they were derived from a time budget."""
    done: int = 0
    window_steps: int = 0
    """Steps that were taken of a measuring window that is not full yet."""
    window_seconds: float = 0.0
    """Seconds that they took."""
    joules: float | None = 0.0
    """Energy of the steps so far; None where it is not known."""


class Checkpoints:
    """The checkpoints in the folder of one distillation."""

    def __init__(self, folder: Path, every: float, key: Mapping[str, Any]) -> None:
        """``every``: seconds between two of them. ``key``: words → what must agree for one to be used."""
        self.folder = folder / CHECKPOINT
        self._cache = Cache(self.folder, "checkpoint")
        self._every, self._key = every, dict(key)
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self._every

    def write(self, position: Position, method: Method, record: Record) -> None:
        """Write a checkpoint, and remove all but the last. Raises Unsavable where that fails."""
        self._last = time.monotonic()
        tensors: dict[str, Tensor] = {}
        try:
            about = {
                "key": self._key,
                "position": vars(position),
                "record": {name: record[name] for name in KEPT_FIELDS},  # type: ignore[literal-required]
                "state": encoded(method.state_dict(), tensors),
            }
            self._cache.write(f"step-{position.done}", tensors, about)
        except OSError as error:
            raise Unsavable(error.strerror or str(error)) from error
        except Exception as error:  # a method of one's own may raise anything
            raise Unsavable(printable(f"{type(error).__name__}: {error}")) from error
        for step in sorted(steps_in(self.folder))[:-KEPT]:
            with contextlib.suppress(OSError):
                self._cache.remove(f"step-{step}")
        for unfinished in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            with contextlib.suppress(OSError):
                unfinished.unlink()

    def newest(self) -> tuple[Position, dict[str, Any]] | None:
        """Position and fields of the record in the last checkpoint that is not damaged.

        None where there is none that fits. Those that do not fit are kept aside, and a line says why.
        """
        for step in sorted(steps_in(self.folder), reverse=True):
            if (entry := self._cache.read(f"step-{step}")) is None:
                continue
            about = entry[1]
            if reason := self._misfit(about):
                self.put_aside(reason)
                return None
            return Position(**about["position"]), about["record"]
        return None

    def load(self, step: int, method: Method) -> None:
        """Let ``method`` go on from the checkpoint after ``step``. One that fails is kept aside before the error."""
        try:
            entry = self._cache.read(f"step-{step}")
            if entry is None:
                raise FileNotFoundError(f"{self.folder} has changed meanwhile")
            tensors, about = entry
            method.load_state_dict(decoded(about["state"], tensors, method.task.device))
        except Exception as error:
            self.put_aside(f"its state cannot be loaded ({type(error).__name__}: {error})")
            raise

    def _misfit(self, about: Mapping[str, Any]) -> str | None:
        for name, value in self._key.items():
            if about["key"].get(name) != value:
                return f"it is of another {name}"
        snapshots = (
            artifact.lost(self.folder.parent / each["name"], each["sha256"]) for each in about["record"]["snapshots"]
        )
        return next(filter(None, snapshots), None)

    def put_aside(self, reason: str) -> None:
        """Rename the folder, so that it is neither used nor lost, and say so."""
        aside = put_aside(self.folder, "refused")
        line = f"  {self.folder} is not used, because {reason}; kept as {aside.name}, and the cell begins again"
        print(printable(line), file=sys.stderr, flush=True)


class Parts(dict[str, Mapping[str, Tensor]]):
    """Results of single networks of an evaluation that is under way, by name: in memory and on disk."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """``key``: what must agree for a result to be used, as JSON has it; others are computed again."""
        super().__init__()
        self._cache, self._key = Cache(folder, "partial result"), dict(key)
        for name in self._cache.names():
            entry = self._cache.read(name)
            if entry is not None and entry[1]["key"] == self._key:
                super().__setitem__(name, entry[0])

    def __setitem__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        super().__setitem__(name, tensors)
        with stopping.held(), contextlib.suppress(OSError, SafetensorError):  # a full disk is told at the end
            self._cache.write(name, tensors, {"key": self._key})


def method_digest(method: type[Method]) -> str:
    """SHA-256 over the source of ``method``: its module, and whatever this imports of its own package."""
    package = method.__module__.partition(".")[0]
    left, sources = [cls.__module__ for cls in method.__mro__], dict[str, str]()
    while left:
        name = left.pop()
        module = sys.modules.get(name)
        if module is None or name in sources or name.partition(".")[0] not in (package, "methods"):
            continue
        with contextlib.suppress(OSError, TypeError):  # no source: made by hand, or compiled
            sources[name] = inspect.getsource(module)
            for each in imported(sources[name], module.__package__ or ""):
                left += [each, each.rpartition(".")[0]]
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()


# --- a state, which is tensors, numbers, text and None in dictionaries, lists and tuples, as JSON and named tensors


def encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON can hold it; its tensors go into ``tensors``. Raises TypeError for anything else."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = copy = value.detach().to("cpu", copy=True)  # two names for the same memory cannot be written
        return {"tensor": name, "stride": copy.stride(), "on_device": value.device.type != "cpu"}
    if isinstance(value, Mapping):
        return {"dict": [[encoded(key, tensors), encoded(part, tensors)] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [encoded(part, tensors) for part in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a state holds tensors, numbers, text and collections of them, and not {type(value).__name__}")


def decoded(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What `encoded` was given; tensors that were on a device are on ``device``.

    They lie in memory as they did, aligned and with the same strides: kernels round by that, and fused optimisers take
    for granted that their state lies as the parameters do.
    """
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        saved, place = tensors[value["tensor"]], device if value["on_device"] else "cpu"
        return torch.empty_strided(saved.shape, value["stride"], dtype=saved.dtype, device=place).copy_(saved)
    if "dict" in value:
        return {decoded(key, tensors, device): decoded(part, tensors, device) for key, part in value["dict"]}
    ((kind, parts),) = value.items()
    items: Iterator[Any] = (decoded(part, tensors, device) for part in parts)
    return tuple(items) if kind == "tuple" else list(items)
