"""Devices other than a CPU and NVIDIA's: on a CPU, with a torch that says that they are there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import methods
from benchmarks import training
from benchmarks.errors import UserError
from harness import devices, limits
from harness.measure import forecast, memory
from harness.measure.clock import Clock
from harness.measure.counters import tensors_in
from harness.measure.memory import MemoryMeter
from harness.plan.planning import plan
from harness.plan.request import Request
from harness.records import provenance
from methods.base import Method
from tests.counters import cells

MIB = 2**20
SMALL = {made.distillation.method: (made, raw) for made, raw in reversed(cells().values())}
"""Method with steps → its smallest cell."""


class Backend:
    """An accelerator that is made up, and what torch was asked about it."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count
        self.allocated = self.most = 0
        self.events: list[str] = []

    def use(self, allocated: int) -> None:
        """In MiB."""
        self.allocated = allocated * MIB
        self.most = max(self.most, self.allocated)

    def reset(self) -> None:
        self.most = self.allocated


def backend(kind: str, patch: pytest.MonkeyPatch, count: int = 1) -> Backend:
    """Make torch say that there are ``count`` accelerators of ``kind``."""
    made = Backend(kind, count)
    patch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
    patch.setattr(torch.accelerator, "device_count", lambda: count)
    patch.setattr(torch.accelerator, "synchronize", lambda device: made.events.append(f"wait for {device}"))
    patch.setattr(memory, "create_context", lambda device: made.events.append(f"use {device}"))
    patch.setattr(memory, "release", lambda: None)
    answers: Mapping[str, Any] = {
        "memory_allocated": lambda device: made.allocated,
        "memory_reserved": lambda device: made.allocated + MIB,
        "max_memory_allocated": lambda device: made.most,
        "max_memory_reserved": lambda device: made.most + MIB,
        "reset_peak_memory_stats": lambda device: made.reset(),
        "mem_get_info": lambda index: (3 * MIB + index, 4 * MIB),
        "get_device_name": lambda device: f"name of {device}",
    }
    if kind == "mps":
        answers = {"current_allocated_memory": lambda: made.allocated}
    for name, answer in answers.items():
        patch.setattr(torch.get_device_module(kind), name, answer)
    return made


# --- which devices there are


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_a_device_is_taken_where_it_is_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend(kind, monkeypatch, count=1 if kind == "mps" else 2)
    assert devices.find(kind) == kind and devices.find("cpu") == "cpu"
    assert devices.find(None) == ("cuda" if kind == "cuda" else "cpu"), "what was never tried is taken when asked for"
    other = "mps" if kind == "xpu" else "xpu"
    with pytest.raises(UserError, match=f"--device {other}: there are 0 {other.upper()} devices here"):
        devices.find(other)
    assert devices.find(other, there=False) == other
    if kind != "mps":
        assert devices.find(f"{kind}:1") == f"{kind}:1"
        with pytest.raises(UserError, match="there are 2"):
            devices.find(f"{kind}:2")


