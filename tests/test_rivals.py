"""The plain ports compute what ours compute: the same losses and sets in float64, and as many random draws."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import methods
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import Task, generator_for
from harness.measure.counters import count
from methods.base import Method

RIVALS = Path(__file__).parent / "rivals"
CLASSES = 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def rivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the ports where PYTHONPATH=tests/rivals puts them."""
    monkeypatch.syspath_prepend(RIVALS)
    yield
    for name in [name for name, module in sys.modules.items() if str(RIVALS) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def task(
    name: str, *, channels: int = 3, size: int = 8, ipc: int = 2, images: int = 60, dtype: torch.dtype = torch.float64
) -> Task:
    """Standard normal images of ``size``² pixels, for the network that the method ``name`` distils with."""
    protocol = PROTOCOLS[methods.get(name).PROTOCOL]
    spec = NetworkSpec(protocol.network, channels, (size, size), CLASSES, width=4, depth=2, norm=protocol.distill_norm)
    return Task(
        images=torch.randn(images, channels, size, size, generator=generator_for("images"), dtype=dtype),
        labels=torch.arange(images) % CLASSES,
        num_classes=CLASSES,
        ipc=ipc,
        network=functools.partial(spec.build, dtype=dtype),
        generator=generator_for("distil"),
        flip=True,
    )


def prepared(name: str, own: Task, config: dict[str, Any]) -> Method:
    cls = methods.get(name)
    method = cls(own, cls.Config(**config), 10)
    method.prepare({})
    return method


FREPO = {"lr": 0.01, "pool_size": 3, "max_online_updates": 3, "batch_size": 30}
MTT = {"syn_steps": 3, "num_experts": 2, "train_epochs": 3, "max_start_epoch": 2, "expert_epochs": 2, "lr_img": 10.0}
SETTINGS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("frepo_plain", FREPO, {}),
    ("frepo_plain", {**FREPO, "use_flip": False, "scale_label": False}, {}),
    ("frepo_plain", {**FREPO, "learn_label": False}, {"channels": 1}),
    ("frepo_plain", {**FREPO, "online_batch_size": 4}, {}),
    ("frepo_jax", FREPO, {}),
    ("frepo_jax", {**FREPO, "use_flip": False, "online_batch_size": 4}, {"channels": 1}),
    ("frepo_jax", {**FREPO, "learn_label": False, "scale_label": False}, {}),
    ("mtt_plain", MTT, {}),
    ("mtt_plain", {**MTT, "batch_syn": 4, "steps_per_epoch": 5, "syn_steps": 5}, {"channels": 1}),
    ("bptt_plain", {"unroll": 3, "batch_size": 50}, {}),
    ("bptt_plain", {"unroll": 2, "lr_init": 0.5}, {"channels": 1}),
    ("dm_plain", {"batch_real": 12}, {}),
    ("dm_plain", {"batch_real": 12, "lr_img": 10.0}, {"channels": 1, "ipc": 1}),
    ("dsa_plain", {"batch_real": 12}, {"ipc": 1}),
    ("dsa_plain", {"batch_real": 12, "outer_loop": 2, "inner_loop": 3, "batch_train": 4}, {"channels": 1}),
]


@pytest.mark.parametrize(("name", "config", "setting"), SETTINGS, ids=lambda value: str(value))
def test_a_port_computes_what_ours_computes(name: str, config: dict[str, Any], setting: dict[str, int]) -> None:
    """Over enough steps that networks of FRePo's pool are replaced, and that DSA begins with fresh networks."""
    in_float64 = pytest.importorskip("jax").enable_x64(True) if name == "frepo_jax" else contextlib.nullcontext()
    with in_float64:
        ours, rival = (prepared(of, task(of, **setting), config) for of in (name.partition("_")[0], name))
        start = ours.synthetic()
        for _ in range(12 if name.startswith("frepo") else 3):
            loss = next(iter(ours.step().values()))
            torch.testing.assert_close(next(iter(rival.step().values())), loss, rtol=1e-9, atol=1e-9)
        expected, computed = ours.synthetic(), rival.synthetic()
    largest = float(expected.images.abs().max())
    torch.testing.assert_close(computed.images, expected.images, rtol=0, atol=1e-9 * largest)
    torch.testing.assert_close(computed.labels, expected.labels, rtol=1e-9, atol=1e-9)
    assert computed.label_space == expected.label_space
    assert (expected.images - start.images).abs().max() > 1e-6
    if expected.lr is not None:
        assert start.lr is not None and not torch.equal(expected.lr, start.lr)
        torch.testing.assert_close(computed.lr, expected.lr, rtol=1e-9, atol=1e-9)
    assert torch.equal(rival.task.generator.get_state(), ours.task.generator.get_state())
    assert rival.steps_per_cycle == ours.steps_per_cycle


@pytest.mark.parametrize(
    ("name", "config", "ipc"),
    [
        ("frepo_plain", {"pool_size": 2}, 4),
        ("frepo_plain", {"pool_size": 2}, 40),
        ("mtt_plain", {**MTT, "num_experts": 1, "syn_steps": 4}, 10),
        ("bptt_plain", {"unroll": 4, "batch_size": 128}, 10),
        ("dm_plain", {}, 10),
        ("dsa_plain", {"outer_loop": 1}, 10),
    ],
    ids=str,
)
def test_ours_needs_neither_more_operations_nor_more_memory(name: str, config: dict[str, Any], ipc: int) -> None:
    """A thousandth is left to bookkeeping: the counters see the smallest tensor."""
    ours, rival = (
        count(lambda of=of: prepared(of, task(of, size=32, ipc=ipc, images=600, dtype=torch.float32), config), CPU)
        for of in (name.partition("_")[0], name)
    )
    assert ours.flops < 1.001 * rival.flops
    assert ours.peak_live_bytes < 1.001 * rival.peak_live_bytes


@pytest.mark.parametrize("name", ["bptt_plain", "dm_plain", "dsa_plain", "frepo_plain", "mtt_plain"])
def test_another_network_is_refused(name: str) -> None:
    own = task("dm" if name == "frepo_plain" else "frepo")
    cls = methods.get(name)
    with pytest.raises(UserError, match="port has one network: convnet"):
        method = cls(own, cls.Config(), 1)
        method.step()


def test_a_hyper_parameter_that_a_port_does_not_heed_is_refused() -> None:
    with pytest.raises(UserError, match=r"BPTTPlain knows momentum 0\.0 alone, not 0\.9: leave it out"):
        prepared("bptt_plain", task("bptt"), {"momentum": 0.9})


def test_without_jax_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UserError, match=r"frepo_jax needs the package jax: pip install jax$"):
        methods.get("frepo_jax")
