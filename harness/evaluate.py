"""The command line for sets that are there already: ``python -m harness.evaluate FOLDER`` or ``… FILE --name NAME``.

A folder of distillations, however deep: every set is asked what it was not asked before. Files that others publish: the
set is copied into a folder of its own, and stands beside the distilled ones from then on, without a cost. Real images
go through the set's own preprocessing. Exit status as of ``harness.run``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import methods
from benchmarks import DATASETS, NETWORKS, PREPROCESSINGS
from benchmarks.errors import UserError, choose, printable
from benchmarks.protocols import PROTOCOLS
from harness import evaluations
from harness.command_line import Parser, end, exit_status, file_path, finite, whole
from harness.launch.local import Launcher, launch
from harness.plan.budgets import BUDGETS, COST, default_width
from harness.plan.jobs import Distillation, Job, Question
from harness.plan.options import split
from harness.plan.pending import reason_to_distil
from harness.plan.planning import asked_configs, check_writable, find_device, load_data, questions
from harness.plan.request import Evaluating, add_flags, flag, told
from harness.records import record
from harness.records.provenance import device_name, provenance
from harness.records.record import RECORD, SET, Distilled
from harness.run import carry_out, say

if TYPE_CHECKING:
    from harness.records.artifact import Artifact
    from harness.records.importers import Imported
    from methods.base import Synthetic

PROGRAM = "python -m harness.evaluate"
# torch is imported where it is used: --help must not wait for it.


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(Evaluating):
    """What is asked of sets that are there already; the second half is about files that others publish."""

    budget: str | None = flag("how many networks, trained for how long (as it was distilled; quick)", "NAME")
    dataset: str | None = flag("what the set was distilled from; folder:PATH where records name a folder", "NAME")
    name: str | None = flag("what the set of a file is called in the tables", "NAME")
    preprocess: str | None = flag("the space its images lie in; a foreign file does not say", "NAME")
    experiment: int | None = flag("which one of a file of DC, DSA or DM with several (0)", "N", whole)
    lr: float | None = flag("the step size that was learned with it, if no file has it", "X", finite)
    label_space: str | None = flag("of soft labels: probability, centred or logits (as their values say)", "NAME")
    class_order: str | None = flag(
        "what its label numbers mean: a file with a class on each line, or sorted, files, mtt, … (as its format says)",
        "ORDER",
    )
    width: int | None = flag("channels of the evaluated networks' first block (by budget)", "N", whole)
    seed: int | None = flag("of the networks and of the order and augmentation they see (0)", "N", whole)

    def __post_init__(self) -> None:
        """Raises UserError as that of the base class, and for names that do not exist."""
        super().__post_init__()
        for kind, name, known in (
            ("preprocessing", self.preprocess, PREPROCESSINGS),
            ("budget", self.budget, BUDGETS),
            ("label space", self.label_space, ("probability", "centred", "logits")),
        ):
            if name is not None:
                choose(kind, name, known)
        if self.budget == COST:
            raise UserError("--budget cost evaluates nothing: take smoke, quick or paper")
        if self.name is not None and (self.name in methods.names() or not self.name.strip()):
            raise UserError(
                f"--name {self.name!r} is a method of this suite or empty: name the set, as in mtt_released"
            )
        if self.name is not None and self.name != printable(self.name):
            raise UserError(f"--name {self.name!r} cannot be printed: take letters and digits")
        if self.lr is not None and not self.lr > 0:
            raise UserError(f"--lr must be a positive number, not {self.lr:g}")
        if (self.width or 1) < 1 or (self.seed or 0) < 0:
            raise UserError("--width must be at least 1, and --seed at least 0")


FILE_FIELDS = ("name", "preprocess", "experiment", "lr", "label_space", "class_order", "width", "seed")
"""Fields about files, which records know."""


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=program,
        usage=f"{program} FOLDER [options]\n"
        f"       {program} FILE [FILE …] --dataset NAME --preprocess NAME --name NAME [options]",
        description="Ask questions of distilled sets that are there already. FOLDER: results of this suite. FILE: a\n"
        "set of DC, DSA or DM (.pt), of MTT (images_best.pt labels_best.pt), of FRePo or KIP (.npz),\n"
        "or of this suite (.safetensors).",
        epilog=f"data sets       {', '.join(DATASETS)},\n                folder:PATH\n"
        f"evaluations     {', '.join(evaluations.names())}\n"
        f"preprocessings  {', '.join(PREPROCESSINGS)}\n"
        f"protocols       {', '.join(('native', *PROTOCOLS))}\nnetworks        {', '.join(NETWORKS)}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    parser.add_argument("paths", type=file_path, nargs="*", metavar="PATH", help="a folder, or the files of one set")
    add_flags(parser, EvaluateRequest)
    return parser


def main(arguments: Sequence[str] | None = None, *, launcher: Launcher = launch, program: str = PROGRAM) -> int:
    """Run the command line ``arguments`` (by default those of the process); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_status(lambda: _main(arguments, program, launcher))