@pytest.mark.parametrize("name", ["mps:0", "xpu:", "hip", "cuda:-1", "XPU"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--device must be cpu, cuda, cuda:N, xpu, xpu:N or mps"):
        Request(device=name)


# --- float64


class Seen(Exception):
    """A float64 tensor was on the accelerator."""


class NoFloat64(TorchDispatchMode):
    """Raises Seen where a float64 tensor comes to be on the accelerator that a forecast makes up."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tensors_in([made]):
            if tensor.dtype == torch.float64 and tensor.device.type == forecast.ACCELERATOR.type:
                raise Seen
        return made


# Not those that share their steps with one that is here, and take seconds.
SHARE = ("dsa", "rat_bptt")


@pytest.mark.parametrize(
    "name", [name for name in SMALL if name == "frepo" or not (methods.get(name).float64 or name in SHARE)]
)
def test_a_method_that_says_no_float64_has_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FRePo has some, and that is seen."""
    made, raw = SMALL[name]
    fakes = forecast._fakes

    @contextlib.contextmanager
    def without(device: torch.device) -> Iterator[Any]:
        with fakes(device) as fake, NoFloat64():
            yield fake

    def steps(make: Callable[[], Method], *_: object, **__: object) -> None:
        method = make()
        for _ in range(method.steps_per_cycle):
            method.step()

    monkeypatch.setattr(forecast, "_fakes", without)
    monkeypatch.setattr(forecast, "count", steps)
    with pytest.raises(Seen) if methods.get(name).float64 else contextlib.nullcontext():
        forecast.count_blank(made.distillation, made.config, raw, forecast.ACCELERATOR)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_methods_that_need_float64_are_refused_where_there_is_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(kind, monkeypatch)
    fields: dict[str, Any] = {"datasets": ("digits",), "budget": "smoke", "device": kind, "output": tmp_path}
    (job,) = plan(Request(methods=("dm",), **fields))
    assert job.device == job.distillation.device_kind == kind
    with pytest.raises(
        UserError, match=rf"frepo computes in float64, which .*{kind}.*: take --device cpu, or leave frepo"
    ):
        plan(Request(methods=("dm", "frepo"), **fields))
    with pytest.raises(UserError, match="--tf32 needs a CUDA device"):
        plan(Request(methods=("dm",), tf32=True, **fields))
    if kind == "mps":
        with pytest.raises(UserError, match="--memory-limit cannot be kept on mps"):
            plan(Request(methods=("dm",), memory_limit=MIB, **fields))


def test_float64_is_on_the_cpu_where_the_device_has_none() -> None:
    """Fake tensors on ``xpu`` have its name and no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        there = torch.empty(2, 3, device="xpu")
        assert (training.double(there).device.type, training.double(there).dtype) == ("cpu", torch.float64)
    meta: Tensor = training.double(torch.empty(2, device="meta"))
    assert (meta.device.type, meta.dtype) == ("meta", torch.float64)


# --- what is measured


def test_the_clock_waits_for_any_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    made = backend("xpu", monkeypatch)
    Clock(torch.device("xpu:1"), lambda: 0.0).read()
    Clock(torch.device("cpu"), lambda: 0.0).read()
    assert made.events == ["wait for xpu:1"]


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_the_peak_is_that_of_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counters where it has them, else samples of its level."""
    made = backend(kind, monkeypatch)
    meter = MemoryMeter(torch.device(kind))
    meter.context()
    assert meter.gpu is None and made.events == [f"use {kind}"]
    made.use(500)  # before it counts
    made.use(30)
    meter.idle()
    meter.start()
    made.use(280)
    assert meter.level() == 250 * MIB
    if kind == "mps":
        sampler = meter._samplers["allocated"]
        while sampler.highest != 280 * MIB:
            assert sampler._thread.is_alive()
    made.use(40)
    measured = meter.stop()
    assert (measured["meter"], measured["idle_bytes"], measured["allocated_bytes"]) == ("torch", 30 * MIB, 250 * MIB)
    assert measured["reserved_bytes"] == (None if kind == "mps" else 250 * MIB)
    assert (measured["period_seconds"] is None) == (kind == "xpu")
    assert (measured["device_bytes"], measured["busy"], measured["missing"]) == (None, None, None)


def test_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    backend("xpu", monkeypatch, count=2)
    assert (limits.available_bytes("xpu:1"), limits.total_bytes("xpu")) == (3 * MIB + 1, 4 * MIB)
    assert limits.available_bytes("xpu:2") is None and limits.available_bytes("cuda") is None
    backend("mps", monkeypatch)
    assert limits.total_bytes("mps") is None


# --- what records say


def told(device: str) -> dict[str, Any]:
    return provenance.provenance("command", device, "fingerprint", {})


def test_records_name_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = told("cpu")
    monkeypatch.setattr(torch.version, "hip", "7.1.5")
    assert told("cpu").keys() == on_cpu.keys() and "hip" not in on_cpu and on_cpu["cuda"] is None
    backend("cuda", monkeypatch)
    on_rocm = told("cuda")
    assert (on_rocm["hip"], on_rocm["cuda"], on_rocm["device"]) == ("7.1.5", None, "name of cuda")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert told("cuda").keys() == on_cpu.keys() and told("cuda")["cuda"] == "13.0"
    backend("xpu", monkeypatch)
    monkeypatch.setattr(torch.version, "xpu", "20250302", raising=False)
    on_xpu = told("xpu:0")
    assert (on_xpu["xpu"], on_xpu["cuda"], on_xpu["device"]) == ("20250302", None, "name of xpu:0")
    assert provenance.device_name("cuda") == "cuda", "that of another machine"
    backend("mps", monkeypatch)
    assert told("mps")["device"] == f"{provenance.cpu_name()} (mps)" and told("mps").keys() == on_cpu.keys()
