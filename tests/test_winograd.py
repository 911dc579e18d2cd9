"""The kernels in C against torch's operators, and where they are used."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from benchmarks import winograd
from benchmarks.errors import UserError
from benchmarks.layers import conv_norm_relu_pool, conv_relu_pool
from benchmarks.networks import AveragePool, Blocks, NetworkSpec
from benchmarks.task import generator_for
from harness.measure.counters import _Counter

needs_compiler = pytest.mark.skipif(winograd.library() is None, reason="no C compiler")
EPS = torch.finfo(torch.float32).eps
# Images, channels in and out, height, width, padding: few channels or many, whole vectors of them or not, more tiles
# than pass together, and images for more than one thread or fewer than there are.
SHAPES = [
    (1, 1, 1, 8, 8, 3),
    (3, 3, 5, 8, 6, 1),
    (2, 4, 17, 4, 4, 2),
    (5, 1, 16, 28, 28, 3),
    (5, 5, 7, 6, 4, 1),
    (7, 32, 64, 16, 16, 1),
    (3, 20, 12, 8, 10, 1),
    (2, 33, 65, 4, 6, 1),
    (2, 256, 20, 2, 2, 1),
]


def torchs(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    return F.avg_pool2d(F.relu(F.conv2d(x, weight, bias, padding=padding)), 2)


def torchs_with_norm(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, padding: int) -> Tensor:
    y = F.group_norm(F.conv2d(x, weight, bias, padding=padding), len(scale), scale, shift, 1e-5)
    return F.avg_pool2d(F.relu(y), 2)


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias, float64."""
    count, channels, out, height, width, _ = shape
    generator = generator_for("winograd", *shape)
    x = torch.randn(count, channels, height, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(out, channels, 3, 3, dtype=torch.float64, generator=generator) / (9 * channels) ** 0.5
    return x, weight, torch.randn(out, dtype=torch.float64, generator=generator) / 4


def everything(
    function: Callable[..., Tensor], leaves: Sequence[Tensor], padding: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The value and all gradients."""
    leaves = tuple(leaf.to(dtype).requires_grad_() for leaf in leaves)
    y = function(*leaves, padding=padding)
    gradient = torch.randn(y.shape, dtype=torch.float64, generator=generator_for("gradient")).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_torchs_to_rounding(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    x, weight, bias = inputs(shape)
    assert winograd.takes(x.float(), weight.float(), bias.float(), shape[-1])
    leaves = (x.contiguous(memory_format=memory_format), weight.contiguous(memory_format=memory_format), bias)
    compare(conv_relu_pool, torchs, leaves, shape[-1])


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_instance_norm_too(shape: tuple[int, ...]) -> None:
    channels = shape[2]
    generator = generator_for("norm", *shape)
    norm = [torch.randn(channels, dtype=torch.float64, generator=generator) for _ in range(2)]
    compare(functools.partial(conv_norm_relu_pool, eps=1e-5), torchs_with_norm, (*inputs(shape), *norm), shape[-1])


def compare(ours: Callable[..., Tensor], torchs: Callable[..., Tensor], leaves: Sequence[Tensor], padding: int) -> None:
    """Value and gradients by their errors: at most twice torch's, or at the level of rounding."""
    exact = everything(torchs, leaves, padding, torch.float64)
    # The bias before a norm has no gradient but what is rounded off: its size is that of its neighbour's.
    sizes = [max(1.0, *(float(one.norm()) for one in exact[max(i - 1, 0) : i + 1])) for i in range(len(exact))]
    found = (everything(function, leaves, padding) for function in (ours, torchs))
    for truth, size, own, usual in zip(exact, sizes, *found, strict=True):
        assert own.shape == truth.shape and own.dtype == torch.float32
        error, expected = (float((one - truth).norm()) / size for one in (own, usual))
        assert error <= max(2 * expected, 16 * EPS), (error, expected)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_number_of_threads_changes_sums_over_images_alone(
    shape: tuple[int, ...], threads: Callable[[int], None]
) -> None:
    one, again, three = [], [], []
    for found, count in ((one, 1), (again, 1), (three, 3)):
        threads(count)
        found += everything(conv_relu_pool, inputs(shape), shape[-1])
    assert all(map(torch.equal, one, again))
    assert all(map(torch.equal, one[:2], three[:2]))
    for left, right in zip(one, three, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("channels", [2, 8, 20])
def test_what_is_exactly_zero_stays_so(channels: int) -> None:
    """ReLU has no slope there, and Adam makes a step of whatever is not 0, rounding errors included."""
    generator = generator_for("zeros", channels)
    x = torch.zeros(6, channels, 8, 8)
    for image in x:  # one entry each, so that most windows, and most pairs of channels, have nothing in common
        place = [int(torch.randint(size, (), generator=generator)) for size in image.shape]
        image[tuple(place)] = 1 + torch.rand((), generator=generator)
    weight, bias = torch.randn(5, channels, 3, 3, generator=generator), torch.zeros(5)
    found, expected = (everything(f, (x, weight, bias), 1) for f in (conv_relu_pool, torchs))
    assert 0 < sum(int((one == 0).sum()) for one in expected) < sum(one.numel() for one in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours == 0, theirs == 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("channels", [3, 8])
def test_what_is_not_a_number_is_passed_on(channels: int) -> None:
    x, weight, bias = inputs((2, channels, 4, 8, 8, 1))
    x[1, 0, 4, 4] = torch.nan
    found = everything(conv_relu_pool, (x, weight, bias), 1)
    assert found[0][1].isnan().any() and not found[0][0].isnan().any() and found[2].isnan().any()


@needs_compiler
@pytest.mark.parametrize("with_norm", [False, True])
def test_a_second_derivative_is_torchs(with_norm: bool) -> None:
    leaves = [*inputs((3, 8, 6, 6, 4, 1)), *([torch.linspace(1, 2, 6), torch.linspace(0, 1, 6)] if with_norm else [])]
    leaves = [leaf.float().requires_grad_() for leaf in leaves]
    results = []
    functions = [functools.partial(conv_norm_relu_pool, eps=1e-5), torchs_with_norm]
    for function in functions if with_norm else [conv_relu_pool, torchs]:
        y = function(*leaves, padding=1)  # type: ignore[operator]
        first = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(torch.stack([one.sin().sum() for one in first]).sum(), leaves))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@needs_compiler
@pytest.mark.parametrize("wanted", [(0,), (1, 2), ()])
def test_only_the_gradients_that_are_wanted_are_computed(
    wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    call = winograd._call
    monkeypatch.setattr(winograd, "_call", lambda name, *rest: (called.append(name), call(name, *rest)))
    leaves = [leaf.float() for leaf in inputs((2, 8, 6, 6, 4, 1))]
    for i in wanted:
        leaves[i].requires_grad_()
    y = conv_relu_pool(*leaves, 1)
    if wanted:
        y.sum().backward()
    assert called == ["convolve", *{0: ["input_gradient"], 1: ["weight_gradient"]}.get((*wanted, -1)[0], [])]


@needs_compiler
@pytest.mark.parametrize(
    ("name", "norm"), [("convnet_doubling", "batch"), ("convnet", "instance"), ("convnet", "none")]
)
def test_networks_use_them_and_give_the_same(name: Any, norm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NetworkSpec(name, 3, (32, 32), 10, width=8, norm=norm).build(generator_for("network"))
    x = torch.randn(4, 3, 32, 32, generator=generator_for("x"))
    called: list[tuple[str, int]] = []
    call = winograd._call
    monkeypatch.setattr(
        winograd, "_call", lambda name, s, *rest: (called.append((name, s.threads)), call(name, s, *rest))
    )
    network.eval()
    with torch.no_grad():
        ours = network(x)
        assert called.count(("convolve", torch.get_num_threads())) == 3
        called.clear()
        monkeypatch.setattr(winograd, "library", lambda: None)
        torch.testing.assert_close(ours, network(x), rtol=1e-4, atol=1e-5)
    assert not called


@needs_compiler
@pytest.mark.parametrize("wanted", ["parameters", "images"])
@pytest.mark.parametrize(("name", "norm"), [("convnet_doubling", "batch"), ("convnet", "instance")])
def test_networks_train_with_them(name: Any, norm: Any, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = NetworkSpec(name, 3, (16, 16), 10, width=8, norm=norm).build(generator_for("network"))
    network.requires_grad_(wanted == "parameters")
    x = torch.randn(6, 3, 16, 16, generator=generator_for("x")).requires_grad_(wanted == "images")
    leaves = list(network.parameters()) if wanted == "parameters" else [x]
    called: list[str] = []
    call = winograd._call
    monkeypatch.setattr(winograd, "_call", lambda name, *rest: (called.append(name), call(name, *rest)))
    ours = torch.autograd.grad(network(x).square().sum(), leaves)
    assert called.count("convolve") == 2 and called.count("norm_relu_pool") == (2 if norm == "instance" else 0)
    assert called.count("weight_gradient") == (2 if wanted == "parameters" else 0)
    assert called.count("input_gradient") == (1 if wanted == "parameters" else 2)
    monkeypatch.setattr(winograd, "library", lambda: None)
    for own, theirs in zip(ours, torch.autograd.grad(network(x).square().sum(), leaves), strict=True):
        assert float((own - theirs).norm()) <= 1e-4 * max(float(theirs.norm()), 1)


@needs_compiler
def test_parameters_used_twice_have_one_gradient() -> None:
    conv, norm = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(8, 8)
    blocks = Blocks(*2 * [conv, norm, nn.ReLU(), AveragePool()])
    x = torch.randn(3, 8, 8, 8, generator=generator_for("x"))
    once, twice = (
        torch.autograd.grad(blocks(x).pow(2).sum(), list(blocks.parameters()), create_graph=create)
        for create in (False, True)
    )
    for one, other in zip(once, twice, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "library", lambda: SimpleNamespace(convolve=lambda *_: 1))
    with pytest.raises(MemoryError, match="4 images"):
        conv_relu_pool(torch.ones(4, 8, 4, 4), torch.ones(8, 8, 3, 3), torch.ones(8), 1)


def test_few_is_the_same_number_in_both_languages() -> None:
    assert re.findall(r"FEW = (\d+)", winograd.SOURCE.read_text()) == [str(winograd.FEW)]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel may be called."""

    def refuse(*_: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(winograd, "_call", refuse)


@needs_compiler
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("other", ["float64", "mode", "autocast", "odd", "both derivatives"])
def test_where_torchs_operators_are_used(other: str, norm: bool, refused: None) -> None:
    blocks = Blocks(nn.Conv2d(2, 3, 3, padding=1), *([nn.GroupNorm(3, 3)] if norm else []), nn.ReLU(), AveragePool())
    x = torch.randn(2, 2, 5 if other == "odd" else 4, 4)
    match other:
        case "float64":
            blocks.double()(x.double())
        case "mode":
            with _Counter("cpu"):
                blocks(x)
        case "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                blocks(x)
        case "both derivatives":
            blocks(x.requires_grad_())
        case _:
            blocks(x)


UNUSUAL: list[dict[str, Any]] = [
    {"kernel_size": 5, "padding": 2},
    {"stride": 2},
    {"dilation": 2},
    {"groups": 2},
    {"bias": False},
    {"padding": "same"},
    {"padding": (1, 3)},
    {"padding": 2},
    {"padding": 0},
    {"padding_mode": "circular"},
]


@needs_compiler
@pytest.mark.parametrize("settings", UNUSUAL, ids=str)
def test_other_convolutions_are_left_to_torch(settings: dict[str, Any], refused: None) -> None:
    conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **settings})
    layers = conv, nn.ReLU(), AveragePool()
    x = torch.randn(2, 8, 8, 8, generator=generator_for("x"))
    torch.testing.assert_close(Blocks(*layers)(x), nn.Sequential(*layers)(x))


@needs_compiler
def test_groups_and_shapes_that_do_not_fit_are_left_to_torch(refused: None) -> None:
    norm = nn.GroupNorm(2, 4)
    Blocks(nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), AveragePool())(torch.randn(1, 2, 4, 4))
    with pytest.raises(RuntimeError, match="channels"):
        conv_relu_pool(torch.randn(2, 7, 4, 4), torch.randn(5, 8, 3, 3), torch.randn(5), 1)
    with pytest.raises(RuntimeError, match="bias"):
        conv_relu_pool(torch.randn(2, 8, 4, 4), torch.randn(5, 8, 3, 3), torch.randn(2), 1)
    assert Blocks(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), AveragePool())(torch.randn(0, 8, 4, 4)).shape[0] == 0
    for wrong in (nn.GroupNorm(2, 2), nn.GroupNorm(4, 4).double()):
        with pytest.raises(RuntimeError, match=r"Expected|dtype"):
            Blocks(nn.Conv2d(2, 4, 3, padding=1), wrong, nn.ReLU(), AveragePool())(torch.randn(1, 2, 4, 4))


@needs_compiler
def test_tensors_without_numbers_in_memory_are_left_to_torch() -> None:
    x, weight, bias = (leaf.float() for leaf in inputs((2, 8, 4, 4, 4, 1)))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert winograd.takes(x, weight, bias, 1)
    assert not winograd.takes(fake, weight, bias, 1)
    assert not winograd.takes(torch._neg_view(x), weight, bias, 1)


@needs_compiler
def test_memory_layouts_and_default_dtypes_do_not_matter() -> None:
    x, weight, bias = (leaf.float() for leaf in inputs((4, 8, 6, 8, 6, 1)))
    strided = x[..., None].expand(-1, -1, -1, -1, 3)[..., 1].transpose(2, 3).contiguous().transpose(2, 3)[::2]
    every_other = torch.stack([bias, bias], 1)[:, 0]
    torch.set_default_dtype(torch.float64)
    try:
        found = everything(conv_relu_pool, (strided, weight, every_other), 1)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, everything(torchs, (x[::2], weight, bias), 1), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def in_a_process(code: str, **environment: str) -> str:
    variables = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


TAKES = """
import torch
from benchmarks import winograd
print(winograd.takes(torch.ones(1, 8, 4, 4), torch.ones(8, 8, 3, 3), torch.ones(8), 1))
"""


def test_without_a_compiler_torchs_operators_are_used() -> None:
    assert in_a_process(TAKES, FREPO_BENCH_CC="") == "False"


@needs_compiler
def test_there_is_one_openmp_in_the_process(tmp_path: Path) -> None:
    """torch's, whichever others were there before; a second pool of threads would fight with it for the processor."""
    code = "import sklearn.ensemble" + TAKES
    assert in_a_process(code, FREPO_BENCH_CACHE=str(tmp_path)).startswith("True")
    (made,) = (tmp_path / "compiled").iterdir()
    linked = subprocess.run(["readelf", "-d", made], capture_output=True, text=True, check=True).stdout
    (own,) = (Path(torch.__file__).parent / "lib").glob("libgomp*")
    name = subprocess.run(["readelf", "-d", own], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"NEEDED.*\[(lib\w*omp\S*)\]", linked) == re.findall(r"SONAME.*\[(\S+)\]", name)


@needs_compiler
def test_it_is_compiled_once(tmp_path: Path) -> None:
    """By a compiler that leaves a mark every time."""
    compiler, marks = tmp_path / "mycc", tmp_path / "marks"
    compiler.write_text(f'#!/bin/sh\necho mark >> {marks}\nexec {shutil.which("cc")} "$@"\n')
    compiler.chmod(0o755)
    for _ in range(2):
        assert in_a_process(TAKES, FREPO_BENCH_CC=str(compiler), FREPO_BENCH_CACHE=str(tmp_path / "c")) == "True"
    assert marks.read_text().splitlines() == ["mark"]
    (made,) = (tmp_path / "c" / "compiled").iterdir()
    assert made.name.startswith("winograd-")


@pytest.mark.parametrize(
    ("script", "reason"),
    [(None, "not found"), ("echo no such flag >&2; exit 1", "no such flag"), ("exit 0", "No such")],
)
def test_a_compiler_that_was_asked_for_and_fails(
    script: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken-cc"
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("FREPO_BENCH_CC", str(compiler))
    with pytest.raises(UserError, match=f"(?s)FREPO_BENCH_CC={compiler} .*{reason}.*unset it") as error:
        winograd.library.__wrapped__()
    assert "\n" not in str(error.value)


def test_a_run_with_such_a_compiler_does_not_begin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.run", "--methods", "random_real", "--dataset", "digits"]
    variables = {**os.environ, "FREPO_BENCH_CC": "/nowhere/cc"}
    ended = subprocess.run([*command, "--output", str(tmp_path)], env=variables, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "/nowhere/cc" in ended.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_no_compiler_and_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FREPO_BENCH_CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert winograd.library.__wrapped__() is None
