"""FRePo on a GPU: are graphs the plain step, how fast is each way of computing it, and how exact?

    python -m benchmarks.speed.gpu --width 128 --out results/local/gpu

Every combination of plain steps or CUDA graphs, of contiguous or channels-last networks, and of float32 as it is, as
TF32, or with the features of the real batch in bfloat16. The windows of all of them take turns. Without --out nothing
is written. Exit status: 0; 1 where graphs give other values than plain steps, or a way of computing fails; 2 where the
request is wrong or there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from benchmarks.errors import UserError
from benchmarks.networks import Network, NetworkSpec
from benchmarks.speed import workload
from benchmarks.task import Task
from harness import record
from harness.files import write_texts
from harness.measure.clock import Clock
from harness.measure.nvml import driver_version
from methods import frepo
from methods._accelerator import WARM_UP
from methods.frepo import FRePo, FRePoConfig

PRECISIONS = ("ieee", "tf32", "bfloat16 real")
"""Of float32 products and convolutions; the last: ieee, but for the features of the real batch."""
CONVOLUTIONS = ((64, 128, 32), (128, 256, 16), (256, 512, 8))
"""Channels in and out, and side of the 3×3 convolutions whose fastest is the card's rate: two are those of
FRePo's network at width 128."""
STATE_STEPS = 50
"""Plain steps of a pool of one before errors are measured: the network is a trained one."""
AGREEMENT_STEPS, AGREEMENT_WIDTH, AGREEMENT = 40, 16, 1e-8
"""Steps and width in float64 over which graphs may differ from plain steps by this part of how far the images moved."""


@dataclass(frozen=True)
class Setting:
    """What is computed, and how long it is timed."""

    device: torch.device
    shape: str = "cifar"
    width: int = 128
    classes: int = 10
    ipc: int = 1
    batch: int = 1024
    images: int = 50_000
    """Real ones, resident on the device."""
    windows: int = 9
    seconds: float = 0.5
    """Of a window, at least."""
    maps: int = 1024
    """Of the convolutions whose fastest is the card's rate."""

    def spec(self, width: int | None = None) -> NetworkSpec:
        channels, *size = workload.SHAPES[self.shape]
        return NetworkSpec(
            "convnet_doubling", channels, (size[0], size[1]), self.classes, width=width or self.width, norm="batch"
        )


@dataclass(frozen=True)
class Arm:
    """A way of computing a step."""

    graph: bool
    channels_last: bool
    precision: str

    def __str__(self) -> str:
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{'graph' if self.graph else 'plain'}, {layout}, {self.precision}"

    def lay_out(self, network: Network) -> Network:
        kind = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(memory_format=kind)  # type: ignore[call-overload,no-any-return]

    def method(self, setting: Setting, task: Task, **config: Any) -> FRePo:
        """From the start, on the images of ``task`` and with its own generator."""

        def network(generator: torch.Generator) -> Network:
            return self.lay_out(task.network(generator))

        generator = torch.Generator().manual_seed(0)
        real = "bfloat16" if self.precision == "bfloat16 real" else None
        return FRePo(
            dataclasses.replace(task, network=network, generator=generator),
            FRePoConfig(batch_size=setting.batch, cuda_graph=self.graph, real_features_dtype=real, **config),  # type: ignore[arg-type]
            total_steps=500_000,
        )


ARMS = tuple(Arm(*values) for values in itertools.product((False, True), (False, True), PRECISIONS))


@dataclass(frozen=True)
class Timing:
    """Of one arm; a window counts as its seconds for one step."""

    window_seconds: list[float]
    steps_per_window: int
    flops_per_step: float
    peak_bytes: int | None

    @property
    def seconds(self) -> float:
        return statistics.median(self.window_seconds)

    @property
    def gflops(self) -> float:
        return self.flops_per_step / self.seconds / 1e9


