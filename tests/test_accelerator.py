"""CUDA graphs without a GPU: a stand-in for ``torch.cuda`` that records operators and replays them, as a graph does."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.networks import NetworkSpec
from benchmarks.speed import gpu, workload
from benchmarks.task import generator_for
from harness.measure.counters import count, tensors_in
from methods import _accelerator, frepo
from methods._accelerator import WARM_UP, Graph, Graphs
from methods.frepo import FRePo, FRePoConfig

# --- the stand-in -----------------------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators with the very tensors that they were called with. Recording leaves no trace, as capturing does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Of the base class: True would import the compiler, for seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = dict(kwargs)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            named[argument.name] = value
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for tensor in tensors_in([named[name] for name in written]):
            self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def rewind(self) -> None:
        for tensor, value in self.before.values():
            tensor.detach().copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_in((out,)), tensors_in((again,)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class FakeStream:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited_for: list[FakeStream] = []

    def wait_stream(self, other: FakeStream) -> None:
        self.waited_for.append(other)


class FakeCuda:
    """As much of ``torch.cuda`` as ``_accelerator`` uses; the work is done on the CPU."""

    def __init__(self) -> None:
        self.default = FakeStream(torch.device("cpu"))
        self.now = self.default
        self.captures: list[tuple[object, FakeStream]] = []
        self.replays = 0

    Stream = FakeStream

    def current_stream(self, device: torch.device) -> FakeStream:
        return self.now

    def graph_pool_handle(self) -> object:
        return object()

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.now, before = stream, self.now
        yield
        self.now = before

    def CUDAGraph(self) -> SimpleNamespace:
        return SimpleNamespace()

    @contextlib.contextmanager
    def graph(self, graph: SimpleNamespace, *, pool: object, stream: FakeStream) -> Iterator[None]:
        tape = Tape()
        with self.stream(stream), tape:
            yield
        tape.rewind()
        self.captures.append((pool, stream))

        def replay() -> None:
            self.replays += 1
            tape.replay()

        graph.replay = replay


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(_accelerator, "torch", FakeTorch(fake))
    return fake


class FakeTorch:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


# --- any function -----------------------------------------------------------------------------------------------------


@dataclass
class Box:
    value: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.value]


def box(*values: float) -> Box:
    return Box(torch.tensor(values, dtype=torch.float64))


def test_a_graph_does_what_its_function_does(cuda: FakeCuda) -> None:
    """To whichever state, with other inputs every time; it is captured once, and one capture is no call."""
    total = torch.zeros((), dtype=torch.float64)

    def function(state: Box, add: Tensor, rate: Any) -> dict[str, Tensor]:
        state.value.mul_(rate).add_(add)
        total.add_(state.value.sum())
        return {"sum": state.value.sum()}

    graph = Graphs(box(0, 0), Box.tensors).capture(function)
    states, plain = [box(1, 2), box(3, 4)], [box(1, 2), box(3, 4)]
    kept, sums, calls = [], 0.0, WARM_UP + 5
    for i in range(calls):
        add, rate = torch.tensor([i, 1.0], dtype=torch.float64), 0.5 + i
        kept.append(graph(states[i % 2], add, rate)["sum"])
        expected = plain[i % 2].value * rate + add
        plain[i % 2] = Box(expected)
        sums += float(expected.sum())
        assert torch.equal(states[i % 2].value, expected) and float(kept[-1]) == float(expected.sum())
        assert float(total) == sums
        assert cuda.replays == max(0, i + 1 - WARM_UP)
    assert len(cuda.captures) == 1
    assert len({value.data_ptr() for value in kept}) == calls  # results are not those of the next call


def test_what_python_does_in_a_function_is_not_replayed(cuda: FakeCuda) -> None:
    """The stand-in is none that calls the function again: a number that bypasses the inputs would be seen."""
    rate = 1.0
    graph = Graphs(box(0), Box.tensors).capture(lambda state: {"value": (state.value * rate).sum()})
    for _ in range(WARM_UP + 1):
        graph(box(1))
    rate = 7.0
    assert float(graph(box(1))["value"]) == 1.0
    assert float(Graph(graph.graphs, graph.function)(box(1))["value"]) == 7.0


def test_graphs_share_memory_and_the_stream_that_was_warmed_up(cuda: FakeCuda) -> None:
    graphs, seen = Graphs(box(0), Box.tensors), []

    def function(state: Box) -> dict[str, Tensor]:
        seen.append(cuda.now)
        return {"value": state.value.sum()}

    for graph in (graphs.capture(function), graphs.capture(function)):
        for _ in range(WARM_UP + 2):
            graph(box(1))
    assert seen == [graphs.stream] * 2 * (WARM_UP + 1)
    assert cuda.captures == [(graphs.pool, graphs.stream)] * 2
    assert graphs.stream.waited_for == [cuda.default] * 2 * WARM_UP
    assert cuda.default.waited_for == [graphs.stream] * 2 * WARM_UP


def test_who_counts_operators_sees_them(cuda: FakeCuda) -> None:
    graph = Graphs(box(0, 0), Box.tensors).capture(lambda state: {"value": state.value @ state.value})
    for _ in range(WARM_UP + 1):
        graph(box(1, 2))
    assert workload.flops(lambda: graph(box(1, 2))) == 4


# --- FRePo ------------------------------------------------------------------------------------------------------------

SPEC = NetworkSpec("convnet_doubling", 3, (8, 8), 3, width=4, depth=2, norm="batch")
CONFIG = FRePoConfig(lr=0.01, pool_size=3, max_online_updates=3, batch_size=30)
STEPS = 24


def make(config: FRePoConfig, spec: NetworkSpec = SPEC, total: int = STEPS) -> FRePo:
    return FRePo(workload.task(spec, ipc=2, images=60, dtype=torch.float64), config, total)


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (CONFIG, SPEC),
        (replace(CONFIG, learn_label=False, use_flip=False), SPEC),
        (replace(CONFIG, online_batch_size=4), SPEC),
        (CONFIG, replace(SPEC, name="convnet", norm="instance")),
    ],
    ids=["paper", "fixed labels, no flip", "few online", "convnet"],
)
def test_graphs_give_the_values_of_the_plain_steps(config: FRePoConfig, spec: NetworkSpec, cuda: FakeCuda) -> None:
    """Over replays, replaced networks, and a state that one hands to the other in both directions."""
    plain, graphed = make(config, spec), make(config, spec)
    graphed.capture()
    replaced = 0
    for step in range(STEPS):
        expected, found = plain.step(), graphed.step()
        assert expected.keys() == found.keys()
        replaced += "online_loss" not in found
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(graphed.images, plain.images, rtol=0, atol=1e-10)
        torch.testing.assert_close(graphed.labels, plain.labels, rtol=0, atol=1e-10)
        if step == STEPS // 2:
            states = plain.state_dict(), graphed.state_dict()
            plain.load_state_dict(states[1])
            graphed.load_state_dict(states[0])
    for ours, theirs in zip(graphed.pool, plain.pool, strict=True):
        assert ours.counter == theirs.counter
        torch.testing.assert_close(ours.tensors(), theirs.tensors(), rtol=1e-9, atol=1e-11)
    assert torch.equal(graphed.task.generator.get_state(), plain.task.generator.get_state())
    assert replaced > 1 and len(cuda.captures) == 2 and cuda.replays > STEPS


def test_resuming_with_graphs_is_bit_for_bit(cuda: FakeCuda) -> None:
    straight, resumed = make(CONFIG), make(CONFIG)
    for method in (straight, resumed):
        method.capture()
        for _ in range(8):
            method.step()
    state = straight.state_dict()
    resumed.load_state_dict(state)
    for _ in range(8):
        straight.step(), resumed.step()
    ours, theirs = (list(_tensors(method.state_dict())) for method in (straight, resumed))
    assert len(ours) == len(theirs) > 50 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_counters_are_those_of_the_same_step_without_graphs(cuda: FakeCuda) -> None:
    def graphed() -> FRePo:
        method = make(CONFIG)
        method.capture()
        return method

    plain, found = (count(how, torch.device("cpu")) for how in (lambda: make(CONFIG), graphed))
    assert (found.flops, found.saved_bytes) == (plain.flops, plain.saved_bytes)


class Waiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what cannot be captured: the host, or memory of it, comes into play."""

    SYNCHRONISES = frozenset(
        {"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "unique", "bincount", "repeat_interleave"}
        | {"_linalg_check_errors", "linalg_eigh", "_linalg_eigh", "_linalg_svd", "linalg_inv_ex", "pin_memory"}
    )

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        devices = {str(tensor.device.type) for tensor in tensors_in((*args, *kwargs.values(), out))}
        assert name not in self.SYNCHRONISES, f"{func} waits for the device"
        assert devices <= {"meta"}, f"{func} works on {devices}"
        if name == "index":
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), f"{func}: of a mask"
        return out