def _main(arguments: Sequence[str], program: str, launcher: Launcher) -> int:
    others, options = split(arguments, evaluations.names())
    parser = _parser(program)
    parsed = parser.parse(others)
    if parsed.help:
        parser.print_help()
        return 0
    paths: list[Path] = parsed.paths
    if not paths:
        raise UserError(f"no folder or file is named; for instance: {program} results/local --protocol common")
    fields = told(parsed, EvaluateRequest) | {"options": options, "command": shlex.join([*program.split(), *arguments])}
    request = EvaluateRequest(**fields)
    for name in options:
        if name not in (request.evaluations or ("accuracy",)):
            raise UserError(f"--{name}.…: {name} is not among the evaluations, name it in --evaluations")
    if len(paths) == 1 and paths[0].name == SET and (paths[0].parent / RECORD).is_file():
        paths = [paths[0].parent]  # a set in its folder, with the record that knows all about it
    if not any(path.is_dir() for path in paths):
        job, output = _job_of_files(paths, request, fields), request.output
        return carry_out([job], output, launcher, force=False)
    if len(paths) > 1 or not paths[0].is_dir():
        raise UserError("name one folder, or the files of one set")
    if left := [name for name in FILE_FIELDS if getattr(request, name) is not None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in left)
        raise UserError(f"{flags} is about files of others, and the records in {paths[0]} know it: leave it out")
    jobs = _jobs_of_folder(paths[0], request)
    root = paths[0].parent if (paths[0] / RECORD).is_file() else paths[0]
    return carry_out(jobs, root, launcher, force=False)


# --- folders ----------------------------------------------------------------------------------------------------------


def _jobs_of_folder(folder: Path, request: EvaluateRequest) -> list[Job]:
    """A job for every set in ``folder`` that can be evaluated as asked; a line for every other.

    Raises UserError where none can.
    """
    from benchmarks.folders import default_cache, default_root

    all_distilled, damaged = record.read_all(folder)
    for line in damaged:
        say(line)
    if not all_distilled:
        raise UserError(f"no distilled set in {folder}")
    device = find_device(request.device)
    places = device, str(request.data_root or default_root()), str(request.cache or default_cache())
    jobs = []
    for distilled in all_distilled:
        try:
            jobs.append(_job_of(distilled, request, places))
        except _LeftOut as reason:
            say(f"{distilled.folder.name}: left out, {reason}")
    if not jobs:
        raise UserError(f"no set in {folder} can be evaluated so; the lines above say why")
    return jobs


class _LeftOut(Exception):
    """Why a set cannot be evaluated as asked."""


def _job_of(distilled: Distilled, request: EvaluateRequest, places: tuple[str, str, str]) -> Job:
    """The job that asks what ``request`` asks. ``places``: device, data root, cache. Raises _LeftOut."""
    written = distilled.record
    distillation = Distillation(**written["distillation"])
    if written["status"] != "ok":
        raise _LeftOut(f"its status is {written['status']}")
    source = distillation.dataset
    if source.startswith("folder:"):
        source = request.dataset or ""
        if f"folder:{Path(source.removeprefix('folder:')).resolve().name}" != distillation.dataset:
            raise _LeftOut(f"its images are those of {distillation.dataset}: say --dataset folder:PATH")
    elif request.dataset not in (None, source):
        raise _LeftOut(f"it was distilled from {source}")
    if request.image_size not in (None, distillation.image_size):
        raise _LeftOut(f"its images have the size {distillation.image_size or 'of the data set'}")
    budget = request.budget or written["asked"]["budget"]
    if request.protocol == "native" and distillation.method not in methods.names():
        raise _LeftOut(f"{distillation.method} has no native protocol: name a --protocol")
    native = methods.get(distillation.method).PROTOCOL if request.protocol == "native" else request.protocol
    names = request.evaluations or ("accuracy",)
    asked = asked_configs(request, names, budget if budget in BUDGETS and budget != COST else "quick")
    wanted = questions(asked, distillation, native)
    for question in wanted:
        _check_preprocessing(question, distillation)
    job = Job(
        distillation=distillation,
        config=written["config"],
        asked=written["asked"],
        questions=wanted,
        source=source,
        device=places[0],
        data_root=places[1],
        cache=places[2],
        folder=str(distilled.folder),
        command=request.command,
        tf32=request.tf32,
        time_limit_seconds=request.time_limit,
        force=request.force,
    )
    if reason := reason_to_distil(job, written):
        raise _LeftOut(reason)
    return job


