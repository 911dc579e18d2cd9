"""The speed suites still run, and what ours is compared with does the same work. Nothing here is timed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import methods
from benchmarks.networks import NetworkSpec
from benchmarks.speed import compare, machine, reported, workload
from benchmarks.speed.plain_frepo import PlainFRePo
from benchmarks.speed.plain_unroll import PlainBPTT, PlainMTT
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


UNROLLED: dict[str, dict[str, Any]] = {
    "mtt": {
        "syn_steps": 3,
        "num_experts": 2,
        "train_epochs": 3,
        "max_start_epoch": 2,
        "expert_epochs": 2,
        "steps_per_epoch": 5,
        "lr_lr": 1e-3,
    },
    "bptt": {"unroll": 3, "batch_size": 50},
}


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("method", UNROLLED)
def test_plain_unrolling_is_unrolling(method: str, rematerialize: bool) -> None:
    """The same images, step sizes and losses in float64 over steps that share the draws, and as many draws."""
    cls = methods.get(method)
    spec = NetworkSpec("convnet", 1, (8, 8), 3, width=4)
    config = cls.Config(**UNROLLED[method], rematerialize=rematerialize)
    tasks = [workload.task(spec, ipc=2, images=300, dtype=torch.float64) for _ in range(2)]
    store: dict[str, Any] = {}
    ours = cls(tasks[0], config, 3)
    ours.prepare(store)
    plain = compare.PLAIN[method](tasks[1], config, 3, store)
    assert isinstance(plain, PlainMTT | PlainBPTT)
    start = ours.synthetic()
    for _ in range(3):
        loss = plain.step()
        torch.testing.assert_close(next(iter(ours.step().values())), loss, rtol=1e-10, atol=0)
        found = ours.synthetic()
        lr = plain.lr if isinstance(plain, PlainMTT) else F.softplus(plain.raw_lr)
        torch.testing.assert_close(found.lr, lr.detach(), rtol=0, atol=1e-10)
        largest = float(found.images.abs().max())
        torch.testing.assert_close(found.images, plain.images.detach(), rtol=0, atol=1e-10 * largest)
    assert start.lr is not None and found.lr is not None
    assert (found.images - start.images).abs().max() > 1e-4 and (found.lr - start.lr).abs().min() > 1e-8
    assert torch.equal(tasks[0].generator.get_state(), tasks[1].generator.get_state())


@pytest.mark.parametrize(
    "setting",
    [
        compare.Setting("frepo", 10, 1, "cifar", 4),
        compare.Setting("frepo", 10, 10, "cifar", 4),
        compare.Setting("mtt", 10, 4, "cifar", 8, steps=4),
        compare.Setting("bptt", 10, 4, "cifar", 8, steps=4),
    ],
    ids=str,
)
def test_ours_needs_no_more_memory_than_plain(setting: compare.Setting) -> None:
    """But for a thousandth."""
    config = {"frepo": {"pool_size": 2}, "bptt": {"batch_size": 128}}.get(setting.method, {})
    makers, task = compare.arms_of(setting, 9, config)
    plain, ours, *rematerialised = (compare.live_bytes(make, task()) for make in makers.values())
    assert ours < 1.001 * plain and all(less < 0.7 * ours for less in rematerialised)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_jax_frepo_is_frepo(channels: int, flip: bool) -> None:
    """In float64, long enough for networks of the pool to be replaced."""
    jax = pytest.importorskip("jax")
    from benchmarks.speed.jax_frepo import JaxFRePo

    spec, config = replace(SPEC, in_channels=channels), replace(CONFIG, use_flip=flip, online_batch_size=4)
    with jax.enable_x64(True):
        plain, other = (
            cls(workload.task(spec, ipc=2, images=60, dtype=torch.float64), config, 10)
            for cls in (PlainFRePo, JaxFRePo)
        )
        for _ in range(12):
            assert other.step() == pytest.approx(float(plain.step()), rel=1e-9)
        images, labels = (torch.from_numpy(np.array(value)) for value in other.learned)
    learned = [value.detach() for value in plain.learned]
    torch.testing.assert_close([images.permute(0, 3, 1, 2), labels], learned, rtol=1e-9, atol=1e-9)
    assert torch.equal(plain.task.generator.get_state(), other.task.generator.get_state())


@pytest.mark.parametrize("method", ["dsa", "dm"])
@pytest.mark.parametrize("ipc", [1, 2])
def test_plain_matching_is_matching(method: str, ipc: int) -> None:
    """The same images and losses in float64 over steps that share the random draws, and as many draws."""
    cls = methods.get(method)
    spec = NetworkSpec("convnet", 1, (8, 8), 3, width=4)
    config = cls.Config(**{**compare.SHORTER.get(method, {}), "batch_real": 40})
    tasks = [workload.task(spec, ipc=ipc, images=300, dtype=torch.float64) for _ in range(2)]
    ours, plain = cls(tasks[0], config, 3), compare.PLAIN[method](tasks[1], config, 3, {})
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
    """Who is first changes every time; plain takes 8 seconds and ours 2."""
    setting = compare.Setting("frepo", 2, 1, "digits", 4)
    in_turns = itertools.islice(itertools.cycle([8.0, 2.0, 2.0, 8.0]), 2 * (compare.WARMUP + 4))
    timing = compare.measure(setting, 4, config={"batch_size": 20, "pool_size": 2}, now=Ticks(list(in_turns)))
    assert timing.seconds == {"plain": 8.0, "ours": 2.0}
    assert 0 < timing.flops["ours"] == pytest.approx(timing.flops["plain"], rel=0.01)
    slower = replace(timing, seconds={"plain": 8.0, "ours": 8.0, "JAX": 4.0})
    shown = compare.table([timing, slower], machine.Rates(sgemm=2.0, convolution=1e-9))
    first, second = ([cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()[2:4])
    assert first[:-2] == ["frepo", "2", "1", "4", "digits", "8000.0", "2000.0", "", "0.25", "0.99", ""]
    assert second[:-2] == ["frepo", "2", "1", "4", "digits", "8000.0", "8000.0", "4000.0", "1.00", "0.99", "2.00"]
    assert "frepo, 2 synthetic images: ours / plain 0.50 (geometric mean of 2)" in shown
    assert "frepo, 2 synthetic images: ours / JAX 2.00 (geometric mean of 1)" in shown


def test_plain_is_held_against_what_was_reported() -> None:
    """On a machine whose matrix products take twice as long as there everything should."""
    near, far = compare.Setting("frepo", 10, 1, "cifar", 16), compare.Setting("frepo", 100, 1, "cifar", 16)
    timings = [
        compare.Timing(near, {"plain": 0.302 * 1.14, "ours": 0.108}, {"ours": 1.0}),
        compare.Timing(far, {"plain": 0.590 * 1.16, "ours": 0.253}, {"ours": 1.0}),
    ]
    shown = compare.table(timings, machine.Rates(sgemm=reported.SGEMM / 2, convolution=1.0))
    assert [line.split("|")[8].strip() for line in shown.splitlines()[2:4]] == ["0.31", "0.37"]
    assert "plain / expected" in shown and "1.14" in shown and "1.16" in shown
    assert f"1 of 2 rows; not: {far}." in shown
    assert "frepo, 100 synthetic images: ours / (reported JAX, rescaled) 0.50 (geometric mean of 1)" in shown
    assert "frepo, 100 synthetic images: ours / (reported straight, rescaled) 0.43 (geometric mean of 1)" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "fripo"], "did you mean 'frepo'"),
        (["--widths", "8,x"], "--widths must be whole numbers"),
        (["--widths", "0"], "--widths must be whole numbers"),
        (["--settings", "10x1"], "--settings must be like 10x1xcifar"),
        (["--settings", "0x1xcifar"], "--settings must be like 10x1xcifar"),
        (["--repeats", "0"], "--repeats must be at least 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


def test_without_jax_there_is_no_arm_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compare.main(["--jax"]) == 2
    assert capsys.readouterr().err == "error: --jax needs the package jax: pip install jax\n"


def test_the_rates_of_a_machine_are_operations_by_seconds() -> None:
    """Every call takes two seconds: 2·side³ operations, and of the largest convolution 2·(batch·side²)·(out·in·9)."""
    found = machine.rates(scale=32, now=Ticks([2.0]))
    assert found.sgemm == 2 * 64**3 / 2 / 1e9
    assert found.convolution == 2 * (2 * 8**2) * (512 * 512 * 9) / 2 / 1e9


def test_flops_are_those_of_products_and_convolutions_both_ways() -> None:
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    forward = 2 * (2 * 8 * 8) * (5 * 3 * 9)

    def call() -> None:
        out = torch.nn.functional.conv2d(images, weight, padding=1).relu().flatten(1)
        torch.autograd.grad((out @ out.T).sum(), [images, weight])

    product = 2 * 2 * 2 * 5 * 8 * 8
    assert workload.flops(call) == 3 * forward + 3 * product