def make_task(setting: Setting, width: int | None = None, dtype: torch.dtype = torch.float32) -> Task:
    """Random images and networks on the device."""
    spec = setting.spec(width)
    made = workload.task(spec, ipc=setting.ipc, images=setting.images, dtype=dtype)
    return dataclasses.replace(
        made,
        images=made.images.to(setting.device),
        labels=made.labels.to(setting.device),
        network=lambda generator: spec.build(generator, device=setting.device, dtype=dtype),
    )


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """In here float32 is what ``name`` says, and kernels give the same bits every time, as in a cell."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends], torch.backends.cudnn.deterministic
    for backend in backends:
        backend.fp32_precision = "tf32" if name == "tf32" else "ieee"
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        for backend, value in zip(backends, before[0], strict=True):
            backend.fp32_precision = value
        torch.backends.cudnn.deterministic = before[1]


def convolution_rates(setting: Setting, clock: Clock) -> dict[str, float]:
    """ieee, tf32, bfloat16 → GFLOP/s of the fastest convolution, forward, over both layouts, cuDNN free to choose."""
    found: dict[str, float] = {}
    searching, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        for name, layout in itertools.product(("ieee", "tf32", "bfloat16"), (False, True)):
            kind = torch.channels_last if layout else torch.contiguous_format
            options: Any = {"device": setting.device, "dtype": torch.bfloat16 if name == "bfloat16" else torch.float32}
            for channels, out, side in CONVOLUTIONS:
                images = torch.randn(setting.maps, channels, side, side, **options).to(memory_format=kind)
                weight = torch.randn(out, channels, 3, 3, **options).to(memory_format=kind)
                with precision(name), torch.no_grad():
                    torch.backends.cudnn.deterministic = False
                    call = _convolution(images, weight)
                    call()
                    begin = clock.read()
                    call()
                    count = _count(clock.read() - begin, setting.seconds / 10)
                    seconds = statistics.median(_window(call, count, clock) for _ in range(setting.windows))
                rate = 2 * setting.maps * side**2 * out * channels * 9 / seconds / 1e9
                found[name] = max(rate, found.get(name, 0.0))
    finally:
        torch.backends.cudnn.benchmark = searching
    return found


def _convolution(images: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    return lambda: F.conv2d(images, weight, padding=1)


def _count(once: float, seconds: float) -> int:
    """As many calls of ``once`` seconds as last ``seconds``."""
    return max(1, math.ceil(seconds / max(once, 1e-6)))


def _window(call: Callable[[], object], count: int, clock: Clock) -> float:
    """Seconds of one of ``count`` calls; the device is waited for at both ends."""
    begin = clock.read()
    for _ in range(count):
        call()
    return (clock.read() - begin) / count


def agreement(setting: Setting) -> float:
    """In float64: the largest difference of images and labels between graphs and plain steps by their largest move.

    Long enough for networks to be replaced, and for their successors to be trained by replays.
    """
    task = make_task(dataclasses.replace(setting, images=2048), AGREEMENT_WIDTH, torch.float64)
    with precision("ieee"):
        plain, graphed = (
            Arm(graph, False, "ieee").method(setting, task, pool_size=3, max_online_updates=3)
            for graph in (False, True)
        )
        start = [w.detach().clone() for w in (plain.images, plain.labels)]
        for _ in range(AGREEMENT_STEPS):
            plain.step(), graphed.step()
    ends = [[method.images.detach(), method.labels.detach()] for method in (plain, graphed)]
    worst = 0.0
    for begin, expected, found in zip(start, *ends, strict=True):
        worst = max(worst, float((found - expected).abs().max() / (expected - begin).abs().max()))
    return worst if math.isfinite(worst) else math.inf


def errors(setting: Setting, task: Task) -> dict[str, dict[str, float]]:
    """Layout and precision → relative errors against float64 of the same trained network, synthetic set and batch.

    Of the kernel loss, and of its gradient with respect to images and labels by its norm.
    """
    with precision("ieee"):
        method = Arm(False, False, "ieee").method(setting, task, pool_size=1)
        for _ in range(STATE_STEPS):
            method.step()
    real, classes = method.task.sample(setting.batch)

    def losses(network: Network, dtype: torch.dtype, real_dtype: str | None) -> list[Tensor]:
        leaves = [w.detach().to(dtype).requires_grad_() for w in (method.images, method.labels)]
        targets = frepo.centred_one_hot(classes, setting.classes, dtype)
        kernel, label = frepo.meta_losses(
            network, leaves[0], leaves[1], real.to(dtype), targets, ridge=1e-6, flip=True, real_dtype=real_dtype
        )
        return [kernel.detach(), *torch.autograd.grad(kernel + label, leaves)]

    def network(dtype: torch.dtype) -> Network:
        return copy.deepcopy(method.pool[0].network).to(dtype)

    expected, found = losses(network(torch.float64), torch.float64, None), {}
    for arm in ARMS:
        if not arm.graph:
            real_dtype = "bfloat16" if arm.precision == "bfloat16 real" else None
            with precision(arm.precision):
                values = losses(arm.lay_out(network(torch.float32)), torch.float32, real_dtype)
            relative = [float((v.double() - e).norm() / e.norm()) for v, e in zip(values, expected, strict=True)]
            names = ("kernel_loss", "image_gradient", "label_gradient")
            found[str(arm).removeprefix("plain, ")] = dict(zip(names, relative, strict=True))
    return found


def time_arms(setting: Setting, task: Task, clock: Clock) -> tuple[dict[Arm, Timing], dict[Arm, str]]:
    """The arms timed window by window in turns; and those that fail, plain ones tried first, with the reason."""
    methods: dict[Arm, FRePo] = {}
    failed: dict[Arm, str] = {}
    peaks: dict[Arm, int | None] = {}
    for arm in ARMS:
        try:
            with precision(arm.precision):
                if setting.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(setting.device)
                    before = torch.cuda.memory_allocated(setting.device)
                method = arm.method(setting, task)
                for _ in range(WARM_UP + 2):
                    method.step()
                clock.read()
            methods[arm] = method
            cuda = setting.device.type == "cuda"
            peaks[arm] = torch.cuda.max_memory_allocated(setting.device) - before if cuda else None
        except RuntimeError as error:
            failed[arm] = next(iter(str(error).splitlines()), type(error).__name__)
    counts, flops = {}, 0.0
    for arm, method in methods.items():
        flops = flops or workload.flops(method.step)
        with precision(arm.precision):
            counts[arm] = _count(_window(method.step, 3, clock), setting.seconds)
    samples: dict[Arm, list[float]] = {arm: [] for arm in methods}
    for repeat in range(setting.windows):
        for arm in list(methods) if repeat % 2 else list(methods)[::-1]:
            with precision(arm.precision):
                samples[arm].append(_window(methods[arm].step, counts[arm], clock))
    return {arm: Timing(samples[arm], counts[arm], flops, peaks[arm]) for arm in methods}, failed


METHOD_OF_MEASURING = (
    "A window is so many steps that it lasts {seconds} s, between two readings of a clock that waits for the device; "
    "{warm} steps before (capture included) and those that find the length are not timed. Median of {windows} windows "
    "for each way of computing, all taking turns, the order reversed every time; draws, transfers and replaced "
    "networks are in them. GFLOP: products, convolutions and solves of one step, counted operator by operator. "
    "Convolution rate: the fastest of {convolutions} 3×3 convolutions of {maps} maps, forward, over both layouts, "
    "chosen freely by cuDNN; for bfloat16 real that of ieee. Errors: against float64 on the same network (trained "
    "{state} steps), synthetic set and real batch. Images are random; steps use deterministic kernels chosen by "
    "heuristics, as cells do."
)


def report(setting: Setting) -> tuple[str, dict[str, Any], bool]:
    """Markdown, the same and more for JSON, and whether all is well."""
    clock, task = Clock(setting.device), make_task(setting)
    try:
        differ, reason = agreement(setting), ""
    except RuntimeError as error:
        differ, reason = math.inf, next(iter(str(error).splitlines()), type(error).__name__)
    rates = convolution_rates(setting, clock)
    found = errors(setting, task)
    timings, failed = time_arms(setting, task, clock)
    where = {
        "device": record.device_name(str(setting.device)),
        "driver": driver_version() if setting.device.type == "cuda" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    how = METHOD_OF_MEASURING.format(
        seconds=setting.seconds,
        warm=WARM_UP + 2,
        windows=setting.windows,
        convolutions=len(CONVOLUTIONS),
        maps=setting.maps,
        state=STATE_STEPS,
    )
    well = differ <= AGREEMENT
    lines = [
        f"FRePo, {setting.shape}, {setting.classes} classes, ipc {setting.ipc}, width {setting.width}, real batch "
        f"{setting.batch}, on {', '.join(f'{k} {v}' for k, v in where.items() if v)}.",
        "",
        f"Graphs against plain steps in float64, {AGREEMENT_STEPS} steps: {differ:.1e} of the largest move"
        f"{' (' + reason + ')' if reason else ''}: {'the same' if well else 'NOT THE SAME'}.",
        "",
        f"Convolution rates, GFLOP/s: {', '.join(f'{name} {rate:,.0f}' for name, rate in rates.items())}.",
        "",
        _table(timings, rates, found),
        *(f"\n{arm}: failed: {why}" for arm, why in failed.items()),
        "",
        how,
    ]
    content = {
        **where,
        "setting": {**asdict(setting), "device": str(setting.device)},
        "method_of_measuring": how,
        "agreement": differ if math.isfinite(differ) else reason,
        "convolution_gflops": rates,
        "errors": found,
        "arms": [{"arm": str(arm), **asdict(arm), **asdict(timing)} for arm, timing in timings.items()],
        "failed": {str(arm): why for arm, why in failed.items()},
    }
    return "\n".join(lines), content, well and not failed


def _table(timings: Mapping[Arm, Timing], rates: Mapping[str, float], found: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for arm, timing in timings.items():
        error = found[str(arm).partition(", ")[2]]
        peak = "–" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:,.0f}"
        rate = timing.gflops / rates["tf32" if arm.precision == "tf32" else "ieee"]
        spread = f"{1000 * min(timing.window_seconds):.2f}–{1000 * max(timing.window_seconds):.2f}"
        shown = f"{1000 * timing.seconds:.2f}", spread, f"{timing.gflops:,.0f}", f"{rate:.0%}", peak
        rows.append((str(arm), *shown, *(f"{error[name]:.1e}" for name in error)))
    headers = ["", "ms/step", "from–to", "GFLOP/s", "of convolution rate", "peak MiB"]
    headers += ["error of the loss", "of the image gradient", "of the label gradient"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=("left", *["right"] * 8))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.gpu",
        description="Time FRePo's step on a GPU in every way there is to compute it, and check what it gives.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N; cpu to see that everything runs")
    parser.add_argument("--width", type=int, default=128, metavar="N", help="of the network")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="of the random images")
    parser.add_argument("--ipc", type=int, default=1, metavar="N", help="synthetic images per class")
    parser.add_argument("--windows", type=int, default=9, metavar="N", help="timed for each way of computing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for gpu.md and gpu.json")
    parser.add_argument("--tiny", action="store_true", help="numbers without meaning, to see that everything runs")
    given = parser.parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in a cell
    try:
        for name in ("width", "classes", "ipc", "windows"):
            if getattr(given, name) < (2 if name == "classes" else 1):
                raise UserError(f"--{name} is too small: {getattr(given, name)}")
        setting = Setting(_device(given.device), "cifar", given.width, given.classes, given.ipc, windows=given.windows)
        if given.tiny:
            setting = Setting(setting.device, "digits", 4, 3, 1, batch=20, images=60, windows=2, seconds=0.0, maps=1)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
        text, content, well = report(setting)
        print(text)
        if given.out is not None:
            files = {"gpu.md": text + "\n", "gpu.json": json.dumps(content, indent=1) + "\n"}
            write_texts(files, given.out, "what was measured")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if well else 1


def _device(name: str) -> torch.device:
    """Raises UserError where there is no such device."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be cpu, cuda or cuda:N, not {name!r}") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cpu" and (device.type != "cuda" or (device.index or 0) >= count):
        raise UserError(f"no device {name} here; --device cpu --tiny only shows that everything runs")
    return device


if __name__ == "__main__":
    sys.exit(main())
