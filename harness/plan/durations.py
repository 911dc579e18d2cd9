"""Durations of the cells of an experiment: operations as forecast, at rates that records tell of.

A step takes the operations of the forecast at the rate (operations per second) of the same method on the same network.
What trains networks (evaluations, MTT's experts) goes at that rate, too. A method without steps, such as random real
images, has the median rate of all methods on the network.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import methods
from benchmarks.data.published import stand_in
from benchmarks.errors import UserError
from benchmarks.networks import NetworkSpec
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import generator_for
from harness import evaluations
from harness.evaluations.accuracy import AccuracyConfig
from harness.measure.forecast import forecast_flops
from harness.plan.jobs import ACCURACY, Job, from_json
from harness.plan.outlook import RECORD_BYTES
from harness.plan.schedule import Cells
from harness.progress import Progress
from harness.records.record import Distilled

Rates = Mapping[tuple[str, str], float]
"""(method, network) → operations per second."""


def rates_of(distilled: Iterable[Distilled]) -> Rates:
    """The median rate of every method on every network, in records whose operations were counted."""
    seen = defaultdict[tuple[str, str], list[float]](list)
    for each in distilled:
        cost, of = each.record["cost"], each.record["distillation"]
        if cost["step_seconds"] and cost["flops_per_step"]:
            rate = cost["flops_per_step"] / statistics.median(cost["step_seconds"])
            seen[of["method"], of["network"]].append(rate)
    return {key: statistics.median(values) for key, values in seen.items()}


def cells_of(jobs: Sequence[Job], rates: Rates) -> list[Cells]:
    """The cells of ``jobs``, about published data, with those that differ in nothing but the seed as one row.

    Experts that several cells share are a row of their own, which comes before them. Raises UserError where there is
    no rate of a method on its network, where a forecast fails, and where an evaluation is none of the accuracy.
    """
    groups = defaultdict[tuple[Any, str], list[Job]](list)
    for job in jobs:
        groups[dataclasses.replace(job.distillation, seed=0), json.dumps(job.config)].append(job)
    progress, rows = Progress("forecasting, cells", len(groups)), dict[str, Cells]()
    for done, same in enumerate(groups.values(), 1):
        for row in _rows(same, rates):
            rows.setdefault(row.name, row)
        progress(done)
    progress.close()
    return list(rows.values())


def _rows(same: Sequence[Job], rates: Rates) -> list[Cells]:
    """The row of jobs that differ in the seed, and before it the row of their experts, if they have any."""
    job = same[0]
    of, rate, operations = job.distillation, _rate(job, rates), _evaluating(job)
    if of.steps and methods.get(of.method).iterative:
        operations += _stepping(job) * of.steps
    name, after = f"{of.method} on {of.dataset}, ipc {of.ipc}, width {of.width}", ""
    rows = []
    if "num_experts" in job.config:
        config, spec = job.config, _spec(job)
        flat = "rho" in config  # a second pass on every batch
        after = f"{'flat ' * flat}experts of {of.dataset}, {of.preprocess}, {of.network} {of.width}"
        seen = (1 + flat) * config["train_epochs"] * stand_in(of.dataset, of.image_size).train_images.shape[0]
        snapshots = config["train_epochs"] + 1
        if "min_start_epoch" in config:  # those that can be touched, and the last
            touched = config["max_start_epoch"] - config["min_start_epoch"] + config["expert_epochs"]
            snapshots = min(touched + 1, snapshots)
            after += f", from epoch {config['min_start_epoch']} to {config['max_start_epoch']}"
        disk = 4 * spec.parameters() * snapshots
        seconds = seen * _training(spec)[0] / rate
        rows = [Cells(after, config["num_experts"], seconds, disk_bytes=disk)]
    elif "num_premodel" in job.config:
        config, spec = job.config, _spec(job)
        after = f"pairs of networks of {of.dataset}, {of.preprocess}, {of.network} {of.width}"
        seen = config["pretrain_epochs"] * stand_in(of.dataset, of.image_size).train_images.shape[0]
        rows = [
            Cells(after, config["num_premodel"], seen * _training(spec)[0] / rate, disk_bytes=8 * spec.parameters())
        ]
    size = RECORD_BYTES + (1 + job.curve_points) * job.set_bytes
    seconds = operations / rate + (of.seconds or 0.0)
    return [*rows, Cells(name, len(same), seconds, after, of.cost_only, size)]


def _stepping(job: Job) -> float:
    """Operations of a step.

    DC and DSA update the images T times, and train a network between two updates, for thousands of steps that would all
    be forecast. That training is counted like that of an evaluation, and one update is forecast.
    """
    updates, epochs = job.config.get("outer_loop"), job.config.get("inner_loop")
    if updates is None or epochs is None:
        return forecast_flops(job)
    update = forecast_flops(dataclasses.replace(job, config={**job.config, "outer_loop": 1}))
    spec = _spec(job)
    training = epochs * job.distillation.ipc * spec.num_classes * _training(spec)[0]
    return update + float(training * (updates - 1) / updates)


def _rate(job: Job, rates: Rates) -> float:
    of = job.distillation
    if not methods.get(of.method).iterative and (alike := [r for (_, name), r in rates.items() if name == of.network]):
        return statistics.median(alike)
    if (rate := rates.get((of.method, of.network))) is None:
        raise UserError(f"no record tells how fast {of.method} is on {of.network}: measure it with --budget cost")
    return rate


def _spec(job: Job) -> NetworkSpec:
    """The network that distils."""
    of, raw = job.distillation, stand_in(job.distillation.dataset, job.distillation.image_size)
    channels, height, width = raw.train_images.shape[1:]
    norm: Any = of.norm
    return NetworkSpec(of.network, channels, (height, width), len(raw.class_names), of.width, of.depth, norm)


def _evaluating(job: Job) -> float:
    """Operations of training and testing the networks of its evaluations of the accuracy."""
    raw, operations = stand_in(job.distillation.dataset, job.distillation.image_size), 0.0
    for question in job.questions:
        if question.evaluation != ACCURACY:
            raise UserError(f"the operations of {question.evaluation} are not known; ask for the accuracy alone")
        config: AccuracyConfig = from_json(evaluations.get(ACCURACY).Config, question.config)
        recipe, images = PROTOCOLS[config.protocol].recipe, job.distillation.ipc * len(raw.class_names)
        images *= job.config.get("factor", 1) ** 2  # networks are trained on decoded images
        full = recipe.steps(images)
        seen = min(full, config.steps or full) * images / recipe.steps_per_epoch(images)
        trained, tested = _training(config.spec(_spec(job)))
        operations += config.networks * (seen * trained + len(raw.test_labels) * tested)
    return operations


def _training(spec: NetworkSpec) -> tuple[float, float]:
    """Operations for an image: of a training step, and of a test."""
    network = spec.build(generator_for("count"), device=torch.device("cpu"), dtype=torch.float32)
    image = torch.zeros(1, spec.in_channels, *spec.image_size)
    counts = []
    for train in (True, False):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
            logits = network.train(train)(image)
            if train:
                logits.sum().backward()
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]
