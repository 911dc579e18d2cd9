"""Sets in files, as others publish them: the folder that each gets, and the job that evaluates it.

In its folder a set stands beside the distilled ones, without a cost. Real images go through the set's own
preprocessing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.names import FORMS, kind_of
from benchmarks.data.views import split
from benchmarks.datasets import Benchmark, RawData, load
from benchmarks.errors import UserError
from benchmarks.folders import default_cache, default_root
from benchmarks.protocols import PROTOCOLS
from benchmarks.task import class_sizes, generator_for
from harness.plan.budgets import default_width
from harness.plan.jobs import Distillation, Job
from harness.plan.pending import existing, reason_to_distil
from harness.plan.planning import check_writable, device_of, inquiries_of, load_data, questions
from harness.plan.request import EvaluateRequest
from harness.records import artifact, importers, picture_folders, record
from harness.records.artifact import Artifact
from harness.records.class_orders import ClassOrder, class_order, own_order
from harness.records.importers import Imported
from harness.records.provenance import provenance
from harness.records.record import RECORD, SET
from methods.base import Synthetic
from methods.checks import check_synthetic

SUFFIXES = (".pt", ".pth", ".npz", ".safetensors")
PREPROCESS = "preprocess.pt"
"""What `harness.exports.torch` writes beside a set, and no set."""
PARTS = ("images", "labels", "lr")
"""Beginnings of the names of files that hold a part of a set, as MTT calls them."""


def sets_in(folder: Path, deeper: bool = True) -> list[list[Path]]:
    """The files of every set in ``folder``, which is one itself where it holds pictures.

    Tensors called images, labels and lr are the parts of one set; every other file is a set. The folders in it are
    looked into where ``deeper`` says so.
    """
    if picture_folders.holds_pictures(folder):
        return [[folder]]
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in entries if path.is_file() and path.suffix in SUFFIXES and path.name != PREPROCESS]
    parts = [path for path in files if path.suffix != ".npz" and path.stem.startswith(PARTS)]
    below = [each for path in entries if deeper and path.is_dir() for each in sets_in(path, False)]
    return ([parts] if parts else []) + [[path] for path in files if path not in parts] + below


def jobs_of(paths: Sequence[Path], request: EvaluateRequest) -> list[tuple[Job, list[str]]]:
    """`job_of` for every experiment in the file where all are asked for, with a seed for each; else for the one set.

    They differ in nothing but the seed, and so share a row: the mean over the experiments. Raises UserError for a seed
    beside all experiments.
    """
    if request.experiment != "all":
        return [job_of(paths, request)]
    if request.seed is not None:
        raise UserError("--seed means nothing with --experiment all: the number of an experiment is its seed")
    count = importers.read(paths, experiment=0).experiments or 0
    one_by_one = (dataclasses.replace(request, experiment=index, seed=index) for index in range(count))
    return [job_of(paths, each, together=True) for each in one_by_one]


def job_of(paths: Sequence[Path], request: EvaluateRequest, *, together: bool = False) -> tuple[Job, list[str]]:
    """Copy the set in ``paths`` into a folder of its own, unless it is there, and ask what ``request`` asks.

    ``together``: the seed tells one experiment of a file from another. Returns the job, and lines that say what was
    understood. Raises UserError as `importers.read`, `class_order` and `importers.fitted` do, and for what neither the
    file nor the request says.
    """
    assert not isinstance(request.experiment, str)
    imported = importers.read(paths, experiment=request.experiment)
    own = imported.own
    if imported.natural and request.preprocess is None and request.protocol in PROTOCOLS and request.dataset:
        labels = imported.labels
        ipc = max(1, len(labels) // (labels.shape[1] if labels.ndim == 2 else len(set(labels.tolist()))))
        request = dataclasses.replace(request, preprocess=PROTOCOLS[request.protocol].preprocess(request.dataset, ipc))
    request = _complete(request if own is None else _filled_in(request, own, paths[0]))
    assert request.dataset is not None and request.name is not None and request.preprocess is not None
    assert request.budget is not None and request.seed is not None
    if request.lr is not None:
        if not PROTOCOLS[request.protocol].recipe.learned_lr:
            raise UserError(f"--lr means nothing under --protocol {request.protocol}, which has a step size of its own")
        imported = dataclasses.replace(imported, lr=torch.tensor(request.lr))
    device = device_of(request)
    root, cache = request.data_root or default_root(), request.cache or default_cache()
    asked = inquiries_of(request, request.asked_evaluations, request.budget)
    for inquiry in asked:
        if len(inquiry.views) > 1 or not request.dataset.endswith(inquiry.views[0]):
            views = ", ".join(inquiry.views)
            raise UserError(f"{inquiry.evaluation} asks about sets distilled from {views}, not about one in a file")
    raw = load_data(request.dataset, root, cache, request)
    synthetic, order, ipc = _fitted(paths[0], imported, raw, root, request)
    authors = PROTOCOLS[{"dc": "vico", "idc": "vico", "own": "common"}.get(imported.source, imported.source)]
    benchmark = load(
        request.dataset,
        ipc=ipc,
        network=authors.network if own is None else own.network.name,
        width=request.width or (default_width(request.budget, device) if own is None else own.network.width),
        depth=None if own is None else own.network.depth,
        norm=(authors.distill_norm or authors.test_norm) if own is None else own.network.norm,
        preprocess=request.preprocess,
        generator=generator_for("distil", request.seed),
        root=root,
        cache=cache,
        image_size=request.image_size,
    )
    distillation = Distillation(
        method=request.name,
        dataset=raw.name,
        data_fingerprint=raw.fingerprint,
        ipc=ipc,
        image_size=request.image_size,
        preprocess=request.preprocess,
        network=benchmark.spec.name,
        width=benchmark.spec.width,
        depth=benchmark.spec.blocks,
        norm=benchmark.spec.norm,
        seed=request.seed,
        steps=None,
        seconds=None,
        seconds_include_prepare=False,
        cost_only=False,
        device_kind="cpu",
        dtype="float32",
        tf32=False,
        memory_limit_bytes=None,
    )
    if imported.natural:
        synthetic = _preprocessed(synthetic, benchmark)
    config: dict[str, Any] = {
        "sha256": [digest for _, digest in imported.files],
        "experiment": "all" if together else imported.experiment,
        "label_space": "logits" if request.label_space == "logits" else synthetic.label_space,
        "lr": request.lr,
    }
    if request.factor is not None:
        config["factor"] = request.factor
    if not order.is_ours:
        config["class_order"] = list(order.classes)
    job = Job(
        distillation=distillation,
        config=config,
        asked={"budget": request.budget, "protocol": request.protocol},
        questions=questions(asked, distillation, request.protocol),
        source=request.dataset,
        device=device,
        data_root=str(root),
        cache=str(cache),
        folder=str(request.output / distillation.name(config)),
        command=request.command,
        tf32=request.tf32,
        time_limit_seconds=request.time_limit,
        cell_timeout_seconds=request.cell_timeout,
        force=request.force,
    )
    doubts = []
    if own is None:
        doubts = importers.doubts(synthetic, raw.class_names, benchmark.task.classes)
        doubts += importers.pixel_doubts(synthetic.images, benchmark.task.images, benchmark.preprocess)
    check_writable(request.output, "--output")
    if reason_to_distil(job, existing(job)) is not None:
        about = {
            "files": [{"name": name, "sha256": digest} for name, digest in imported.files],
            "class_order": order.described,
            "doubts": doubts,
        }
        _write(job, synthetic, dataclasses.replace(benchmark, name=raw.name), about)
    return job, _notes(job, imported, synthetic, order, doubts)


def _filled_in(request: EvaluateRequest, own: Artifact, path: Path) -> EvaluateRequest:
    """``request`` with what a set of this suite knows about itself; the command line has the last word."""
    if request.preprocess not in (None, own.preprocess.name):
        raise UserError(f"{path} says that its preprocessing is {own.preprocess.name}: leave out --preprocess")
    known: dict[str, Any] = {"preprocess": own.preprocess.name}
    dataset = own.distillation.get("dataset")
    form = FORMS.get(kind_of(str(dataset)) or "")
    if request.dataset is None and form:
        raise UserError(f"--dataset is missing: say where the images of {dataset} lie, as {form}")
    if request.dataset is not None and form and not split(request.dataset)[1]:
        request = dataclasses.replace(request, dataset=request.dataset + split(str(dataset))[1])
    for name, kind in (("dataset", str), ("seed", int), ("image_size", int)):
        value = own.distillation.get(name)  # a set that was saved by hand need not know all of it
        if getattr(request, name) is None and value is not None:
            if type(value) is not kind:
                raise UserError(f"{path} is damaged: its {name} is {value!r}")
            known[name] = value
    if request.name is None and "method" in own.distillation:
        known["name"] = f"{own.distillation['method']}_reevaluated"
    return dataclasses.replace(request, **known)


def _complete(request: EvaluateRequest) -> EvaluateRequest:
    """``request`` with its defaults. Raises UserError for what neither the file nor the user says."""
    if request.preprocess is None:
        listed = "; ".join(f"{name}: {papers}" for name, papers in importers.USED_BY.items())
        raise UserError(
            f"--preprocess is missing, and the file does not say how its images were preprocessed. {listed}"
        )
    for name in ("dataset", "name"):
        if getattr(request, name) is None:
            raise UserError(f"--{name} is missing; see --help")
    if request.protocol == "native":
        raise UserError("--protocol native is that of a method of this suite: name one for the set of others")
    return dataclasses.replace(request, budget=request.budget or "quick", seed=request.seed or 0)


def _fitted(
    path: Path, imported: Imported, raw: RawData, root: Path, request: EvaluateRequest
) -> tuple[Synthetic, ClassOrder, int]:
    """The set as it fits the data ``raw``, where the order of its classes comes from, and its images per class.

    Raises UserError where it does not fit, and for a set of this suite that is not whole.
    """
    own, classes, shape = imported.own, len(raw.class_names), raw.train_images.shape[1:]
    present = tuple(class_sizes(raw.train_labels))
    if own is None and imported.class_names is not None and request.class_order is None:
        order = own_order(imported.class_names, raw.class_names, request.dataset or "")
    elif own is None:
        order = class_order(request.dataset or "", raw.class_names, root, imported.source, request.class_order)
    elif request.class_order is None:
        order = own_order(own.class_names, raw.class_names)
    else:
        raise UserError("--class-order means nothing for a set of this suite, which names its classes: leave it out")
    synthetic = importers.fitted(
        imported,
        raw.class_names,
        shape,
        request.label_space,
        order=order.classes,
        most=len(raw.train_images),
        present=present,
    )
    if request.factor is not None:
        if own is not None:
            raise UserError("--factor means nothing for a set of this suite, which knows its decoder: leave it out")
        synthetic = dataclasses.replace(synthetic, factor=request.factor)
    known = {} if own is None else own.distillation
    if known.get("data_fingerprint") not in (None, raw.fingerprint):
        raise UserError(f"{path} was made from other images than those of {request.dataset}")
    said = known.get("ipc")
    ipc = said if isinstance(said, int) and said > 0 else max(1, len(synthetic.images) // len(present))
    cpu = torch.device("cpu")
    form: dict[str, Any] = {"classes": classes, "present": present, "ipc": ipc, "image": shape}
    check_synthetic(synthetic, str(path), **form, dtype=torch.float32, device=cpu)
    return synthetic, order, ipc


def _preprocessed(synthetic: Synthetic, benchmark: Benchmark) -> Synthetic:
    """``synthetic``, whose images are pixels, preprocessed.

    Raises UserError where that is not the same before and after they are decoded.
    """
    preprocess = benchmark.preprocess
    if synthetic.factor > 1 and (preprocess.zca or any(side % synthetic.factor for side in synthetic.images.shape[2:])):
        raise UserError(
            f"--factor {synthetic.factor}: the images are pixels, and IDC decodes them before it preprocesses them. "
            "The order does not matter for a standardisation and equal tiles: take another --preprocess, or save them "
            "decoded"
        )
    return dataclasses.replace(synthetic, images=preprocess.forward(synthetic.images))


def _write(job: Job, synthetic: Synthetic, benchmark: Benchmark, about: dict[str, Any]) -> None:
    """The folder of a set that was distilled elsewhere. ``about``: where it comes from, for the provenance."""
    job.path.mkdir(parents=True, exist_ok=True)
    known = provenance(job.command, "cpu", job.distillation.data_fingerprint) | about
    written = record.new(job.identity, job.distillation.to_dict(), job.config, job.asked, known)
    digest = artifact.save(
        job.path / SET, synthetic, benchmark, distillation=written["distillation"], config=job.config
    )
    written |= {"status": "ok", "resolved": job.config, "artifact": {"name": SET, "sha256": digest}}
    if decoder := record.decoder_of(synthetic):
        written["decoder"] = decoder
    record.write(written, job.path / RECORD)


def _notes(job: Job, imported: Imported, synthetic: Synthetic, order: ClassOrder, doubts: Sequence[str]) -> list[str]:
    """Lines that say how the set was understood, and what may surprise."""
    asked, count = job.distillation, len(synthetic.images) * synthetic.factor**2
    decoded = f", decoded into {count}" if synthetic.factor > 1 else ""
    which = f", experiment {imported.experiment} of {imported.experiments}, counted from 0"
    lines = [
        f"{asked.method}: {len(synthetic.images)} images{decoded}, {asked.ipc} per class, "
        f"{synthetic.label_space} labels"
        f"{which if imported.experiments else ''}"
    ]
    lines += [f"Class order: {order.described}."] if imported.own is None else []
    lines += [f"The images are pixels in [0, 1], and go through {asked.preprocess}."] if imported.natural else []
    lines += [f"warning: {line}" for line in doubts]
    for config in (question.config for question in job.questions if "protocol" in question.config):
        protocol, limit = PROTOCOLS[config["protocol"]], config["steps"]
        lines.append(f"Protocol {protocol.name}: networks {config['network']}, width {config['width']}.")
        usual, steps = protocol.preprocess(asked.dataset, asked.ipc), protocol.recipe.steps(count)
        if usual != asked.preprocess:
            lines.append(f"Real images go through {asked.preprocess}, the set's own, instead of its {usual}.")
        if limit is not None and limit < steps:
            lines.append(
                f"Networks are trained for {limit} steps, the recipe's {steps} shortened by --budget or "
                "--evaluate-steps."
            )
        if protocol.recipe.learned_lr and synthetic.lr is None:
            lines.append(f"No learned step size is given (--lr): networks are trained with {protocol.recipe.lr:g}.")
    return list(dict.fromkeys(lines))