def _check_preprocessing(question: Question, distillation: Distillation) -> None:
    """Raises _LeftOut where the protocol of ``question`` sees images in another space than those of the set."""
    if (name := question.config.get("protocol")) is None:
        return
    usual = PROTOCOLS[name].preprocess(distillation.dataset, distillation.ipc)
    if usual != distillation.preprocess:
        raise _LeftOut(f"its images are preprocessed by {distillation.preprocess}, and those of {name} by {usual}")


# --- files ------------------------------------------------------------------------------------------------------------


def _job_of_files(paths: Sequence[Path], request: EvaluateRequest, fields: Mapping[str, Any]) -> Job:
    """Copy the set in ``paths`` into a folder of its own, and return the job that evaluates it.

    Raises UserError as `importers.read`, `class_order` and `importers.fitted` do.
    """
    from harness.records import importers

    imported = importers.read(paths, experiment=request.experiment)
    if imported.own is not None:
        request = _filled_in(request, imported.own, paths[0])
    request = _complete(request, "protocol" in fields)
    if request.lr is not None:
        if not PROTOCOLS[request.protocol].recipe.learned_lr:
            raise UserError(f"--lr means nothing under --protocol {request.protocol}, which has a step size of its own")
        import torch

        imported = dataclasses.replace(imported, lr=torch.tensor(request.lr))
    return _imported(paths, request, imported)


def _filled_in(request: EvaluateRequest, own: Artifact, path: Path) -> EvaluateRequest:
    """``request`` with what a set of this suite knows about itself; the command line has the last word."""
    if request.preprocess not in (None, own.preprocess.name):
        raise UserError(f"{path} says that its preprocessing is {own.preprocess.name}: leave out --preprocess")
    known: dict[str, Any] = {"preprocess": own.preprocess.name}
    dataset = own.distillation.get("dataset")
    if request.dataset is None and str(dataset).startswith("folder:"):
        raise UserError(f"--dataset is missing: say where the images of {dataset} lie, as folder:PATH")
    for name, kind in (("dataset", str), ("seed", int), ("image_size", int)):
        value = own.distillation.get(name)  # a set that somebody saved by hand need not know all of it
        if getattr(request, name) is None and value is not None:
            if type(value) is not kind:
                raise UserError(f"{path} is damaged: its {name} is {value!r}")
            known[name] = value
    if request.name is None and "method" in own.distillation:
        known["name"] = f"{own.distillation['method']}_reevaluated"
    known["width"] = request.width or own.network.width
    return dataclasses.replace(request, **known)


def _complete(request: EvaluateRequest, protocol_is_said: bool) -> EvaluateRequest:
    """``request`` with its defaults. Raises UserError for what a foreign file does not say, and nobody else did."""
    if request.preprocess is None:
        from harness.records.importers import USED_BY

        listed = "; ".join(f"{name}: {papers}" for name, papers in USED_BY.items())
        raise UserError(
            f"--preprocess is missing, and the file does not say how its images were preprocessed. {listed}"
        )
    for name in ("dataset", "name"):
        if getattr(request, name) is None:
            raise UserError(f"--{name} is missing; see --help")
    if protocol_is_said and request.protocol == "native":
        raise UserError("--protocol native is that of a method of this suite: name one for the set of others")
    return dataclasses.replace(
        request,
        protocol=request.protocol if protocol_is_said else "common",
        budget=request.budget or "quick",
        seed=request.seed or 0,
    )