@pytest.fixture
def meta_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam takes its fused path on this device as on a GPU."""
    optimiser = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimiser, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(importlib.import_module("torch.optim.adam"), "_get_capturable_supported_devices", _meta)


def _meta(supports_xla: bool = True) -> list[str]:
    return ["meta"]


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, name="convnet", norm="instance")], ids=lambda spec: spec.name)
def test_nothing_in_a_graph_waits_for_the_device_or_touches_the_host(spec: NetworkSpec, meta_optimisers: None) -> None:
    """On tensors of a device that is not the CPU and has no values to wait for."""
    network = spec.build(generator_for("network"), device="meta")
    member = frepo.Member(network, frepo.adam(network, 1e-3, capturable=True), 0)
    member.tensors()
    empty = {"device": "meta"}
    images, labels = torch.empty(6, 3, 8, 8, **empty).requires_grad_(), torch.empty(6, 3, **empty).requires_grad_()
    moments = [
        (torch.empty_like(w, requires_grad=False), torch.empty_like(w, requires_grad=False)) for w in (images, labels)
    ]
    numbers = [torch.empty((), dtype=torch.float64, **empty) for _ in range(2)]
    real = torch.empty(30, 3, 8, 8, **empty), torch.empty(30, 3, **empty)
    with Waiting():
        options = {"images": images, "labels": labels, "moments": moments, "ridge": 1e-6, "flip": True}
        frepo.distil(member, *real, *numbers, **options)
        frepo.train(member, images.detach(), labels.detach())


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(3),
        lambda x: x.to("cpu"),
        lambda x: torch.linalg.cholesky(x.outer(x)),
        lambda x: x.nonzero(),
    ],
)
def test_waiting_is_seen(call: Any) -> None:
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), Waiting():
        call(torch.empty(3, device="meta"))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_gpu_command_runs_through_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "new" / "gpu.md").read_text() == shown
    found = json.loads((tmp_path / "new" / "gpu.json").read_text())
    assert [row["arm"] for row in found["arms"]] == [str(arm) for arm in gpu.ARMS] and found["failed"] == {}
    assert found["agreement"] == 0.0  # on a CPU there are no graphs
    assert found["torch"] == torch.__version__ and found["driver"] is None
    assert all(len(row["window_seconds"]) == 2 and row["flops_per_step"] > 0 for row in found["arms"])
    exact, rounded = (found["errors"][f"contiguous, {name}"] for name in ("ieee", "bfloat16 real"))
    assert exact["kernel_loss"] < 1e-4 < rounded["kernel_loss"] < 0.3
    assert sum(line.startswith("| graph, channels-last") for line in shown.splitlines()) == len(gpu.PRECISIONS)


def test_graphs_that_give_other_values_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "agreement", lambda setting: 1e-3)
    monkeypatch.setattr(gpu, "time_arms", lambda *_: ({}, {gpu.ARMS[-1]: "operation not permitted"}))
    setting = gpu.Setting(torch.device("cpu"), "digits", 4, 3, 1, batch=20, images=60, windows=1, seconds=0.0, maps=1)
    text, content, well = gpu.report(setting)
    assert "NOT THE SAME" in text and "graph, channels-last, bfloat16 real: failed: operation not permitted" in text
    assert not well and content["failed"]


def test_agreement_sees_a_graph_that_forgets_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = gpu.Setting(torch.device("cpu"), "digits", 4, 3, 1, batch=20, images=60)
    step = FRePo.step

    def forgetful(method: FRePo) -> dict[str, Tensor]:
        if method.config.cuda_graph and method.updates == gpu.AGREEMENT_STEPS - 1:
            return {}
        return step(method)

    monkeypatch.setattr(FRePo, "step", forgetful)
    assert gpu.agreement(setting) > gpu.AGREEMENT


@pytest.mark.parametrize("arguments", [[], ["--device", "cuda:7"], ["--device", "abacus"], ["--width", "0"]])
def test_without_a_gpu_it_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available() and not arguments:
        pytest.skip("there is a GPU")
    assert gpu.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_precision_is_what_it_was_afterwards() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    with gpu.precision("tf32"):
        assert conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "tf32"
        with gpu.precision("bfloat16 real"):
            assert conv.fp32_precision == "ieee"
    assert conv.fp32_precision == before
