"""The speed suites still run, and what ours is compared with does the same work. Nothing here is timed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import methods
from benchmarks.networks import NetworkSpec
from benchmarks.speed import compare, machine, workload
from benchmarks.speed.plain_frepo import PlainFRePo
from methods.frepo import FRePo, FRePoConfig

ROOT = Path(__file__).parents[1]


def test_the_suites_run() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/speed", "--tiny", "--benchmark-disable", "--quiet"]
    ran = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


SPEC = NetworkSpec("convnet_doubling", 3, (8, 8), 3, width=4, depth=2, norm="batch")
CONFIG = FRePoConfig(lr=0.01, pool_size=3, max_online_updates=3, batch_size=30)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, use_flip=False, scale_label=False),
        replace(CONFIG, learn_label=False),
        replace(CONFIG, online_batch_size=4),
    ],
    ids=["paper", "no flip", "fixed labels", "few online"],
)
def test_plain_frepo_is_frepo(config: FRePoConfig) -> None:
    """Long enough for networks of the pool to be replaced."""
    ours, plain = (
        cls(workload.task(SPEC, ipc=2, images=60, dtype=torch.float64), config, 10) for cls in (FRePo, PlainFRePo)
    )
    assert isinstance(ours, FRePo) and isinstance(plain, PlainFRePo)
    replaced = 0
    start = ours.images.detach().clone()
    for _ in range(12):
        losses = ours.step()
        replaced += "online_loss" not in losses
        torch.testing.assert_close(plain.step(), losses["loss"], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plain.learned, [ours.images, ours.labels], rtol=1e-9, atol=1e-9)
    assert replaced and not torch.equal(ours.images, start)
    assert torch.equal(plain.task.generator.get_state(), ours.task.generator.get_state())


@pytest.mark.parametrize("method", ["dsa", "dm"])
@pytest.mark.parametrize("ipc", [1, 2])
def test_plain_matching_is_matching(method: str, ipc: int) -> None:
    """The same images and losses in float64 over steps that share the random draws, and as many draws."""
    cls = methods.get(method)
    spec = NetworkSpec("convnet", 1, (8, 8), 3, width=4)
    config = cls.Config(**{**compare.SHORTER.get(method, {}), "batch_real": 40})
    tasks = [workload.task(spec, ipc=ipc, images=300, dtype=torch.float64) for _ in range(2)]
    ours, plain = cls(tasks[0], config, 3), compare.PLAIN[method](tasks[1], config, 3)
    start = ours.synthetic().images
    for _ in range(3):
        (loss,) = ours.step().values()
        torch.testing.assert_close(plain.step(), loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(plain.images.detach(), ours.synthetic().images, rtol=0, atol=1e-10)
    assert (ours.synthetic().images - start).abs().max() > 1e-6
    assert torch.equal(tasks[0].generator.get_state(), tasks[1].generator.get_state())


def test_plain_frepo_has_one_network() -> None:
    for spec in (replace(SPEC, norm="none"), replace(SPEC, name="convnet")):
        with pytest.raises(ValueError, match="one network"):
            PlainFRePo(workload.task(spec, ipc=1, images=60), CONFIG, 1)


class Ticks:
    """A clock that moves by the next of ``seconds`` at every second reading: the end of what is timed."""

    def __init__(self, seconds: list[float]) -> None:
        self.time, self.seconds, self.ends = 0.0, itertools.cycle(seconds), itertools.cycle([False, True])

    def __call__(self) -> float:
        self.time += next(self.seconds) if next(self.ends) else 0.0
        return self.time


def test_ours_and_plain_take_turns() -> None:
    """Of the calls only every fourth and the one after it are ours: who is first changes every time."""
    setting = compare.Setting("frepo", 2, 1, "digits", 4)
    counted, first = [1.0, 1.0], [8.0, 2.0] * compare.WARMUP
    timing = compare.measure(
        setting, 4, config={"batch_size": 20, "pool_size": 2}, now=Ticks([*counted, *first, *[8.0, 2.0, 2.0, 8.0] * 2])
    )
    assert (timing.plain, timing.ours, timing.ratio) == (8.0, 2.0, 0.25)
    assert timing.flops > 0
    shown = compare.table([timing, replace(timing, ours=8.0)], machine.Rates(sgemm=2.0, convolution=1e-9))
    row = [cell.strip() for cell in shown.splitlines()[2].split("|")[1:-1]]
    assert row[:-2] == ["frepo", "2", "1", "4", "digits", "8000.0", "2000.0", "0.25"]
    assert "frepo, 2 synthetic images: ours / plain 0.50 (geometric mean of 2)" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "fripo"], "did you mean 'frepo'"),
        (["--widths", "8,x"], "--widths must be whole numbers"),
        (["--widths", "0"], "--widths must be whole numbers"),
        (["--repeats", "0"], "--repeats must be at least 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_the_rates_of_a_machine_are_operations_by_seconds() -> None:
    """Every call takes two seconds: 2·side³ operations, and of the larger convolution 2·(batch·side²)·(out·in·9)."""
    found = machine.rates(scale=32, now=Ticks([2.0]))
    assert found.sgemm == 2 * 64**3 / 2 / 1e9
    assert found.convolution == 2 * (2 * 32**2) * (128 * 64 * 9) / 2 / 1e9


def test_flops_are_those_of_products_and_convolutions_both_ways() -> None:
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    forward = 2 * (2 * 8 * 8) * (5 * 3 * 9)

    def call() -> None:
        out = torch.nn.functional.conv2d(images, weight, padding=1).relu().flatten(1)
        torch.autograd.grad((out @ out.T).sum(), [images, weight])

    product = 2 * 2 * 2 * 5 * 8 * 8
    assert workload.flops(call) == 3 * forward + 3 * product