def _imported(paths: Sequence[Path], request: EvaluateRequest, imported: Imported) -> Job:
    """Write the folder of a set that was ``imported``, unless it is there, and return the job that evaluates it."""
    import torch

    from benchmarks.datasets import load
    from benchmarks.folders import default_cache, default_root
    from benchmarks.task import generator_for
    from harness.records import artifact, importers
    from harness.records.class_orders import class_order, own_order

    assert request.dataset is not None and request.name is not None and request.preprocess is not None
    assert request.budget is not None and request.seed is not None
    device, protocol = find_device(request.device), PROTOCOLS[request.protocol]
    root, cache = request.data_root or default_root(), request.cache or default_cache()
    raw = load_data(request.dataset, root, cache, request)
    if imported.own is None:
        order = class_order(request.dataset, raw.class_names, root, imported.source, request.class_order)
    elif request.class_order is None:
        order = own_order(imported.own.class_names, raw.class_names)
    else:
        raise UserError("--class-order means nothing for a set of this suite, which names its classes: leave it out")
    image = raw.train_images.shape[1:]
    synthetic = importers.fitted(
        imported,
        raw.class_names,
        image,
        request.label_space,
        order=order.classes,
        most=len(raw.train_images),
    )
    made_from = None if imported.own is None else imported.own.distillation.get("data_fingerprint")
    if made_from not in (None, raw.fingerprint):
        raise UserError(f"{paths[0]} was made from other images than those of {request.dataset}")
    ipc = _checked_ipc(synthetic, paths[0], imported.own, len(raw.class_names), image)
    asked = asked_configs(request, request.evaluations or ("accuracy",), request.budget)
    benchmark = load(
        request.dataset,
        ipc=ipc,
        network=request.network if request.network not in (None, "native") else protocol.network,
        width=request.width or default_width(request.budget, device),
        depth=None,
        norm=protocol.test_norm,
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
    config: dict[str, Any] = {
        "sha256": [digest for _, digest in imported.files],
        "experiment": imported.experiment,
        "label_space": "logits" if request.label_space == "logits" else synthetic.label_space,
        "lr": request.lr,
    }
    if not order.is_ours:
        config["class_order"] = order.classes
    config = json.loads(json.dumps(config))
    job = Job(
        distillation=distillation,
        config=config,
        asked={"budget": request.budget, "protocol": request.protocol},
        questions=questions(asked, distillation, protocol.name),
        source=request.dataset,
        device=device,
        data_root=str(root),
        cache=str(cache),
        folder=str(request.output / distillation.name(config)),
        command=request.command,
        tf32=request.tf32,
        time_limit_seconds=request.time_limit,
        force=request.force,
    )
    doubts = []
    if imported.own is None:
        doubts = importers.doubts(synthetic, raw.class_names)
        doubts += importers.pixel_doubts(synthetic.images, benchmark.task.images, benchmark.preprocess)
    for line in _notes(job, imported, synthetic, order.described, doubts):
        say(line)
    check_writable(request.output, "--output")
    if not (job.path / RECORD).exists() or reason_to_distil(job, record.load(job.path / RECORD)) is not None:
        job.path.mkdir(parents=True, exist_ok=True)
        known = provenance(request.command, device=device_name("cpu"), fingerprint=raw.fingerprint)
        known |= {
            "threads": torch.get_num_threads(),
            "files": [{"name": name, "sha256": digest} for name, digest in imported.files],
            "class_order": order.described,
            "doubts": doubts,
        }
        written = record.new(job.identity, distillation.to_dict(), config, job.asked, known)
        benchmark = dataclasses.replace(benchmark, name=raw.name)
        digest = artifact.save(
            job.path / SET, synthetic, benchmark, distillation=written["distillation"], config=config
        )
        written |= {"status": "ok", "resolved": config, "artifact": {"name": SET, "sha256": digest}}
        record.write(written, job.path / RECORD)
    return job


def _checked_ipc(synthetic: Synthetic, file: Path, own: Artifact | None, classes: int, image: Sequence[int]) -> int:
    """Images per class: what a set of this suite says, else as many as there are. Raises UserError as
    `check_synthetic` does."""
    import torch

    from methods.checks import check_synthetic

    said = None if own is None else own.distillation.get("ipc")
    ipc = said if isinstance(said, int) and said > 0 else max(1, len(synthetic.images) // classes)
    where, cpu = str(file), torch.device("cpu")
    check_synthetic(synthetic, where, classes=classes, ipc=ipc, image=image, dtype=torch.float32, device=cpu)
    return ipc


def _notes(job: Job, imported: Imported, synthetic: Synthetic, class_order: str, doubts: Sequence[str]) -> list[str]:
    """What was understood, and what one might not expect."""
    distillation = job.distillation
    protocol = PROTOCOLS[job.asked["protocol"]]
    which = f", experiment {imported.experiment} of {imported.experiments}, counted from 0"
    lines = [
        f"{distillation.method}: {len(synthetic.images)} images, {distillation.ipc} per class, "
        f"{synthetic.label_space} labels{which if imported.experiments else ''}; protocol {protocol.name}, "
        f"{distillation.network}, width {distillation.width}"
    ]
    lines += [f"Class order: {class_order}."] if imported.own is None else []
    lines += [f"warning: {line}" for line in doubts]
    usual = protocol.preprocess(distillation.dataset, distillation.ipc)
    if usual != distillation.preprocess:
        lines.append(
            f"Real images go through {distillation.preprocess}, the set's own, instead of the protocol's {usual}."
        )
    steps = protocol.recipe.steps(len(synthetic.images))
    for question in job.questions:
        limit = question.config.get("steps")
        if limit is not None and limit < steps:
            lines.append(
                f"Networks are trained for {limit} steps, the recipe's {steps} shortened by --budget or "
                "--evaluate-steps."
            )
    if protocol.recipe.learned_lr and synthetic.lr is None:
        lines.append(f"No learned step size is given (--lr): networks are trained with {protocol.recipe.lr:g}.")
    return lines


if __name__ == "__main__":
    end(main())
